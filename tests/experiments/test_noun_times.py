"""The bench of short texts, on a text tower of no size."""

from __future__ import annotations

import pytest
import torch

from persres.config.schema import Clip
from persres.experiments.benchmarks.nouns import noun_times
from persres.metrics.clip_scores import ClipEncoder


def test_the_bench_reads_the_same_features_both_ways(tiny_encoders):
    found = noun_times(60, 2, Clip(**tiny_encoders["clip"]), batch=16)
    assert found["texts"] == 60 and len(found["rounds"]) == 2
    assert found["difference"] < 1e-5
    assert found["ratio"] == pytest.approx(found["padded_s"] / found["short_s"])
    assert 1 < found["expected"] <= found["expected_of_all"], "a batch is as long as its longest text"


def test_the_bench_would_see_other_features(tiny_encoders, monkeypatch):
    monkeypatch.setattr(ClipEncoder, "tokens", lambda self, tokens, batch: torch.zeros(len(tokens), 1))
    assert noun_times(20, 1, Clip(**tiny_encoders["clip"]), batch=16)["difference"] > 0.01
