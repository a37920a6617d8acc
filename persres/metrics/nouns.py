"""CLIP's text features of all candidate nouns, computed once per model, template and list and stored in the work folder.

Nouns are encoded in the order of their length (persres/metrics/short_texts.py), in chunks, so that a killed run resumes.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
CHUNK = 4096  # nouns
FILE = "features.safetensors"


class NounList(NamedTuple):
    """``candidates`` (``wordnet`` or a file) put into ``template`` and encoded by ``clip``."""

    clip: Clip
    template: str
    candidates: str

    def unit(self) -> Unit[NounsSpec]:
        """The unit that encodes the list."""
        words = hashlib.sha256("\n".join(load_candidates(self.candidates)).encode()).hexdigest()
        model, code = model_identity(self.clip.model), code_digest(__name__)
        spec = NounsSpec(**self._asdict(), model=model, words=words, code=code)
        return Unit("nouns", Path(self.candidates).name, spec)


def encode_nouns(unit: Unit[NounsSpec], work: Path, device: str, batch: int = 512) -> None:
    """Encode all nouns, [n, d] with unit rows in the list's order; resumes after the last finished chunk."""
    spec, folder = unit.spec, unit.folder(work)
    encoder = load_clip(spec.clip, device)
    words = load_candidates(spec.candidates)
    tokens = torch.cat(
        [encoder.tokenize([fill(spec.template, w) for w in words[i : i + CHUNK]]) for i in range(0, len(words), CHUNK)]
    )
    if not short_texts.can_shorten(encoder.model):
        log.info("nouns: %s is not causal with an end token; every noun is padded to full length", spec.clip.model)
    order = short_texts.lengths(encoder.model, tokens).argsort(stable=True)
    parts = []
    with progress("nouns", len(words), "noun") as advance:
        for number, rows in enumerate(order.split(CHUNK)):
            parts.append(_chunk(folder / "parts" / f"{number:04d}.safetensors", encoder, tokens[rows], batch))
            advance(len(rows))
    write_tensors(folder / FILE, {"features": torch.cat(parts)[order.argsort()]}, {})
    finish(unit, work, [folder / FILE])
    shutil.rmtree(folder / "parts")


def _chunk(path: Path, encoder: ClipEncoder, tokens: torch.Tensor, batch: int) -> torch.Tensor:
    if path.exists():
        try:
            return read_tensors(path)[0]["features"]
        except SafetensorError:
            log.warning("%s is damaged; its nouns are encoded again", path)
    features = encoder.tokens(tokens, batch)
    write_tensors(path, {"features": features}, {})
    return features


def noun_features(nouns: NounList, work: Path, device: str, batch: int = 512) -> torch.Tensor:
    """Features [n, d] on the CPU with unit rows, computed or read from the work folder. Raises UnitFailures."""
    unit = nouns.unit()
    run_units([unit], work, partial(encode_nouns, batch=batch), 1, device)
    return read_tensors(unit.folder(work) / FILE)[0]["features"]


def nearest_nouns(encoder: ClipEncoder, photos: list, nouns: list[str], features: torch.Tensor) -> dict:
    """The nouns nearest to the mean image embedding (appendix B). ``features`` [n nouns, d] with unit rows."""
    mean = encoder.images(photos).mean(0)
    cosine = features @ (mean / mean.norm())
    top = cosine.topk(min(5, len(nouns)))
    best = [[nouns[i], round(float(c), 4)] for c, i in zip(top.values, top.indices.tolist(), strict=True)]
    return {"nearest": best[0][0], "top": best}
