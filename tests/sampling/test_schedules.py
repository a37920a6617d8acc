"""Schedules begin at noise, strictly decrease and have the right count; what no schedule can do is refused with a number that can be."""

from __future__ import annotations

import re
from itertools import pairwise

import diffusers
import pytest
import torch

from persres.errors import PersresError
from persres.sampling.samplers import ddim_scheduled, sample_ddim, scheduled

SPACINGS = ("leading", "trailing", "linspace")


def ddim(spacing: str = "leading", offset: int = 1, **more) -> diffusers.DDIMScheduler:
    return diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=offset, clip_sample=False, **more)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 20, 25, 30, 50, 60, 75, 100, 200, 250, 333, 500, 999])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_usual_numbers_of_steps_give_the_schedule_of_diffusers(spacing, steps):
    expected = ddim(spacing)
    expected.set_timesteps(steps)
    times = ddim_scheduled(ddim(spacing), steps).timesteps
    assert torch.equal(times, expected.timesteps) and len(times) == steps
    assert all(a > b for a, b in pairwise(times)) and 0 <= times[-1] <= times[0] < 1000


@pytest.mark.parametrize("steps", [1000, 1001, 998, 750, 501, 400, 334])
def test_a_leading_schedule_that_misses_the_noise_is_refused(steps):
    with pytest.raises(
        PersresError, match=rf"^{steps} steps are not possible with DDIMScheduler: .*; choose .*e\.g\. \d+"
    ) as error:
        ddim_scheduled(ddim(), steps)
    ddim_scheduled(ddim(), int(re.search(r"e\.g\. (\d+)", str(error.value))[1]))


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, None, "50", 10**9])
def test_what_is_no_number_of_steps_is_refused(steps):
    with pytest.raises(PersresError, match="steps"):
        ddim_scheduled(ddim(), steps)


@pytest.mark.parametrize("steps", [600, 1000])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_other_spacings_reach_the_noise_with_any_number(spacing, steps):
    assert int(ddim_scheduled(ddim(spacing, offset=0), steps).timesteps[0]) == 999


def test_a_trailing_schedule_that_passes_the_first_timestep_is_refused():
    with pytest.raises(PersresError, match="reach timestep -1"):
        ddim_scheduled(ddim("trailing"), 998)


def test_models_of_other_lengths_are_checked_against_theirs():
    assert len(ddim_scheduled(ddim(num_train_timesteps=100), 50).timesteps) == 50
    for steps in (60, 100, 101):
        with pytest.raises(PersresError, match="not possible"):
            ddim_scheduled(ddim(num_train_timesteps=100), steps)


KINDS = (
    "DDIM",
    "DDPM",
    "PNDM",
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "LMSDiscrete",
    "DPMSolverMultistep",
    "UniPCMultistep",
    "HeunDiscrete",
)


@pytest.mark.parametrize("kind", KINDS)
def test_the_schedulers_of_a_pipeline_are_checked_too(kind):
    scheduler = getattr(diffusers, f"{kind}Scheduler")(
        num_train_timesteps=1000, timestep_spacing="leading", steps_offset=1
    )
    before = scheduler.num_inference_steps
    for steps in (20, 25, 50, 100):
        assert float(scheduled(scheduler, steps).timesteps[0]) < 1000
        assert scheduler.num_inference_steps == before, "the caller's scheduler stays as it was"
    for steps in (700, 2000):
        with pytest.raises(PersresError, match="not possible"):
            scheduled(scheduler, steps)


@pytest.mark.parametrize("steps", [600, 1000])
def test_a_sampler_refuses_before_the_first_pass(steps):
    with pytest.raises(PersresError, match="not possible"):
        sample_ddim(lambda x, t: 1 / 0, torch.zeros(1, 4, 2, 2), ddim(), steps)
