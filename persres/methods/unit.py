"""Train one rival on one concept: the unit's work."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import TypeAdapter
from tqdm import tqdm

from persres.images import load_photo, square
from persres.loading import pick_device
from persres.methods.lessons import Pictures
from persres.methods.loop import learn
from persres.methods.prior import read_prior
from persres.methods.registry import plan_for
from persres.methods.settings import Settings
from persres.methods.state_file import save_state
from persres.models import load_diffusion
from persres.params import Base
from persres.provenance import library_versions, measured
from persres.units import Unit, finish


def rival_unit(unit: Unit, work: Path, device: str) -> None:
    """Learn, save ``residual.safetensors`` and ``log.jsonl``; goes on from its checkpoint after a kill."""
    spec, folder = unit.settings, unit.folder(work)
    base, settings = Base(**spec["base"]), TypeAdapter(Settings).validate_python(spec["settings"])
    diffusion = load_diffusion(base.model_copy(update={"dtype": "float32"}), device)  # what its authors train in
    token_id = diffusion.tokenizer.convert_tokens_to_ids(base.token)
    with measured(pick_device(device)) as facts:
        photos = Pictures.of(diffusion, [square(load_photo(Path(p)), base.resolution) for p in spec["photos"]])
        images = read_prior(Path(spec["prior"]["path"]), base.resolution) if spec["prior"] else []
        prior = Pictures.of(diffusion, images[: settings.prior_images]) if images else None
        plan = plan_for(diffusion, settings, photos, prior, base, spec["macro_class"])
        checkpoint = folder / "checkpoint.safetensors"
        with tqdm(total=settings.steps, desc=unit.name, mininterval=2, leave=False, disable=None) as bar:

            def on_step(step: int, loss: float) -> None:
                bar.update()
                facts["steps"] = facts.get("steps", 0) + 1  # of this run: a resumed one's seconds are not the whole

            state, rows = learn(diffusion, plan, settings, spec["concept"], token_id, checkpoint, on_step)
    facts["parameters"] = sum(value.numel() for value in state.values())
    result, history = folder / "residual.safetensors", folder / "log.jsonl"
    save_state(
        result,
        state,
        {"spec": spec, "spec_hash": unit.hash, "parameters": facts["parameters"], "versions": library_versions()},
    )
    history.write_text("".join(json.dumps(row) + "\n" for row in rows))
    finish(unit, work, [result, history], facts)
    checkpoint.unlink(missing_ok=True)
