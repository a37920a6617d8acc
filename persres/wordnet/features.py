"""CLIP's text features of all candidate nouns, computed once and kept in the work folder.

Keyed by the model, the template and the words. Words are read in the order of their length (persres/metrics/short_texts.py),
in chunks that survive a kill.
"""

from __future__ import annotations

import hashlib
import shutil
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from persres.checkpoint import read_tensors, write_tensors
from persres.loading import model_identity
from persres.metrics import clip_scores, short_texts
from persres.metrics.clip_scores import ClipEncoder, load_clip
from persres.params import Clip
from persres.prompt_text import fill
from persres.units import Unit, digest_file, finish, run_units
from persres.wordnet import load_candidates

CHUNK = 4096  # words
FILE = "features.safetensors"


def noun_unit(clip: Clip, template: str, candidates: str) -> Unit:
    """The unit of one word list by one model."""
    words = "\n".join(load_candidates(candidates))
    code = [digest_file(Path(file))[:16] for file in (__file__, clip_scores.__file__, short_texts.__file__)]
    spec = {"clip": clip.model_dump(), "model": model_identity(clip.model), "template": template, "candidates": candidates,
            "words": hashlib.sha256(words.encode()).hexdigest(), "code": code}  # fmt: skip
    return Unit.of("nouns", Path(candidates).name, spec)


def encode_nouns(unit: Unit, work: Path, device: str, batch: int = 512) -> None:
    """Features of all words, [n, d], unit rows, in the list's order; goes on with the chunk it stopped at."""
    spec, folder = unit.settings, unit.folder(work)
    encoder = load_clip(Clip(**spec["clip"]), device)
    words = load_candidates(spec["candidates"])
    tokens = torch.cat([encoder.tokenize([fill(spec["template"], w) for w in words[i : i + CHUNK]])
                        for i in range(0, len(words), CHUNK)])  # fmt: skip
    if not short_texts.can_shorten(encoder.model):
        print(f"nouns: {spec['clip']['model']} is not causal up to an end token; every word is padded to full length")
    order = short_texts.lengths(encoder.model, tokens).argsort(stable=True)
    parts = []
    with tqdm(total=len(words), desc="nouns", unit="word", mininterval=2, leave=False, disable=None) as bar:
        for number, rows in enumerate(order.split(CHUNK)):
            parts.append(_part(folder / "parts" / f"{number:04d}.safetensors", encoder, tokens[rows], batch))
            bar.update(len(rows))
    write_tensors(folder / FILE, {"features": torch.cat(parts)[order.argsort()]}, {})
    finish(unit, work, [folder / FILE])
    shutil.rmtree(folder / "parts")


def _part(path: Path, encoder: ClipEncoder, tokens: torch.Tensor, batch: int) -> torch.Tensor:
    if path.exists():
        try:
            return read_tensors(path)[0]["features"]
        except SafetensorError:
            print(f"{path} is broken; its words are read again", flush=True)
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
