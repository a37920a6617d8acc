"""CLIP's text features of all candidate nouns, computed once and kept in the work folder.

Keyed by the model, the template and the words. Words are read in the order of their length (persres/metrics/short_texts.py),
in chunks that survive a kill.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError

from persres.config.schema import Clip
from persres.datasets.wordnet import load_candidates
from persres.logging import progress
from persres.metrics import short_texts
from persres.metrics.clip_scores import ClipEncoder, load_clip
from persres.models.loading import model_identity
from persres.prompts import fill
from persres.units.checkpoints import read_tensors, write_tensors
from persres.units.code_digest import code_digest
from persres.units.pool import run_units
from persres.units.specs import NounsSpec
from persres.units.unit import Unit, finish

log = logging.getLogger(__name__)
CHUNK = 4096  # words
FILE = "features.safetensors"


def noun_unit(clip: Clip, template: str, candidates: str) -> Unit[NounsSpec]:
    """The unit of one word list by one model."""
    words = hashlib.sha256("\n".join(load_candidates(candidates)).encode()).hexdigest()
    spec = NounsSpec(
        clip=clip,
        model=model_identity(clip.model),
        template=template,
        candidates=candidates,
        words=words,
        code=code_digest("macro_class"),
    )
    return Unit("nouns", Path(candidates).name, spec)


def encode_nouns(unit: Unit[NounsSpec], work: Path, device: str, batch: int = 512) -> None:
    """Features of all words, [n, d], unit rows, in the list's order; goes on with the chunk it stopped at."""
    spec, folder = unit.spec, unit.folder(work)
    encoder = load_clip(spec.clip, device)
    words = load_candidates(spec.candidates)
    tokens = torch.cat(
        [encoder.tokenize([fill(spec.template, w) for w in words[i : i + CHUNK]]) for i in range(0, len(words), CHUNK)]
    )
    if not short_texts.can_shorten(encoder.model):
        log.info("nouns: %s is not causal up to an end token; every word is padded to full length", spec.clip.model)
    order = short_texts.lengths(encoder.model, tokens).argsort(stable=True)
    parts = []
    with progress("nouns", len(words), "word") as advance:
        for number, rows in enumerate(order.split(CHUNK)):
            parts.append(_part(folder / "parts" / f"{number:04d}.safetensors", encoder, tokens[rows], batch))
            advance(len(rows))
    write_tensors(folder / FILE, {"features": torch.cat(parts)[order.argsort()]}, {})
    finish(unit, work, [folder / FILE])
    shutil.rmtree(folder / "parts")


def _part(path: Path, encoder: ClipEncoder, tokens: torch.Tensor, batch: int) -> torch.Tensor:
    if path.exists():
        try:
            return read_tensors(path)[0]["features"]
        except SafetensorError:
            log.warning("%s is broken; its words are read again", path)
    features = encoder.tokens(tokens, batch)
    write_tensors(path, {"features": features}, {})
    return features


def noun_features(
    clip: Clip, template: str, candidates: str, work: Path, device: str, batch: int = 512
) -> torch.Tensor:
    """[n, d] on the CPU, unit rows, from the work folder where they were computed before.

    Raises UnitFailures where they can't be.
    """
    unit = noun_unit(clip, template, candidates)
    run_units([unit], work, partial(encode_nouns, batch=batch), 1, device)
    return read_tensors(unit.folder(work) / FILE)[0]["features"]


def nearest_nouns(encoder: ClipEncoder, photos: list, nouns: list[str], features: torch.Tensor) -> dict:
    """The nouns nearest to the mean image embedding (appendix B). ``features`` [n nouns, d], unit rows."""
    mean = encoder.images(photos).mean(0)
    cosine = features @ (mean / mean.norm())
    top = cosine.topk(min(5, len(nouns)))
    best = [[nouns[i], round(float(c), 4)] for c, i in zip(top.values, top.indices.tolist(), strict=True)]
    return {"nearest": best[0][0], "top": best}
