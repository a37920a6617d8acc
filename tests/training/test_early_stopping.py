"""Stopping: a settled concept stops where a fixed run of as many steps ends, after a kill too, and with others as alone."""

from __future__ import annotations

import json

import pytest
import torch

from persres.methods.common.train_units import train_unit
from persres.methods.ours import Ours
from persres.residuals.bank import ResidualBank
from persres.residuals.header import read_header
from persres.residuals.targets import find_targets
from persres.training.early_stopping import EarlyStopping, fixed_draws, relative_change
from persres.units.specs import FileRef, TrainSpec
from persres.units.unit import Unit, facts
from tests.training.test_training import concept, loss_of, settings, train_bank


def stopping_early(**changes) -> Ours:
    """Stops at the second or third check of the tiny model."""
    return settings(
        **(
            {"steps": 40, "stop": "early", "early_stop_every": 5, "early_stop_below": 0.6, "early_stop_draws": 6}
            | changes
        )
    )


def factors(bank, concept=0) -> list[torch.Tensor]:
    return [factor[concept].detach().clone() for factor in bank.parameters()]


def equal(one, two) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def stops(log, concepts=1) -> list[int | None]:
    """Finished steps at which each concept stopped."""
    ends = [None] * concepts
    for row in log:
        for index, reason in enumerate(row.get("stopped", ())):
            ends[index] = row["step"] + 1 if reason else ends[index]
    return ends


def test_relative_change_of_the_loss():
    assert relative_change([1.0]) == relative_change([1.0, 1.1]) == 1.0, "nothing gained yet: it goes on"
    assert relative_change([1.0, 0.6, 0.5]) == pytest.approx(0.2)
    assert relative_change([1.0, 0.5, 0.6]) == pytest.approx(0.25), "a rise is a movement too"


def test_each_concept_stops_by_its_losses_and_keeps_its_factors(unet):
    script = {0: [1.0, 0.5, 0.49], 1: [1.0, 0.8, 0.6, 0.59]}
    bank = ResidualBank(find_targets(unet), 2)
    rule = EarlyStopping(stopping_early(early_stop_below=0.1), bank, lambda index: script[index].pop(0))
    rule.begin(None)
    assert rule.check(4) == {}, "no check is due"
    assert rule.check(5) == {"fixed_loss": [0.5, 0.8]} and rule.active == [0, 1]
    entry = rule.check(10)
    assert entry["stopped"] == [
        "stopped after 10 steps: in the last 5 the loss changed by 2.0% of its total decrease",
        None,
    ] and rule.active == [1]
    with torch.no_grad():
        for factor in bank.parameters():
            factor += 1.0  # a step of the optimizer, which moves every row
    rule.restore()
    assert all((f == 0).all() for f in factors(bank, 0)) and all((f == 1).all() for f in factors(bank, 1))
    assert rule.check(15)["fixed_loss"] == [None, 0.59] and rule.active == []


def test_an_early_stopped_run_is_a_fixed_one_of_as_many_steps(unet):
    bank, log = train_bank(unet, [concept()], stopping_early())
    (at,) = stops(log)
    assert at is not None and at < 40 and len(log) == at and "norms" in log[-1]
    fixed, plain = train_bank(unet, [concept()], settings(steps=at))
    assert equal(bank.parameters(), fixed.parameters())
    assert [row["loss"] for row in log] == [row["loss"] for row in plain]
    assert not any("fixed_loss" in row for row in plain), "the paper's way looks at nothing"


def test_steps_are_the_upper_bound(unet):
    _, log = train_bank(unet, [concept()], stopping_early(steps=10, early_stop_below=1e-9))
    assert len(log) == 10 and stops(log) == [None]
    assert [row["step"] for row in log if "fixed_loss" in row] == [4], "after the last step no check is due"


