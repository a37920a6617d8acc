"""WordNet's nouns encoded at their token length and padded to CLIP's full context (persres/metrics/short_texts.py).

The time does not depend on the weights, so a text encoder of the real size with random weights suffices.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from persres.config.schema import Clip
from persres.datasets.wordnet import load_nouns
from persres.metrics.clip_scores import ClipEncoder
from persres.metrics.short_texts import lengths
from persres.prompts import fill

REAL = Clip(model="ViT-B-32", pretrained=None)  # as the reference evaluation
BATCH = 512  # as persres/metrics/nouns.py


@dataclass(frozen=True)
class NounSettings:
    """How many random nouns, alternating rounds, and texts per batch; the prompt ``template``."""

    nouns: int = 1500
    rounds: int = 3
    template: str = "{}"
    batch: int = BATCH


def noun_times(settings: NounSettings, clip: Clip = REAL, device: str = "cpu") -> dict:
    """Return the seconds to encode random nouns padded and at their length, medians over alternating rounds.

    ``expected``: the ratio of the positions encoded; ``expected_of_all``: the same without batches of mixed lengths; ``difference``: the
    largest difference of a feature.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ClipEncoder(clip, device)
    words = random.Random(0).sample(load_nouns(), settings.nouns)
    tokens = encoder.tokenize([fill(settings.template, word) for word in words])
    sizes = lengths(encoder.model, tokens)
    tokens, sizes = tokens[sizes.argsort(stable=True)], sizes.sort().values
    runs = {
        "padded": lambda: _padded(encoder, tokens, settings.batch),
        "short": lambda: encoder.tokens(tokens, settings.batch),
    }
    seconds, features = _alternated(runs, settings.rounds)
    encoded = sum(len(part) * int(part.max()) for part in sizes.split(settings.batch))
    padded, short = (statistics.median(seconds[name]) for name in runs)
    return {
        "padded_s": padded,
        "short_s": short,
        "ratio": padded / short,
        "texts": settings.nouns,
        "model": f"{clip.model}, random weights" if clip.pretrained is None else f"{clip.model} {clip.pretrained}",
        "template": settings.template,
        "device": device,
        "threads": torch.get_num_threads(),
        "rounds": [{name: seconds[name][i] for name in runs} for i in range(settings.rounds)],
        "expected": tokens.numel() / encoded,
        "expected_of_all": tokens.numel() / int(sizes.sum()),
        "difference": float((features["padded"] - features["short"]).abs().max()),
    }


@torch.no_grad()
def _padded(encoder: ClipEncoder, tokens: torch.Tensor, batch: int) -> torch.Tensor:
    """Features [n, d] on the CPU, unit rows, with every text padded to the full context, as open_clip does."""
    parts = [encoder.model.encode_text(rows.to(encoder.device)) for rows in tokens.split(batch)]
    return torch.cat([F.normalize(part, dim=1).cpu() for part in parts])


def _alternated(
    runs: dict[str, Callable[[], torch.Tensor]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, torch.Tensor]]:
    """Seconds of each run by round, alternating, and its last result."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results = {}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            results[name] = run()
            seconds[name].append(time.perf_counter() - started)
    return seconds, results
