"""Pictures of concepts after so and so many steps of training, and what the rule of when to stop sees of them meanwhile.

One training of each concept, with its factors kept every five steps, serves every number of steps: the rate is constant and a step's draws
belong to the step, so what stands after s steps is what a training of s steps gives (persres/training/residuals.py).

Two sets of subjects: ten nameless looks, which no model was trained on and on which the rule's constants were chosen, and the
ten concepts. Every piece is kept below ``work`` when it is done, so a killed run goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from persres.config import Base, Drawing, Encoders
from persres.datasets.layout import spread_prompts
from persres.images import to_images, to_tensor
from persres.methods.ours import Ours
from persres.metrics.clip_scores import alignment, clip_text_score, load_clip
from persres.metrics.cut_out import cut_out, object_alignment
from persres.metrics.dino_scores import load_dino
from persres.miniworld.captions import concept_prompts
from persres.miniworld.concepts import CONCEPTS, Concept, views
from persres.miniworld.judge import followed, judge_images, load_judge
from persres.miniworld.recipe import RECIPE
from persres.miniworld.scenes import random_identity
from persres.miniworld.vocabulary import BACKGROUNDS
from persres.models.diffusion import Diffusion, load_diffusion
from persres.places import located
from persres.prompt_text import fill
from persres.residuals.bank import ResidualBank, find_targets
from persres.runs.checkpoints import read_tensors, write_tensors
from persres.runs.files import write_atomic
from persres.runs.specs import Item
from persres.sampling.draw import draw
from persres.seeding import seed_from
from persres.training.residuals import Lesson, new_bank, settling, train

LONGEST, EVERY = 300, 5  # steps of the one training, and between two of its kept states
CURVE = (0, 10, 25, 50, 75, 100, 125, 150, 200, 300)
PHOTOS, SEEDS, FEW, ALL = (
    5,
    2,
    8,
    20,
)  # of 20 prompts, each drawn twice: eight for the curves, all where a claim is made
DRAWN = Drawing(variant="ours", steps=25)
COLUMNS = ("dino", "clip_image", "dino_object", "clip_text", "followed")


def nameless(index: int) -> Concept:
    """A look that the models never saw, photographed in one background or two as the concepts are."""
    rng = np.random.default_rng(seed_from("stopping", index))
    look = random_identity(RECIPE, rng)
    return Concept(f"nameless_{index}", look, tuple(map(str, rng.permutation(list(BACKGROUNDS))[: 1 + index % 2])))


SETS: dict[str, tuple[Concept, ...]] = {"tuning": tuple(nameless(i) for i in range(10)), "test": CONCEPTS}


@dataclass(frozen=True)
class Bench:
    """Models and settings that all pieces share, and the folder that keeps them."""

    base: Base
    encoders: Encoders
    judge: str  # folder of its weights
    settings: Ours
    device: str
    folder: Path

    @property
    def diffusion(self) -> Diffusion:
        """The frozen model, loaded once a process."""
        return load_diffusion(self.base, self.device)

    @property
    def batch(self) -> int:
        """Pictures drawn at once: a GPU is idle with few, a core gains nothing by many."""
        return 160 if self.diffusion.unet.device.type == "cuda" else 16


def photos(concept: Concept) -> list[Image.Image]:
    """What a concept is learned from."""
    return [view.image for view in views(concept, "reference", PHOTOS, 0)]


def lesson(bench: Bench, concept: Concept) -> Lesson:
    """As the method reads it (persres/methods/ours.py)."""
    diffusion = bench.diffusion
    text = diffusion.encode([fill(bench.settings.prompt, f"{bench.base.token} {concept.look.kind}")])
    return Lesson(concept.name, *diffusion.posterior(to_tensor(photos(concept))), text)


def _begin(bench: Bench, concept: Concept, settings: Ours) -> tuple[list[Lesson], ResidualBank]:
    lessons, unet = [lesson(bench, concept)], bench.diffusion.unet
    targets = find_targets(unet, settings.rank_ratio, settings.rank, settings.target)
    return lessons, new_bank(targets, lessons, settings).to(unet.device)


def _synchronized() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def trace(bench: Bench, concept: Concept) -> dict:
    """The long training: ``loss`` of every step; ``fixed`` and ``other``: the rule's losses before the first step and at every check
    until the last, at its fixed draws and at other draws each time (the rule, broken); ``seconds`` of the settings' steps, without
    these looks. The states are kept beside it."""
    path = bench.folder / f"{concept.name}.json"
    if path.exists():
        return json.loads(path.read_text())
    settings = bench.settings.model_copy(update={"steps": LONGEST, "stop": "steps"})
    lessons, bank = _begin(bench, concept, settings)
    diffusion, states = bench.diffusion, {}
    found: dict[str, list[float]] = {"fixed": [], "other": []}

    clock = {"looked": 0.0, "begun": _synchronized()}

    def look(finished: int) -> None:
        now = _synchronized()
        if finished == bench.settings.steps:
            found["seconds"] = now - clock["begun"] - clock["looked"]
        if finished % EVERY == 0:
            states.update({f"{finished}/{k}": v.detach().cpu().clone() for k, v in bank.state_dict().items()})
        if finished % settings.settle_every == 0:
            for name, seed in (("fixed", settings.seed), ("other", 1 + finished)):
                drawn = settings.model_copy(update={"seed": seed})
                rule = settling(diffusion.unet, diffusion.scheduler, lessons, bank, drawn)
                found[name].append(rule.measure(0))
        clock["looked"] += _synchronized() - now

    look(0)
    log = train(diffusion.unet, diffusion.scheduler, lessons, bank, settings, on_step=lambda step, loss: look(step + 1))
    found["loss"] = [row["loss"][0] for row in log.rows]
    write_tensors(path.with_suffix(".safetensors"), states, {})
    write_atomic(path, json.dumps(found).encode())
    return found


def ruled(bench: Bench, concept: Concept) -> dict:
    """One training by the rule: ``steps`` done, its ``seconds`` with its checks, and how far its factors are from the long training's after
    as many (the largest difference; None where that state was not kept)."""
    path = bench.folder / f"{concept.name}-settled.json"
    if path.exists():
        return json.loads(path.read_text())
    lessons, bank = _begin(bench, concept, bench.settings)
    diffusion, started = bench.diffusion, _synchronized()
    steps = len(train(diffusion.unet, diffusion.scheduler, lessons, bank, bench.settings).rows)
    seconds = _synchronized() - started
    kept = state(bench, concept, steps) if steps % EVERY == 0 else None
    apart = kept and max(float((kept[k] - v.cpu()).abs().max()) for k, v in bank.state_dict().items())
    found = {"steps": steps, "seconds": seconds, "apart": apart}
    write_atomic(path, json.dumps(found).encode())
    return found


def state(bench: Bench, concept: Concept, steps: int) -> dict[str, torch.Tensor]:
    """The factors after so many steps, by their names in the bank."""
    tensors, _ = read_tensors(bench.folder / f"{concept.name}.safetensors")
    return {key.split("/")[1]: value for key, value in tensors.items() if key.startswith(f"{steps}/")}


def _items(concept: Concept, token: str, count: int) -> list[tuple[Item, str]]:
    """Pictures to draw, each with its prompt's template."""
    kind = concept.look.kind
    chosen = spread_prompts(tuple(concept_prompts(kind, concept.backgrounds)), count)
    return [
        (Item(name=f"{n:02d}_{i:03d}", prompt=fill(text, f"{token} {kind}"), phrase=f"{token} {kind}",
              plain=fill(text, kind), image=i), text)
        for n, _, text in chosen
        for i in range(SEEDS)
    ]  # fmt: skip


