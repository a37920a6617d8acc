"""The golden run's studies: the core of each extension and of the evidence, on a few scenes, prompts and steps.

They use what the golden chain has learned. Study modules hold their sizes as constants; those are patched for the call.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from persres.config.schema import SamplingConfig
from persres.experiments.evidence import localisation
from persres.experiments.evidence.scenes import concept_case, nameable_case, two_object_case
from persres.experiments.extensions.early_stopping import traces
from persres.experiments.extensions.masked_lora import measure as masked_lora
from persres.experiments.extensions.masked_lora.sampling import CONFIGS as LORA_CONFIGS
from persres.experiments.extensions.masked_lora.sampling import ROWS, SHOWN
from persres.experiments.extensions.masked_lora.train import VARIANTS
from persres.experiments.extensions.masks import coverage
from persres.experiments.extensions.multi_concept.cases import cases_of
from persres.experiments.extensions.multi_concept.claims import claims
from persres.experiments.extensions.multi_concept.sampling import (
    CONFIGS,
    TRIPLE_CONFIGS,
    MultiConceptSampler,
    SampledImages,
)
from persres.experiments.extensions.multi_concept.scores import RegionScorer, score_configs, with_best_halves
from persres.experiments.extensions.study import Run
from persres.experiments.extensions.zero_shot_class import measure as zero_shot_class
from persres.experiments.golden.figures import Collector
from persres.metrics.clip_scores import load_clip
from persres.metrics.dino_scores import load_dino
from persres.miniworld.identities import concept_named
from persres.models.diffusion import load_diffusion
from persres.models.loading import model_identity
from persres.package_paths import located
from persres.pipeline import PersonalizedPipeline
from persres.residuals.file import load_bank
from persres.sampling.prompt_intent import prompt_intent
from persres.seeding import generator
from persres.units.context import Context
from persres.units.outputs import learned_path
from persres.units.specs import FileRef
from persres.units.unit import Unit

STEPS, SCENES, TRAINED = 2, 4, 2  # of sampling; of a set; of a LoRA's training
TIMES = (200, 600)  # timesteps of the attention maps
CONCEPT = "heart_mug"
# Figure names by the order of the study's configs, so that a rename there changes none of them.
MULTI_CONCEPT = ("base", "sum", "merged", "halves", "halves_reversed", "shared_mask", "paper", "exclusive", "swapped", "one_zeroed")  # fmt: skip
LORA = ("base", "whole", "auto", "paper", "quantile", "disk", "random", "weaker", "inverted")
PROMPTS = ("a photo of a {} in the snow", "a red {} on a beach", "a painting of a {}", "a {} made of wood", "my {} next to a car", "a {}-shaped cake")  # fmt: skip


def study_figures(context: Context, out: Collector) -> None:
    """Figures of every study."""
    sample = context.profile.sample.model_copy(update={"steps": STEPS})
    context = replace(context, profile=context.profile.model_copy(update={"sample": sample}))
    _localisation(context, out)
    _pipeline(context, out)
    _multi_concept(context, out)
    _masked_lora(context, out)
    _zero_shot_class(context, out)
    _early_stopping(context, out)
    kinds = [prompt_intent(text.replace("{}", "<v*> mug"), "<v*> mug") for text in PROMPTS]
    out.add("text", "choosing/prompts", ", ".join(kinds))


@patch.object(localisation, "STEPS", TIMES)
@patch.object(coverage, "STEPS", TIMES)
def _localisation(context: Context, out: Collector) -> None:
    """Attention and masks against the truth: nameable scenes, a concept alone and next to another object."""
    base = context.profile.base
    diffusion = load_diffusion(base, "cpu")
    bank = load_bank(diffusion.unet, learned_path(context.data, "ours", CONCEPT))
    nameable = nameable_case(diffusion, SCENES, base.token)
    for row in localisation.localisation_rows(diffusion, [(nameable, None)]):
        name = f"localisation/{row['tokens']}/t{row['t']}/{row['block']}"
        out.add_all("localisation", name, {"auc": row["auc"], "iou": row["iou"]})
    concept = concept_named(CONCEPT)
    cases = {
        "nameable": (nameable, None),
        "concept": (concept_case(diffusion, concept, SCENES, base.token), bank),
        "next_to": (two_object_case(diffusion, concept, SCENES, base.token), bank),
    }
    for name, (case, residual) in cases.items():
        scenes = coverage.Scenes(case, [name == "next_to"] * len(case.prompts), residual)
        rows = pd.DataFrame(coverage.coverage_rows(diffusion, scenes))
        for number, (_, part) in enumerate(rows.groupby("mask", sort=False)):
            means = part[["iou", "area", "object_area", "ceiling"]].mean()
            out.add_all("localisation", f"masks/{name}/{number:02d}", means.to_dict())


def _pipeline(context: Context, out: Collector) -> None:
    """diffusers' own pipeline with one residual, without and with LAG, and with two."""
    pipe = PersonalizedPipeline.from_pretrained(context.profile.base.model, dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    names = (CONCEPT, "star_robot")
    for name in names:
        pipe.load_residual(learned_path(context.data, "ours", name), name)
    one, noise = f"a photo of a {pipe.residuals[CONCEPT].phrase} in the snow", _noise(pipe.unet.config.in_channels)
    pipe.set_residual(CONCEPT)
    for name, arguments in (("weaker", {"strength": 0.6}), ("lag_paper", {"lag": True}), ("lag_auto", {"lag": "auto"})):
        _add_pipeline_image(pipe, f"pipeline/{name}", one, noise, arguments, out)
    pipe.set_residuals(list(names))
    for name, lag in (("two_everywhere", False), ("two_lag", "auto")):
        _add_pipeline_image(pipe, f"pipeline/{name}", "a photo of a {1} next to a {2}", noise, {"lag": lag}, out)


def _noise(channels: int) -> torch.Tensor:
    return torch.randn(1, channels, 16, 16, generator=generator("golden", "pipeline"))


def _add_pipeline_image(pipe: PersonalizedPipeline, name: str, prompt: str, noise: torch.Tensor, arguments: dict, out: Collector) -> None:  # fmt: skip
    lag = bool(arguments.get("lag"))
    output = pipe(prompt, latents=noise, num_inference_steps=STEPS, guidance_scale=6.0, height=64, width=64,
                 output_type="np", return_masks=lag, **arguments)  # fmt: skip
    out.add_image(name, (output.images[0] * 255).round().astype(np.uint8))
    for number, mask in enumerate(output.masks.reshape(-1, 16, 16).numpy() if lag else ()):
        out.add_mask(f"{name}/{number}", mask)


def _multi_concept(context: Context, out: Collector) -> None:
    """A pair in both orders by every split rule and Custom Diffusion's merge, a triple by a few, and their scores."""
    encoders, work = context.profile.encoders, context.work / "golden"
    sampler = MultiConceptSampler(context, load_diffusion(context.profile.base, "cpu"), work)
    scorer = RegionScorer(context, load_clip(encoders.clip, "cpu"), load_dino(encoders.dino, "cpu"), sampler.names)
    stable = dict(zip(CONFIGS, MULTI_CONCEPT, strict=True))
    for count, configs in ((2, tuple(CONFIGS)), (3, TRIPLE_CONFIGS)):
        cases = [case for case in cases_of(context, 1) if len(case.names) == count and case.template.endswith("}")]
        sampled = {config: sampler.sample(config, cases) for config in configs}
        for config, images in sampled.items():
            _add_sampled(f"multi_concept/{count}/{stable[config]}", images, out)
        _add_rows(score_configs(scorer, sampled, cases), count, stable, out)


def _add_sampled(name: str, sampled: SampledImages, out: Collector) -> None:
    for number, image in enumerate(sampled.images):
        out.add_image(f"{name}/{number}", image)
    for number, masks in enumerate([] if sampled.masks is None else sampled.masks):
        for concept, mask in enumerate(masks):
            out.add_mask(f"{name}/{number}/{concept}", mask)


def _add_rows(rows: pd.DataFrame, count: int, stable: dict[str, str], out: Collector) -> None:
    """Scores of every image, and the effects of the study's claims on the pair."""
    for config, part in rows.groupby("config", sort=False):
        for number, (_, row) in enumerate(part.iterrows()):
            values = row.drop(["config", "group", "order", "prompt", "image"]).to_dict()
            out.add_scores(f"multi_concept/{count}/{stable.get(config, config)}/{number}", values)
    if count == 2:
        for number, claim in enumerate(claims(with_best_halves(rows))):
            out.add("score", f"multi_concept/claims/{number:02d}", claim["effect"])


def _masked_lora(context: Context, out: Collector) -> None:
    """LoRAs of every recipe, sampled whole, masked, and with control masks."""
    run, stable = Run(Path(), context.work, "cpu", context.profile), dict(zip(LORA_CONFIGS, LORA, strict=True))
    short = {name: recipe.model_copy(update={"steps": TRAINED}) for name, recipe in VARIANTS.items()}
    few = {name: LORA_CONFIGS[name] for name, figure in stable.items() if figure in ("base", "whole", "auto")}
    units = []
    for number, name in enumerate(VARIANTS):  # the first recipe with every config
        configs = patch.dict(LORA_CONFIGS, few, clear=number > 0)
        with patch.object(masked_lora, "STEPS", STEPS), patch.dict(VARIANTS, short), configs:
            units += masked_lora.sampled_units(run, (name,), masked_lora.Amount(1, 1, (CONCEPT,)))
    for unit in units:
        name, folder = f"masked_lora/{unit.spec.variant}", unit.folder(context.work)
        for key, value in load_file(unit.spec.lora.path).items():
            out.add("lora", f"{name}/{key}", float(value.float().norm()))
        out.add_archive(name, folder / SHOWN)
        rows = pd.read_parquet(folder / ROWS)
        for _, row in rows.iterrows():
            values = row.drop(["variant", "concept", "config", "group", "image"]).to_dict()
            out.add_scores(f"{name}/{stable[row['config']]}", values)


def _zero_shot_class(context: Context, out: Collector) -> None:
    """The study's summary on one concept and a few nameless subjects."""
    sizes = {"ENCODED": 3, "CLASSIFIED": (2, 2), "DRAWS": (1, 1), "CONCEPTS": zero_shot_class.CONCEPTS[:1]}
    folder = context.work / "golden_nouns"
    folder.mkdir()
    stubs = {"load_profile": lambda *_: context.profile, "accuracy_figure": lambda *_: None}
    with patch.multiple(zero_shot_class, **sizes, **stubs):
        summary = zero_shot_class.measure(Run(Path(), context.work, "cpu"), folder)
    for number, claim in enumerate(summary["claims"]):
        out.add("class", f"zero_shot_class/claims/{number:02d}", claim["effect"])
    for number, row in enumerate(summary["accuracy"]):
        out.add("class", f"zero_shot_class/accuracy/{number:02d}", row["mean"])
    for number, row in enumerate(summary["concepts"]):
        out.add("class", f"zero_shot_class/concepts/{number:02d}", row["confidence"])


def _early_stopping(context: Context, out: Collector) -> None:
    """The losses that the rule sees, where it stops, and scores of the stopped state."""
    profile, base = context.profile, context.profile.base
    rule = {"stop": "early", "steps": 4, "early_stop_every": 2, "early_stop_below": 0.9, "early_stop_draws": 4}
    settings = profile.train.variants["ours"].model_copy(update=rule)
    spec = traces.TraceSpec(base=base, model=model_identity(base.model), subject="nameless_0", settings=settings, longest=6, code="golden")  # fmt: skip
    unit = traces.unit_of(spec)
    images = traces.ScoreSpec(
        learned=spec, steps=4, prompts=(0, 9), sampling=SamplingConfig(variant="ours", steps=STEPS, images_per_prompt=1),
        encoders=profile.encoders, classifier=FileRef.of(Path(located(profile.score.attribute_classifier))), code="golden",
    )  # fmt: skip
    scores = Unit("golden_images", spec.subject, images)
    with patch.object(traces, "EVERY", 2):
        traces.trace_unit(unit, context.work, "cpu")
        traces.score_unit(scores, context.work, "cpu")
    trace = json.loads((unit.folder(context.work) / "trace.json").read_text())
    for name in ("loss", "fixed", "other"):
        out.add_all("loss", f"early_stopping/{name}", {f"{i:02d}": value for i, value in enumerate(trace[name])})
    out.add("text", "early_stopping/steps", str(trace["ruled"]["steps"]))
    for number, row in pd.read_csv(scores.folder(context.work) / "scores.csv").iterrows():
        out.add_scores(f"early_stopping/{number}", row.drop("image").to_dict())
