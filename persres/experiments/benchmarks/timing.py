"""Seconds of alternating runs, their ratios, and FLOP counts.

A machine's speed changes from minute to minute, so runs alternate, and ratios compare runs that follow each other.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

Contestant = Callable[[], object]


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Contestant, device: torch.device) -> float:
    """Return the seconds of one run."""
    wait_for(device)
    started = time.perf_counter()
    run()
    wait_for(device)
    return time.perf_counter() - started


def alternated(contestants: dict[str, Contestant], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds of each contestant in each round, after a warm-up. Every other round runs in reverse order."""
    names = list(contestants)
    for run in contestants.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            taken[name].append(seconds(contestants[name], device))
    return taken


def ratio(ours: list[float], baseline: list[float]) -> dict[str, float]:
    """Return the median over the rounds of each round's ``ratio``, with the minimum ``low`` and the maximum ``high``.

    Not the ratio of the medians: the machine's speed varies more between rounds than the contestants differ, and what slows one run of
    a round slows the next.
    """
    ratios = [a / b for a, b in zip(ours, baseline, strict=True)]
    values = {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return {name: round(value, 3) for name, value in values.items()}


def formatted(taken: dict[str, list[float]], against: dict[str, tuple[str, ...]], per: float) -> dict:
    """Return ``rounds_s`` (seconds of each contestant over ``per``), ``median_s``, and ``ratios`` to the named others."""
    rounds = {name: [round(s / per, 5) for s in seconds_] for name, seconds_ in taken.items()}
    return {
        "median_s": {name: round(statistics.median(values), 5) for name, values in rounds.items()},
        "ratios": {n: {o: ratio(taken[n], taken[o]) for o in others} for n, others in against.items()},
        "rounds_s": rounds,
    }


def flops(run: Contestant) -> int:
    """Return the floating-point operations of a run: torch's count of matrix products, convolutions and attention, backward included."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int | None = None, rounds: int = 5) -> float:
    """Return the operations per second of a large square matrix product: the best of some rounds, so that the bound is a lower bound."""
    size = size or (8192 if device.type == "cuda" else 1024)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(rounds))
