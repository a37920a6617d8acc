"""Seconds of several ways beside each other, and the floor under them.

A machine's speed changes from minute to minute, so ways run in turn, and what is compared is the ratio of runs that follow each other.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

Contestant = Callable[[], object]


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(way: Contestant, device: torch.device) -> float:
    """Of one run."""
    wait_for(device)
    started = time.perf_counter()
    way()
    wait_for(device)
    return time.perf_counter() - started


def alternated(ways: dict[str, Contestant], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each way in each round, after one run of each that only sets things up. Every other round goes backwards, so that no way
    always follows the same other."""
    names = list(ways)
    for way in ways.values():
        way()
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            taken[name].append(seconds(ways[name], device))
    return taken


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Ours to theirs: the median over the rounds of each round's ``ratio``, the least and the largest of them (``low``, ``high``).

    Not the ratio of the medians: a machine's speed drifts by more from round to round than the ways differ, and runs of one round
    follow each other, so that what slows one slows the other.
    """
    found = [a / b for a, b in zip(ours, theirs, strict=True)]
    middle = {"ratio": statistics.median(found), "low": min(found), "high": max(found)}
    return {name: round(value, 3) for name, value in middle.items()}


def formatted(taken: dict[str, list[float]], against: dict[str, tuple[str, ...]], per: float) -> dict:
    """As a record has it: ``rounds_s``, seconds of each way over ``per`` in every round; ``median_s``; and ``ratios`` of each way to those
    that it is held against, by :func:`ratio`."""
    rounds = {name: [round(s / per, 5) for s in seconds_] for name, seconds_ in taken.items()}
    return {
        "median_s": {name: round(statistics.median(values), 5) for name, values in rounds.items()},
        "ratios": {n: {o: ratio(taken[n], taken[o]) for o in others} for n, others in against.items()},
        "rounds_s": rounds,
    }


def flops(way: Contestant) -> int:
    """Floating-point operations of a run, backward passes with it, as torch counts matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        way()
    return counter.get_total_flops()


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int | None = None, rounds: int = 5) -> float:
    """Operations a second of a large square matrix product here: the best of some rounds, for a floor must not be too high."""
    size = size or (8192 if device.type == "cuda" else 1024)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(rounds))
