"""A training that leaves the finite numbers stops at that step, and nothing of it is finished, published or resumed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from pydantic import ValidationError

from persres.config.schema import Base
from persres.errors import PersresError
from persres.methods import ours
from persres.methods.common.train_units import train_unit, train_units
from persres.residuals.file import write_learned
from persres.residuals.header_validation import read_checked
from persres.training.divergence import DivergedError, check_losses, check_weights, step_and_rate
from persres.training.weight_training import TrainingRun, train_weights
from persres.units.checkpoints import load_training, resume_training, save_training, write_tensors
from persres.units.unit import batch_folder, is_done
from tests.methods.test_batched_training import units
from tests.methods.test_rivals import METHODS, diffusion, plan_of, token_id  # noqa: F401  (fixtures)
from tests.training.test_early_stopping import stopping_early
from tests.training.test_training import concept, settings, train_bank

NAN, INF = float("nan"), float("inf")


def spoilt(value: float, name: str = "mug"):
    """A concept whose photos are encoded as that number."""
    one = concept(name)
    return dataclasses.replace(one, mean=torch.full_like(one.mean, value))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_the_first_loss_that_is_no_number_stops_the_training(unet, tmp_path, value):
    message = (
        r"training of mug diverged: its loss is (nan|inf) at step 1 of 12 with learning rate 0\.01; set a smaller lr"
    )
    with pytest.raises(DivergedError, match=message):
        train_bank(unet, [spoilt(value)], settings(), tmp_path / "c.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("steps", "lr"), [(1, 1e39), (2, 1e39), (12, 1e39), (12, 1e30)])
def test_a_rate_that_breaks_the_weights_is_named_also_after_the_last_step(unet, tmp_path, steps, lr):
    with pytest.raises(DivergedError, match=rf"at step \d of {steps} with learning rate {lr:g}".replace("+", r"\+")):
        variant = settings(steps=steps, checkpoint_every=1).model_copy(update={"lr": lr})
        train_bank(unet, [concept()], variant, tmp_path / "c.safetensors")
    for path in tmp_path.iterdir():
        read_checked(path)


def test_weights_that_are_no_numbers_are_no_reason_to_stop_early(unet):
    """A change that is NaN is not below the threshold."""
    with pytest.raises(DivergedError, match="at step"):
        train_bank(unet, [concept()], stopping_early(early_stop_every=1).model_copy(update={"lr": 1e39}))


def test_of_several_concepts_the_one_is_named(unet):
    with pytest.raises(DivergedError, match="training of cat diverged") as caught:
        train_bank(unet, [concept(), spoilt(NAN, "cat"), concept("bus")], settings())
    assert caught.value.concepts == ("cat",)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [2, 6])
def test_every_rival_stops_too(diffusion, token_id, method, steps, tmp_path):  # noqa: F811
    plan, variant = plan_of(diffusion, method)
    plan = dataclasses.replace(plan, lrs=dict.fromkeys(plan.lrs, 1e35))
    variant = variant.model_copy(update={"steps": steps, "checkpoint_every": 1})
    with pytest.raises(DivergedError, match=r"training of mug diverged: .* at step \d of \d with learning rate 1e\+35"):
        train_weights(diffusion, plan, variant, TrainingRun("mug", token_id, tmp_path / "c.safetensors"))
    for path in tmp_path.iterdir():
        read_checked(path)


@pytest.mark.parametrize(
    "change", [{"lr": 1e39}, {"lr": INF}, {"lr": NAN}, {"weight_decay": INF}, {"init_gain": NAN}, {"prior_weight": INF}]
)
def test_settings_that_can_only_diverge_are_refused(change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        settings(**change)


def test_a_unit_that_diverged_is_not_done_and_the_others_of_its_batch_are(tmp_path, tiny_pipeline, monkeypatch):
    base, real = Base(model=str(tiny_pipeline), resolution=32), ours.encode_concept

    def encode(diffusion, data, settings):  # noqa: F811
        encoded = real(diffusion, data, settings)
        return dataclasses.replace(encoded, std=encoded.std * NAN) if data.concept == "robot" else encoded

    monkeypatch.setattr(ours, "encode_concept", encode)
    todo = units(tmp_path, base)
    errors = train_units(todo, tmp_path / "work", "cpu")
    assert list(errors) == ["ours/robot"] and "robot diverged" in str(errors["ours/robot"])
    assert [is_done(unit, tmp_path / "work") for unit in todo] == [True, False, True]
    assert not batch_folder(todo, tmp_path / "work").exists()
    with pytest.raises(DivergedError, match="robot diverged"):
        train_unit(todo[1], tmp_path / "work", "cpu")
    assert not is_done(todo[1], tmp_path / "work")


@pytest.mark.parametrize("value", [NAN, INF, 1e6])
def test_a_file_that_its_reader_would_refuse_is_not_written(tmp_path, value):
    """1e6 is a number, but not in the half precision of a rival's file."""
    from persres.methods.common.state_file import save_state

    with pytest.raises(PersresError, match=r"w holds NaN or infinity; .*smaller lr"):
        save_state(tmp_path / "x.safetensors", {"w": torch.tensor([value])}, {})
    with pytest.raises(PersresError, match="w holds NaN or infinity"):
        write_learned(tmp_path / "x.safetensors", "k", {"w": torch.tensor([value]).half()}, {})
    assert not list(tmp_path.iterdir())


