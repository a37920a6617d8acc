"""A model card and a preview for every trained file: ``<variant>/<concept>.md`` and ``.png``.

The card is a Hugging Face hub README: YAML front matter (the hub's keys, then ours below ``persres``) and a page. Its facts come
from the file's header, the scores and the concept.
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
from persres.report import table_text
from persres.residuals.header import header_facts, read_header
from persres.units.context import Context
from persres.units.outputs import learned_path, read_index, scores_path
from persres.untrusted.names import identifier
from persres.untrusted.text import code_span, markdown, printable

MIN_CELL = 160  # pixels; smaller images are enlarged with hard edges
NUM_PREVIEWS = 4
MAX_TEXT = 2000  # characters of one value in the front matter
Scores = dict[str, dict[str, float | int]]  # by config: number of images, mean scores


def write_cards(context: Context, out: Path) -> None:
    """Write one card and one preview for every variant and concept that were trained and sampled."""
    rows = pd.read_parquet(scores_path(context.data))
    configs = {name: facts.sampling for name, facts in read_index(context).configs.items()}
    base = [name for name, sampling in configs.items() if sampling.is_base]
    for variant in context.profile.train.variants:
        names = [n for n, sampling in configs.items() if sampling.variant == variant and not sampling.wrong_concept]
        for concept, _ in read_concepts(context.data / "concepts"):
            learned, scores = (
                learned_path(context.data, variant, concept.name),
                _scores(rows, concept.name, [*base, *names]),
            )
            sampled = [name for name in names if name in scores]
            if not learned.exists() or not sampled:
                continue
            (out / variant).mkdir(exist_ok=True)
            _preview(context, sampled[0], concept.name).save(out / variant / f"{concept.name}.png")
            card = card_text(read_header(learned), concept, scores, sampled[0])
            (out / variant / f"{concept.name}.md").write_text(card, encoding="utf-8")


def _scores(rows: pd.DataFrame, concept: str, configs: list[str]) -> Scores:
    scores = {}
    for config in configs:
        part = rows[(rows["concept"] == concept) & (rows["config"] == config)]
        if len(part):
            means = {column: round(float(part[column].mean()), 5) for column in score_columns(part)}
            scores[config] = {"images": len(part)} | means
    return scores


def card_text(info: dict[str, Any], concept: Concept, scores: Scores, config: str) -> str:
    """The card. ``info`` is the trained file's ``persres`` header; ``config`` is the one that sampled the preview."""
    facts = header_facts(info, concept.licence)
    return f"{front_matter(facts, scores)}\n{_page(facts, scores, config)}"


def front_matter(facts: dict[str, Any], scores: Scores | None = None) -> str:
    """The YAML front matter of a hub README: the hub's keys, then :func:`header_facts` and the scores below ``persres``."""
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
    return f"---\n{yaml.safe_dump(_printable(front), sort_keys=False, allow_unicode=True, width=1000)}---\n"


def _printable(value: Any) -> Any:
    """The value with every text in it printable, keys too."""
    if isinstance(value, dict):
        return {_printable(key): _printable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(inner) for inner in value]
    return printable(value, MAX_TEXT) if isinstance(value, str) else value


def _is_lora(facts: dict[str, Any]) -> bool:
    """Whether the file holds residuals, which other tools load as a LoRA; only persres loads a rival's file."""
    return facts["format"].startswith("persres-residual")


def _page(facts: dict[str, Any], scores: Scores, config: str) -> str:
    name, columns = (
        identifier(facts["concept"], "concept"),
        list(dict.fromkeys(key for row in scores.values() for key in row)),
    )
    table = [[markdown(title), *(_cell(row.get(column)) for column in columns)] for title, row in scores.items()]
    weights = f", weights {markdown(facts['base_model_weights'])}" if facts["base_model_weights"] else ""
    macro_class = markdown(facts["macro_class"])
    lora = f"\npersres export {name}.safetensors --to diffusers     # or kohya, for ComfyUI" if _is_lora(facts) else ""
    return f"""# {name}: a {macro_class}, trained by method {code_span(facts["settings"]["method"])}

![images of {name}, sampled by config {markdown(config)}]({name}.png)

{facts["parameters"]:,} parameters trained on {facts["photos"]} photos, for {code_span(facts["base_model"])}{weights}, at {facts["resolution"]} pixels.
In prompts it is {code_span(f"{facts['v_star']} {facts['macro_class']}")}; V* has the embedding of {code_span(facts["rare_token"])}.

```sh
persres generate {name}.safetensors --prompt "a photo of a {{}} on the beach"{lora}
```

## Scores

Means over this concept's images.

{table_text.markdown(["config", *map(markdown, columns)], table)}
## Provenance

Photos' licence: {markdown(facts["photos_licence"])}. Training {markdown(facts["spec_hash"])} (settings above), photos {facts["dataset_hash"][:16]}, code
{markdown(facts["code"])}, persres {markdown(facts["versions"].get("persres", "?"))}.
"""


def _cell(value: float | int | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _preview(context: Context, config: str, concept: str) -> Image.Image:
    """A row of sampled images of different prompts. It has no photo, since a photo's licence may forbid publication."""
    archive = unzip_images(context.data / "samples" / config / f"{concept}.zip")
    names = [name for name in sorted(archive) if "/" not in name]
    images = [archive[name] for name in names[:: max(1, len(names) // NUM_PREVIEWS)][:NUM_PREVIEWS]]
    size = images[0].width * max(1, -(-MIN_CELL // images[0].width))
    row = Image.new("RGB", (size * len(images), size), "white")
    for i, image in enumerate(images):
        row.paste(image.resize((size, size), Image.NEAREST), (i * size, 0))
    return row
