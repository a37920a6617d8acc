"""sample: pictures of every concept by every method -> ``data/samples/<method>/<concept>.zip``.

A pack holds ``<prompt>_<image>.png`` and, for LAG, ``masks/<prompt>_<image>.png``: the masks averaged over
blocks and steps. Noise belongs to (seed, prompt, image), so the same name is the same noise in every pack.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from persres.datasets.layout import read_concepts, reference_photos, spread_concepts, spread_prompts
from persres.errors import PersresError
from persres.images import load_photo, png_bytes, square, to_images, to_tensor, unzip_bytes, zip_bytes
from persres.lag import MaskRule, localised, mean_mask
from persres.lag_controls import standin
from persres.loading import model_identity, pick_device
from persres.methods import vico
from persres.methods.registry import phrase_for
from persres.methods.state_file import load_state
from persres.methods.weights import replaced
from persres.models import Diffusion, load_diffusion
from persres.params import Base, Drawing
from persres.prompts import concept_positions
from persres.provenance import code_fingerprint, measured
from persres.residual_file import TOKEN, load_bank, load_token
from persres.residuals import ResidualBank, Routing, attached, merged
from persres.samplers import guided, sample_ddim, starting_noise
from persres.seeding import generator
from persres.stages.context import Context
from persres.stages.costs import write_sample_costs
from persres.stages.macro_class import read_macro_classes
from persres.stages.packs import INDEX, items_of
from persres.units import Unit, digest_file, facts, finish, publishing, run_units, stage_lock, write_atomic

PACK = "images.zip"


def sample_units(context: Context) -> list[Unit]:
    """One unit per concept and method; the spec holds all that the pictures depend on, to the bit."""
    base = context.profile.base
    classes = read_macro_classes(context)
    shared = {"base": base.model_dump(), "model": model_identity(base.model), "code": code_fingerprint("sample"),
              "batch": context.profile.runtime.sample_batch}  # fmt: skip
    units = []
    for method in context.profile.sample.methods:
        drawing = context.profile.sample.method(method)
        settings = context.profile.train.variant(drawing.residual).model_dump() if drawing.residual else {}
        named = read_macro_classes(context, drawing.class_source)
        wanted = context.profile.train.variant(drawing.residual).concepts if drawing.residual else None
        for concept, folder in spread_concepts(read_concepts(context.data / "concepts"), wanted):
            spec = shared | {
                "concept": concept.name, "method": method, "drawing": drawing.model_dump(exclude={"prompts"}),
                "prompts": spread_prompts(concept.prompts, drawing.prompts), "macro_class": classes[concept.name],
                "residual": _residual(context, drawing, concept.name, list(classes)),
                "rival": settings.get("method"), "phrase": _phrase(base, settings, drawing, named[concept.name]),
                "reference": _reference(folder) if settings.get("method") == "vico" else None,
            }  # fmt: skip
            units.append(Unit.of("sample", f"{method}/{concept.name}", spec))
    return units


def _reference(folder: Path) -> dict[str, str]:
    photo = reference_photos(folder)[0]
    return {"path": str(photo), "digest": digest_file(photo)}


def _phrase(base: Base, settings: dict, drawing: Drawing, macro_class: str) -> str:
    """What stands for the concept: the plain class for the base model."""
    return macro_class if drawing.residual is None else phrase_for(settings, base, macro_class)


def _residual(context: Context, drawing: Drawing, concept: str, concepts: list[str]) -> dict[str, str] | None:
    if drawing.residual is None:
        return None
    if drawing.other_concept:
        if len(concepts) < 2:
            raise PersresError("sample: other_concept needs at least two concepts; fetch another")
        concept = concepts[(concepts.index(concept) + 1) % len(concepts)]
    path = context.data / "residuals" / drawing.residual / f"{concept}.safetensors"
    if not path.exists():
        raise PersresError(f"no residual at {path}; run the train stage first")
    return {"path": str(path), "digest": digest_file(path)}


def lag_rule(diffusion: Diffusion, items: list[dict], drawing: Drawing) -> MaskRule:
    """How a batch [unconditional; conditional] of these pictures is masked."""

    def draws(pixels: int) -> list[torch.Generator]:
        return [generator("mask", drawing.seed, i["plain"], i["image"], pixels) for i in items + items]

    positions = [concept_positions(diffusion.tokenizer, i["prompt"], i["phrase"]) for i in items]
    tokens, instead = torch.stack(positions).to(diffusion.unet.device), standin(drawing.mask, draws)
    rule = MaskRule.for_guidance(tokens, drawing.uncond_rule, True, instead, drawing.mask_blocks)
    rule.steps = drawing.steps
    return rule


def draw(
    diffusion: Diffusion, items: list[dict], drawing: Drawing, bank: ResidualBank | None, resolution: int,
    beside: Callable[[list[dict]], Any] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Pictures [n, 3, h, w] in about [-1, 1] of one batch, and for LAG the averaged masks [n, size, size].

    ``beside`` gives what draws in the U-Net's place, where a rival needs one.
    """
    device, n = diffusion.unet.device, len(items)
    channels, factor = diffusion.latent_shape
    noise = starting_noise(
        [generator("noise", drawing.seed, i["plain"], i["image"]) for i in items],
        (channels, *[resolution // factor] * 2),
    )
    cond, uncond = diffusion.encode([i["prompt"] for i in items]), diffusion.unconditional()
    unet = diffusion.unet if beside is None else beside(items)
    denoise = guided(unet, cond, uncond, drawing.cfg_scale)
    rule = None
    with ExitStack() as stack:
        if bank is not None and drawing.lag:
            routing = Routing.everywhere(2 * n, device)
            routing.weight[:n] = 0.0 if drawing.uncond_rule == "base" else 1.0
            rule = lag_rule(diffusion, items, drawing)
            stack.enter_context(localised(diffusion.unet, routing, rule))
            stack.enter_context(attached(diffusion.unet, bank, routing))
        elif bank is not None:
            stack.enter_context(merged(diffusion.unet, bank))
        latents = sample_ddim(denoise, noise.to(device), diffusion.scheduler, drawing.steps)
    masks = None if rule is None else mean_mask(rule, slice(n, 2 * n), resolution // factor)
    return diffusion.decode(latents), masks


def reference_of(diffusion: Diffusion, spec: dict, learned: dict) -> Callable[[list[dict]], Any] | None:
    """For ViCo: a batch's U-Net beside the concept's first photo; None for the rivals that need no photo."""
    if spec["rival"] != "vico":
        return None
    base, blocks = Base(**spec["base"]), vico.load_blocks(diffusion, learned)
    photo = square(load_photo(Path(spec["reference"]["path"])), base.resolution)
    latents, _ = diffusion.posterior(to_tensor([photo]))
    noise = torch.randn(latents.shape, generator=generator("reference", spec["concept"])).to(latents.device)

    def beside(items: list[dict]) -> vico.WithReference:
        prompts = [""] * len(items) + [i["prompt"] for i in items]
        sizes = (len(prompts), -1, -1, -1)
        where = vico.positions(diffusion, prompts, base.token)
        return vico.WithReference(diffusion, blocks, latents.expand(sizes), noise.expand(sizes), *where)

    return beside


def sample_unit(unit: Unit, work: Path, device: str, offload: bool = False) -> None:
    """Draw one concept's pictures by one method, batch by batch; whole batches survive a kill."""
    spec, folder = unit.settings, unit.folder(work)
    base, drawing = Base(**spec["base"]), Drawing(**spec["drawing"])
    diffusion = load_diffusion(base, device, offload)
    bank, learned, beside = None, {}, None
    token_id = diffusion.tokenizer.convert_tokens_to_ids(base.token)
    with measured(pick_device(device)) as run, ExitStack() as stack:
        if spec["rival"]:
            learned, _ = load_state(Path(spec["residual"]["path"]))
            beside = reference_of(diffusion, spec, learned)
            own = {name: value for name, value in learned.items() if not name.startswith(vico.PREFIX)}
            stack.enter_context(replaced(diffusion, own, token_id))
        elif spec["residual"] is not None:
            path = Path(spec["residual"]["path"])
            bank, token = load_bank(diffusion.unet, path).scaled(drawing.strength), load_token(path)
            if token is not None:
                learned = {TOKEN: token}
                stack.enter_context(replaced(diffusion, learned, token_id))
        items, size = items_of(spec), spec["batch"]
        for start in tqdm(range(0, len(items), size), desc=unit.name, mininterval=2, leave=False, disable=None):
            batch, part = items[start : start + size], folder / "parts" / f"{start:06d}.zip"
            if not part.exists():  # written whole, by rename, below a folder that the spec's hash names
                pictures, masks = draw(diffusion, batch, drawing, bank, base.resolution, beside)
                write_atomic(part, _pack(batch, pictures, masks))
                run["drawn"] = run.get("drawn", 0) + len(batch)  # in this run
    trained = sum(value.numel() for value in learned.values()) + (0 if bank is None else bank.count())
    run["parameters"] = trained or diffusion.parameter_count()
    run["pictures"] = len(items)
    _join(folder, items)
    finish(unit, work, [folder / PACK], run)
    shutil.rmtree(folder / "parts")


def _pack(items: list[dict], pictures: torch.Tensor, masks: torch.Tensor | None) -> bytes:
    files = {f"{i['name']}.png": png_bytes(p) for i, p in zip(items, to_images(pictures), strict=True)}
    if masks is not None:
        grey = (masks.cpu() * 255).round().byte().numpy()
        files |= {f"masks/{i['name']}.png": png_bytes(Image.fromarray(m)) for i, m in zip(items, grey, strict=True)}
    return zip_bytes(files)


def _join(folder: Path, items: list[dict]) -> None:
    files: dict[str, bytes] = {}
    for part in sorted((folder / "parts").glob("*.zip")):
        files |= unzip_bytes(part)
    missing = [i["name"] for i in items if f"{i['name']}.png" not in files]
    if missing:
        raise PersresError(
            f"{folder}: pictures {missing[:3]} are missing from their parts; delete the folder and sample again"
        )
    write_atomic(folder / PACK, zip_bytes(files))


def sample(context: Context) -> None:
    """Draw what is not drawn yet, then publish. Raises UnitFailures naming the units that failed."""
    runtime = context.profile.runtime
    with stage_lock(context.work, "sample"):
        units = sample_units(context)
        work = partial(sample_unit, offload=runtime.offload)
        run_units(units, context.work, work, runtime.workers, runtime.device)
        with publishing(context.data / "samples") as out:
            for unit in units:
                (out / unit.name).parent.mkdir(exist_ok=True)
                shutil.copyfile(unit.folder(context.work) / PACK, out / f"{unit.name}.zip")
            packs = [{"name": unit.name, "hash": unit.hash, "spec": unit.settings} for unit in units]
            write_sample_costs(context, units)
            index = {"methods": _methods(context, units), "packs": packs}
            (out / INDEX).write_text(json.dumps(index, indent=1))


def _methods(context: Context, units: list[Unit]) -> dict[str, dict]:
    """What the tables say of each method: parameters, and its settings. Times stay in the manifests."""
    methods: dict[str, dict] = {}
    for unit in units:
        spec = unit.settings
        methods[spec["method"]] = {"parameters": facts(unit, context.work)["parameters"], "drawing": spec["drawing"]}
    return methods
