"""WordNet's nouns read at their own length beside padded to CLIP's full context (persres/metrics/short_texts.py).

Time does not depend on what the weights know, so a tower of the real size with random ones does, and no hub is needed.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from persres.config.schema import Clip
from persres.datasets.wordnet import load_nouns
from persres.metrics.clip_scores import ClipEncoder
from persres.metrics.short_texts import lengths
from persres.prompts import fill

REAL = Clip(model="ViT-B-32", pretrained=None)  # the size of the reference evaluation's
BATCH = 512  # as persres/metrics/nouns.py


def noun_times(
    sample: int = 1500,
    rounds: int = 3,
    clip: Clip = REAL,
    template: str = "{}",
    device: str = "cpu",
    batch: int = BATCH,
) -> dict:
    """Seconds to read ``sample`` random nouns padded and at their own length, medians over ``rounds`` that alternate.

    Sorted by length and in batches as persres/metrics/nouns.py has them. ``expected`` is the ratio of the positions that are read;
    ``expected_of_all`` that of a list so long that no batch mixes lengths; ``difference`` is the largest between features.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ClipEncoder(clip, device)
    words = random.Random(0).sample(load_nouns(), sample)
    tokens = encoder.tokenize([fill(template, word) for word in words])
    own = lengths(encoder.model, tokens)
    tokens, own = tokens[own.argsort(stable=True)], own.sort().values
    ways = {"padded": lambda: _padded(encoder, tokens, batch), "short": lambda: encoder.tokens(tokens, batch)}
    seconds, features = _alternated(ways, rounds)
    read = sum(len(part) * int(part.max()) for part in own.split(batch))
    padded, short = (statistics.median(seconds[way]) for way in ways)
    return {
        "padded_s": padded,
        "short_s": short,
        "ratio": padded / short,
        "texts": sample,
        "model": f"{clip.model}, random weights" if clip.pretrained is None else f"{clip.model} {clip.pretrained}",
        "template": template,
        "device": device,
        "threads": torch.get_num_threads(),
        "rounds": [{way: seconds[way][i] for way in ways} for i in range(rounds)],
        "expected": tokens.numel() / read,
        "expected_of_all": tokens.numel() / int(own.sum()),
        "difference": float((features["padded"] - features["short"]).abs().max()),
    }


@torch.no_grad()
def _padded(encoder: ClipEncoder, tokens: torch.Tensor, batch: int) -> torch.Tensor:
    """[n, d] on the CPU, unit rows: every text over the whole context, as open_clip reads it."""
    parts = [encoder.model.encode_text(rows.to(encoder.device)) for rows in tokens.split(batch)]
    return torch.cat([F.normalize(part, dim=1).cpu() for part in parts])


def _alternated(
    ways: dict[str, Callable[[], torch.Tensor]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, torch.Tensor]]:
    """Seconds of each way by round, one after the other in every round, and what each gave last."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    given = {}
    for _ in range(rounds):
        for way, read in ways.items():
            started = time.perf_counter()
            given[way] = read()
            seconds[way].append(time.perf_counter() - started)
    return seconds, given
