"""The bench of short texts, on a text tower of no size."""

from __future__ import annotations

import pytest
import torch

from persres.config.schema import Clip
from persres.experiments.benchmarks.nouns import NounSettings, noun_times
from persres.metrics.clip_scores import ClipEncoder


def test_the_bench_reads_the_same_features_padded_and_short(tiny_encoders):
    record = noun_times(NounSettings(60, 2, batch=16), Clip(**tiny_encoders["clip"]))
    assert record["texts"] == 60 and len(record["rounds"]) == 2
    assert record["difference"] < 1e-5
    assert record["ratio"] == pytest.approx(record["padded_s"] / record["short_s"])
    assert 1 < record["expected"] <= record["expected_of_all"], "a batch is as long as its longest text"


def test_the_bench_would_see_other_features(tiny_encoders, monkeypatch):
    monkeypatch.setattr(ClipEncoder, "tokens", lambda self, tokens, batch: torch.zeros(len(tokens), 1))
    assert noun_times(NounSettings(20, 1, batch=16), Clip(**tiny_encoders["clip"]))["difference"] > 0.01
