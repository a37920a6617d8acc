"""What the sample stage publishes, for the stages that only read it."""

from __future__ import annotations

import json

from persres.errors import PersresError
from persres.prompt_text import fill
from persres.stages.context import Context

INDEX = "index.json"


def items_of(spec: dict) -> list[dict]:
    """What is drawn, in order: one entry a picture, with its name and its texts.

    ``phrase`` stands for the concept: the plain macro class for the base model, V* before it for a residual.
    ``plain`` is the prompt without V*: it seeds the noise and is what the CLIP text score reads.
    """
    return [
        {"name": f"{number:02d}_{image:03d}", "prompt": fill(text, spec["phrase"]), "phrase": spec["phrase"], "image": image,
         "plain": fill(text, spec["macro_class"])}
        for number, _, text in spec["prompts"]
        for image in range(spec["drawing"]["images_per_prompt"])
    ]  # fmt: skip


def read_index(context: Context) -> dict:
    """What was sampled: ``methods`` (parameters, settings) and ``packs`` (name, spec hash, spec), in order."""
    path = context.data / "samples" / INDEX
    if not path.exists():
        raise PersresError(f"no {path}; run the sample stage first")
    return json.loads(path.read_text())
