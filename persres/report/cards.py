"""A model card and a preview picture for everything learned: ``<variant>/<concept>.md`` and ``.png``.

The card is a hub README: YAML front matter that a program reads (the hub's own keys, then ours below ``persres``), and a page for people.
All of it comes from the file's own header, the scores and the concept; nothing is asked of the method that learned it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from PIL import Image

from persres.datasets.layout import Concept, read_concepts
from persres.images import unzip_images
from persres.metrics.scores import score_columns
from persres.report.table_text import markdown
from persres.residuals.header import header_facts, read_header
from persres.units.context import Context
from persres.units.outputs import learned_path, read_index, scores_path

CELL_AT_LEAST = 160  # pixels: tiny pictures are enlarged with hard edges, as in the sheets
PICTURES = 4  # in a preview


def write_cards(context: Context, out: Path) -> None:
    """One card and one preview for every variant and concept that were learned and are drawn with."""
    rows = pd.read_parquet(scores_path(context.data))
    drawings = {name: facts.sampling for name, facts in read_index(context).configs.items()}
    for variant in context.profile.train.variants:
        methods = [m for m, sampling in drawings.items() if sampling.variant == variant and not sampling.wrong_concept]
        plain = [m for m, sampling in drawings.items() if sampling.variant is None]
        for concept, _ in read_concepts(context.data / "concepts"):
            learned, own = learned_path(context.data, variant, concept.name), rows[rows["concept"] == concept.name]
            if not learned.exists() or own[own["method"].isin(methods)].empty:
                continue
            (out / variant).mkdir(exist_ok=True)
            scores = _scores(own, [*plain, *methods])
            drawn = next(m for m in methods if m in scores)
            _preview(context, drawn, concept.name).save(out / variant / f"{concept.name}.png")
            card = card_text(read_header(learned), concept, scores, drawn)
            (out / variant / f"{concept.name}.md").write_text(card)


def _scores(rows: pd.DataFrame, methods: list[str]) -> dict[str, dict[str, float | int]]:
    """Means over a concept's pictures, by method, and how many pictures."""
    found = {}
    for method in methods:
        part = rows[rows["method"] == method]
        if len(part):
            means = {column: round(float(part[column].mean()), 5) for column in score_columns(part)}
            found[method] = {"pictures": len(part)} | means
    return found


def card_text(info: dict[str, Any], concept: Concept, scores: dict[str, dict[str, float | int]], drawn: str) -> str:
    """The card. ``info`` is the learned file's ``persres`` header; ``drawn`` the method that drew the preview."""
    facts = card_facts(info, concept)
    return f"{front_matter(facts, scores)}\n{_page(facts, scores, drawn)}"


def front_matter(facts: dict[str, Any], scores: dict[str, dict[str, float | int]] | None = None) -> str:
    """The head of a hub README: the hub's own keys, then ours below ``persres``; without ``scores`` where nothing was scored."""
    front = {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", "personalization", *(["lora"] if _is_lora(facts) else [])],
        "base_model": facts["base_model"],
        "license": "other",
        "license_name": facts["photos_licence"],
        "instance_prompt": f"a photo of a {facts['v_star']} {facts['macro_class']}",
        "persres": facts | ({} if scores is None else {"scores": scores}),
    }
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1000)}---\n"


def card_facts(info: dict[str, Any], concept: Concept) -> dict[str, Any]:
    """What a card says of a file by name, which is the same for a published one and for one of a user's own photos."""
    return header_facts(info, concept.licence)


def _is_lora(facts: dict[str, Any]) -> bool:
    """Whether the file holds residuals, which other tools load as a LoRA; a rival's file is for persres alone."""
    return facts["format"].startswith("persres-residual")


def _page(facts: dict[str, Any], scores: dict[str, dict[str, float | int]], drawn: str) -> str:
    name, columns = facts["concept"], list(dict.fromkeys(key for row in scores.values() for key in row))
    table = [[method, *(_cell(row.get(column)) for column in columns)] for method, row in scores.items()]
    weights = f", weights {facts['base_model_weights']}" if facts["base_model_weights"] else ""
    lora = f"\npersres export {name}.safetensors --to diffusers     # or kohya, for ComfyUI" if _is_lora(facts) else ""
    return f"""# {name}: a {facts["macro_class"]}, learned by method `{facts["settings"]["method"]}`

![pictures of {name} drawn by method {drawn}]({name}.png)

{facts["parameters"]:,} numbers learned from {facts["photos"]} photos, for `{facts["base_model"]}`{weights}, at {facts["resolution"]} pixels.
In prompts it is `{facts["v_star"]} {facts["macro_class"]}`; V* holds the embedding of `{facts["rare_token"]}`.

```sh
persres generate {name}.safetensors --prompt "a photo of a {{}} on the beach"{lora}
```

## Scores

Means over this concept's pictures.

{markdown(["method", *columns], table)}
## Where it comes from

Photos' licence: {facts["photos_licence"]}. Training {facts["spec_hash"]} (settings above), photos {facts["dataset_hash"][:16]}, code
{facts["code"]}, persres {facts["versions"].get("persres", "?")}.
"""


def _cell(value: float | int | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _preview(context: Context, method: str, concept: str) -> Image.Image:
    """A row of pictures, the first of the first prompts. No photo among them: whose they are, and whether they may be shown, is not ours
    to say."""
    archive = unzip_images(context.data / "samples" / method / f"{concept}.zip")
    names = [name for name in sorted(archive) if "/" not in name]
    step = max(1, len(names) // PICTURES)
    chosen = [archive[name] for name in names[::step][:PICTURES]]
    size = chosen[0].width * max(1, -(-CELL_AT_LEAST // chosen[0].width))
    row = Image.new("RGB", (size * len(chosen), size), "white")
    for i, picture in enumerate(chosen):
        row.paste(picture.resize((size, size), Image.NEAREST), (i * size, 0))
    return row