@pytest.mark.parametrize("killed_after", [4, 7, "the stop"])
def test_after_a_kill_it_stops_at_the_same_step_with_the_same_bits(unet, tmp_path, killed_after):
    whole, log = train_bank(unet, [concept()], stopping_early())
    (at,) = stops(log)
    # after the stop: the checkpoint of that very step is left, and says that nothing is to be done
    after, every = (None, at) if killed_after == "the stop" else (killed_after, 3)
    variant = stopping_early(checkpoint_every=every)
    train_bank(unet, [concept()], variant, tmp_path / "c.safetensors", after)
    assert (tmp_path / "c.safetensors").exists()
    resumed, log_resumed = train_bank(unet, [concept()], variant, tmp_path / "c.safetensors")
    assert equal(whole.parameters(), resumed.parameters()) and log == log_resumed


def test_in_a_batch_a_concept_stops_where_it_would_alone(unet, tmp_path):
    concepts = [concept("mug", 0), concept("cat", 2)]
    variant = stopping_early(early_stop_below=0.58, checkpoint_every=5)
    batched, log = train_bank(unet, concepts, variant)
    ends = stops(log, 2)
    assert len(set(ends)) == 2 and None not in ends, "a test of one common end would prove nothing"
    for index, one in enumerate(concepts):
        alone, alone_log = train_bank(unet, [one], variant)
        assert stops(alone_log) == [ends[index]]
        torch.testing.assert_close(factors(batched, index), factors(alone), atol=1e-4, rtol=1e-3)
    train_bank(unet, concepts, variant, tmp_path / "c.safetensors", max(ends) - 1)  # killed when one has stopped
    resumed, _ = train_bank(unet, concepts, variant, tmp_path / "c.safetensors")
    assert equal(batched.parameters(), resumed.parameters())


def test_a_check_knows_one_concept_alone_and_draws_the_same_each_time(unet):
    concepts = [concept("mug", 0), concept("robot", 1)]
    both = ResidualBank(find_targets(unet), 2)
    one = ResidualBank(find_targets(unet), 1)
    first, second = (
        loss_of(unet, bank, stopping_early()).early_stopping(some)
        for some, bank in ((concepts, both), (concepts[1:], one))
    )
    assert first.measure(1) == second.measure(0) == first.measure(1) != first.measure(0)


def test_the_timesteps_of_a_check_are_spread_and_its_photos_take_turns():
    mean = concept().mean
    z, noise, t = fixed_draws("mug", mean, stopping_early(early_stop_draws=4), 1000)
    assert t.tolist() == [125, 375, 625, 875]
    assert torch.equal(z, mean[[0, 1, 2, 0]]) and noise.shape == z.shape
    assert not torch.equal(noise, fixed_draws("robot", mean, stopping_early(early_stop_draws=4), 1000)[1])


def test_the_learned_file_says_the_steps_really_done(tiny_pipeline, tmp_path):
    from PIL import Image

    Image.new("RGB", (32, 32), "red").save(tmp_path / "photo.png")
    variant = Ours(
        steps=30, batch_size=1, lr=1e-2, stop="early", early_stop_every=2, early_stop_below=0.9, early_stop_draws=4
    )
    spec = TrainSpec(base={"model": str(tiny_pipeline), "resolution": 32}, model="tiny", concept="mug", variant="ours",
                     settings=variant, macro_class="mug", photos=(FileRef.of(tmp_path / "photo.png"),), class_images=None, code="x")  # fmt: skip
    unit = Unit("train", "ours/mug", spec)
    train_unit(unit, tmp_path, "cpu")
    log = (unit.folder(tmp_path) / "log.jsonl").read_text().splitlines()
    done = len(log)
    assert done < 30 and "stopped after" in json.loads(log[-1])["stopped"]
    assert read_header(unit.folder(tmp_path) / "learned.safetensors")["steps"] == done
    assert facts(unit, tmp_path)["steps"] == facts(unit, tmp_path)["of_steps"] == done, "costs tell a whole run by it"