def parameters(width: int = 3) -> dict[str, torch.nn.Parameter]:
    return {"a": torch.nn.Parameter(torch.ones(width)), "b": torch.nn.Parameter(torch.zeros(2, width))}


def stepped(values: dict[str, torch.nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(values.values(), lr=0.1)
    sum(value.sum() for value in values.values()).backward()
    optimizer.step()
    return optimizer


def break_checkpoint(path, kind: str) -> None:
    values = parameters(4 if kind == "other shapes" else 3)
    optimizer = stepped(values)
    if kind == "NaN":
        values["b"].data[0] = NAN
    if kind == "fewer weights":
        values.pop("b")
    if kind == "other moments":
        optimizer.state[values["a"]]["exp_avg"] = torch.ones(5)
    save_training(path, values, optimizer, 3)
    data = path.read_bytes()
    if kind == "cut":
        path.write_bytes(data[:-5])
    if kind in ("empty", "text"):
        path.write_bytes(b"" if kind == "empty" else b"not a checkpoint")
    if kind in ("no step", "odd step", "odd note"):
        metadata = {
            "no step": {"note": "{}"},
            "odd step": {"step": "x", "note": "{}"},
            "odd note": {"step": "1", "note": "{"},
        }
        write_tensors(path, {"param/a": torch.ones(3), "param/b": torch.ones(2, 3)}, metadata[kind])


KINDS = [
    "NaN",
    "other shapes",
    "fewer weights",
    "other moments",
    "cut",
    "empty",
    "text",
    "no step",
    "odd step",
    "odd note",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_does_not_fit_is_left_alone(tmp_path, kind, logged):
    break_checkpoint(tmp_path / "c.safetensors", kind)
    values = parameters()
    optimizer = torch.optim.AdamW(values.values(), lr=0.1)
    with pytest.raises(PersresError, match=r"c\.safetensors.*; remove it"):
        load_training(tmp_path / "c.safetensors", values, optimizer)
    assert resume_training(tmp_path / "c.safetensors", values, optimizer) == (0, {})
    assert "starting from the first step" in logged.text
    assert all(torch.equal(value, fresh) for value, fresh in zip(values.values(), parameters().values(), strict=True))
    assert not optimizer.state


def test_the_words():
    assert (
        step_and_rate(3, 10, {"token": 5e-3, "image.": 1e-5, "": 1e-5})
        == "at step 3 of 10 with learning rate 0.005, 1e-05"
    )
    check_losses({"a": 1.0, "b": None}, "here")
    check_weights({"a": [torch.ones(2)]}, "here")
    with pytest.raises(DivergedError, match="training of b, c diverged: its loss is inf here"):
        check_losses({"a": 1.0, "b": INF, "c": NAN}, "here")