def scores(bench: Bench, concept: Concept, steps: int, count: int) -> pd.DataFrame:
    """One row a picture, of ``count`` prompts, each drawn twice, by what was learned in ``steps``: :data:`COLUMNS` and the picture's name.
    What was drawn for fewer prompts is not drawn again."""
    path = bench.folder / f"{concept.name}-{steps}.csv"
    known = pd.read_csv(path, dtype={"name": str}) if path.exists() else pd.DataFrame({"name": []})
    wanted = _items(concept, bench.base.token, count)
    todo = [pair for pair in wanted if pair[0].name not in set(known["name"])]
    if todo:
        known = pd.concat([known, _drawn(bench, concept, steps, todo)], ignore_index=True)
        write_atomic(path, known.to_csv(index=False).encode())
    return known[known["name"].isin({item.name for item, _ in wanted})].sort_values("name")


def _drawn(bench: Bench, concept: Concept, steps: int, wanted: list[tuple[Item, str]]) -> pd.DataFrame:
    diffusion, pictures = bench.diffusion, []
    bank = _begin(bench, concept, bench.settings)[1]
    bank.load_state_dict(state(bench, concept, steps))
    for start in range(0, len(wanted), bench.batch):
        some = [item for item, _ in wanted[start : start + bench.batch]]
        pictures += to_images(draw(diffusion, some, DRAWN, bank, bench.base.resolution)[0])
    return _scored(bench, concept, pictures, wanted)


def _scored(
    bench: Bench, concept: Concept, pictures: list[Image.Image], wanted: list[tuple[Item, str]]
) -> pd.DataFrame:
    """As persres/metrics/score.py does."""
    clip, dino = load_clip(bench.encoders.clip, bench.device), load_dino(bench.encoders.dino, bench.device)
    judge = partial(judge_images, load_judge(Path(located(bench.judge))))
    references, features = photos(concept), clip.images(pictures)
    own, theirs = (np.stack([np.asarray(image) for image in images]) for images in (pictures, references))
    said, truth = judge(own), judge(theirs)
    alone, whole = dino.images(cut_out(own, said.masks)), dino.images(cut_out(theirs, truth.masks))
    rows = pd.DataFrame({"name": [item.name for item, _ in wanted]})
    rows["dino"] = alignment(dino.images(pictures), dino.images(references)).double().numpy()
    rows["clip_image"] = alignment(features, clip.images(references)).double().numpy()
    rows["dino_object"] = object_alignment(alone, whole, said.masks)
    rows["clip_text"] = clip_text_score(features, clip.texts([i.plain for i, _ in wanted])).double().numpy()
    rows["followed"] = followed(said, [text for _, text in wanted])
    return rows


def means(bench: Bench, concepts: Iterable[Concept], steps: Iterable[int], count: int) -> pd.DataFrame:
    """Each concept's mean scores after each number of steps, one row a pair."""
    rows = [
        {"concept": concept.name, "steps": at, **scores(bench, concept, at, count)[list(COLUMNS)].mean()}
        for concept in concepts
        for at in steps
    ]
    return pd.DataFrame(rows)
