"""Typed settings of ``params.yaml``: unknown keys are refused, and every problem is in one message.

The file holds ``profile`` and one mapping per profile. Sections are named after the stages, plus ``base`` (the frozen model),
``encoders`` and ``runtime`` (where and how fast, never what). Omitted settings default to the paper's values.

Settings of one method are declared in the method's file (persres/methods/). This file has only what all methods share;
:class:`SettingsTypes` passes the methods' types in when a profile is validated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, ValidationError, ValidationInfo, model_validator

from persres.config.previews import Previews
from persres.config.problems import no_variant, problem_lines, with_paths
from persres.config.section import Name, Scale, Section, Sha256, Word

MaskName = Literal["median", "otsu", "soft", "quantile"]  # functions of persres/sampling/masks.py
MaskControl = Literal["disk", "random", "inverted"]
Archive = Literal["benchmark_dataset.zip", "custom-diffusion-main.zip", "dreambooth-main.zip"]

# the macro_class stage's result, the dataset's class, the nearest WordNet noun (paper), the zero-shot class
ClassSource = Literal["selected", "dataset", "wordnet", "zero_shot"]


class Base(Section):
    """The frozen text-to-image model: a diffusers pipeline by hub name or folder."""

    model: str = Field("CompVis/stable-diffusion-v1-4", min_length=1)
    resolution: int = Field(512, ge=16, le=8192, multiple_of=8)  # pixels, short side after the centre crop
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the frozen model; residuals train in float32
    token: Word = "<v*>"  # V* in prompts
    # V* has its embedding, frozen (paper 3.2: "a rarely occurring token")
    rare_token: str = Field("sks", min_length=1, max_length=64)


class Clip(Section):
    """An open_clip model: a name with ``pretrained``, or ``local-dir:`` and a folder."""

    model: str = "ViT-B-32-quickgelu"
    pretrained: str | None = "openai"


class Dino(Section):
    """A timm ViT by name, or ``local-dir:`` and a folder, with the reference evaluation's resize and crop in pixels.

    DINOv2 is ``vit_small_patch14_dinov2.lvd142m``; its crop is a multiple of the patch size 14.
    """

    model: str = "vit_small_patch16_224.dino"
    resize: int = Field(256, ge=8)
    crop: int = Field(224, ge=8)


class Encoders(Section):
    """The encoders that score images and prompts."""

    clip: Clip = Clip()
    dino: Dino = Dino()


class Fetch(Section):
    """Which concepts. An empty list takes all concepts of the dataset."""

    dataset: str = "folder"  # one of persres/datasets
    # dataset folder: has one folder of photos with a concept.json per concept; the two benchmarks: where their files are
    # downloaded to, by default .work/datasets/<dataset>
    folder: str | None = None
    # pins a benchmark's archive; without it the digest is recorded and printed
    sha256: dict[Archive, Sha256] = Field({})
    concepts: tuple[str, ...] = Field((), strict=False)
    references: int = Field(5, ge=1, le=1000)  # mini world: training images per concept
    held_out: int = Field(5, ge=0, le=1000)  # mini world: further images, never trained on
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> Fetch:
        duplicates = sorted({c for c in self.concepts if self.concepts.count(c) > 1})
        if duplicates:
            raise ValueError(f"concept named twice: {', '.join(duplicates)}")
        if self.dataset == "folder" and not self.folder:
            raise ValueError("dataset: folder needs fetch.folder, the folder that holds one folder per concept")
        return self


class ZeroShotClassSettings(Section):
    """Settings of the zero-shot class (persres/metrics/zero_shot_class.py)."""

    templates: tuple[str, ...] = Field(("{}", "a photo of a {}"), min_length=1, strict=False)  # for CLIP's text encoder
    diffusion_classifier: bool = True  # the base model ranks the best names; else CLIP, prompts and WordNet alone
    prompt: str = "a photo of a {}"  # of the diffusion classifier
    num_candidates: int = Field(8, ge=1)  # names that it ranks
    noise_levels: int = Field(4, ge=1)  # per photo
    batch_size: int = Field(8, ge=1)


class MacroClass(Section):
    """Paper appendix B. ``candidates`` is ``wordnet`` or a text file with one noun per line."""

    source: Literal["dataset", "wordnet", "zero_shot"] = "dataset"
    candidates: str = "wordnet"
    nearest: bool = False  # report the nearest noun even if the dataset's class is used
    template: str = "{}"  # prompt of a candidate for CLIP's text encoder
    batch_size: int = Field(512, ge=1)
    zero_shot: bool = False  # report the zero-shot class even if another one is used
    zero_shot_settings: ZeroShotClassSettings = ZeroShotClassSettings()

    @property
    def uses_nouns(self) -> bool:
        """Whether CLIP ranks nouns at all."""
        return self.nearest or self.uses_zero_shot or self.source == "wordnet"

    @property
    def uses_zero_shot(self) -> bool:
        """Whether the zero-shot class is needed, to use or to report."""
        return self.zero_shot or self.source == "zero_shot"


class ClassImageSettings(Section):
    """How the base model samples class images, for variants with prior preservation."""

    steps: int = Field(50, ge=1, le=1000)
    cfg_scale: Scale = 6.0


class ClassImageRequest(Section):
    """The class images that a variant trains on: sampled with ``prompt``, or real images of a ``folder``."""

    prompt: str
    count: int
    folder: str | None = None


LearningRate = Annotated[float, Field(gt=0, le=1e6)]  # what is more leaves the range of float32 in some steps


class VariantSettings(Section):
    """Training settings that all methods share. A method's file adds more, and its name as ``method``."""

    method: str
    concepts: int | None = Field(None, ge=1)  # train only so many, spread evenly over the names; None: all
    class_source: ClassSource = "selected"  # ablation (table 4): whose macro class the prompt names
    steps: int = Field(150, ge=1)
    batch_size: int = Field(4, ge=1)
    lr: LearningRate = 1e-3
    weight_decay: float = Field(0.01, ge=0)
    seed: int = 0
    checkpoint_every: int = Field(50, ge=1)

    def class_images(self) -> ClassImageRequest | None:
        """The class images that training needs."""
        return None

    def whole_photos(self) -> bool:
        """Whether training frames the photos itself; else it is given centre squares."""
        return False

    def lacks(self, sampling: SamplingConfig) -> str | None:
        """Why it can't be sampled with these settings, or None."""
        return None


@dataclass(frozen=True)
class SettingsTypes:
    """What higher layers register: settings types by method, the method of a variant without ``method``, the datasets, and
    those of them that are drawn by code, with classifiers and a renderer."""

    methods: Mapping[str, type[VariantSettings]]
    default: str
    datasets: frozenset[str] = frozenset()
    drawn: frozenset[str] = frozenset()


class Train(Section):
    """``variants`` are sparse differences from their method's defaults. Further settings of this section hold for all
    variants of the default method, which is the paper's."""

    class_images: ClassImageSettings = ClassImageSettings()
    default: SerializeAsAny[VariantSettings]  # of the default method, with the section's settings
    variants: dict[Name, SerializeAsAny[VariantSettings]]

    @model_validator(mode="before")
    @classmethod
    def _typed(cls, raw: Any, info: ValidationInfo) -> Any:
        types: SettingsTypes | None = (info.context or {}).get("types")
        if not isinstance(raw, dict) or types is None:
            return raw
        section = {key: raw[key] for key in ("class_images",) if key in raw}
        extra = {key: value for key, value in raw.items() if key not in ("class_images", "default", "variants")}
        if not all(isinstance(raw.get(key, {}), dict) for key in ("variants", "default")):
            raise ValueError("variants must be a mapping of names to settings")
        shared = dict(raw.get("default", {})) | extra
        typed, problems = {}, _problems(types.methods[types.default], shared)
        for name, sparse in raw.get("variants", {types.default: {}}).items():
            variant = sparse if isinstance(sparse, VariantSettings) else _variant(name, sparse, shared, types, problems)
            if variant is not None:
                typed[name] = variant
        if problems:
            raise with_paths(problems)
        return section | {"default": types.methods[types.default](**shared), "variants": typed}

    def variant(self, name: str) -> VariantSettings:
        """The typed settings of one variant."""
        return self.variants[name]


def _problems(settings: type[VariantSettings], raw: dict[str, Any]) -> list[str]:
    try:
        settings(**raw)
        return []
    except ValidationError as error:
        return problem_lines(error)


def _variant(name: str, sparse: Any, shared: dict, types: SettingsTypes, problems: list[str]) -> VariantSettings | None:
    """One variant's typed settings, or None after adding its problems to ``problems``."""
    if not isinstance(sparse, dict):
        problems.append(f"variants.{name}: must be a mapping of settings, {{}} for the defaults")
        return None
    method = sparse.get("method", types.default)
    if method not in types.methods:
        problems.append(f"variants.{name}.method: no method {method!r}; one of {', '.join(types.methods)}")
        return None
    try:
        return types.methods[method](**((shared if method == types.default else {}) | sparse))
    except ValidationError as error:
        new = [line for line in problem_lines(error) if line.split(":")[0].split(".")[0] in sparse or not shared]
        problems += [f"variants.{name}.{line}" for line in new]
        return None


class SamplingConfig(Section):
    """One config: a way to sample a training variant (paper 3.3 and 4.3). No ``variant`` samples the base model."""

    variant: str | None = None
    # control: no model samples; the dataset's renderer draws the concept in the prompted scene. autoencoder: encoded and decoded once
    ground_truth: Literal["rendered", "autoencoder"] | None = None
    strength: float = Field(1.0, ge=0, le=1000)  # scales ΔW; 0 leaves only V* in the prompt
    lag: bool | Literal["auto"] = False  # true: the paper's masks unless set below; auto: our masks
    mask: MaskName = "median"  # threshold of an attention map (paper: median)
    mask_area: float = Field(0.5, gt=0, lt=1)  # quantile: marked share of the image
    # blocks whose attention masks all blocks; (): each block its own (paper); confidence_weighted: all, weighted by confidence
    mask_blocks: Annotated[tuple[str, ...], Field(strict=False)] | Literal["confidence_weighted"] = ()
    mask_smooth: float = Field(0.0, ge=0, lt=1)  # weight of the previous steps' map in a running mean
    mask_control: MaskControl | None = None  # control: same area, independent of the object
    # scenes: no LAG where the prompt changes the object's appearance
    mask_when: Literal["always", "scenes", "high_confidence"] = "always"
    wrong_concept: bool = False  # control: the next concept's residual
    uncond_rule: Literal["mask", "base", "full"] = "mask"  # what the unconditional branch gets under LAG
    steps: int = Field(50, ge=1, le=1000)
    cfg_scale: Scale = 6.0
    # whose macro class the prompt names (table 4); noise and scores use the selected one
    class_source: ClassSource = "selected"
    images_per_prompt: int = Field(50, ge=1, le=100_000)
    prompts: int | None = Field(None, ge=1)  # per concept, spread evenly over the groups; None: all
    seed: int = 0

    @property
    def is_base(self) -> bool:
        """Whether it samples the base model alone."""
        return self.variant is None and self.ground_truth is None

    @model_validator(mode="after")
    def _check(self) -> SamplingConfig:
        if self.ground_truth is not None and self.variant is not None:
            raise ValueError("ground_truth draws without a residual; remove variant")
        if self.lag and self.variant is None:
            raise ValueError("lag: true needs a residual; set variant to a training variant")
        changed = [
            name
            for name, field in SamplingConfig.model_fields.items()
            if name.startswith("mask") and getattr(self, name) != field.default
        ]
        if changed and self.lag is not True:
            raise ValueError(f"{', '.join(changed)}: no effect without lag: true (lag: auto has its masks)")
        if self.mask_area != 0.5 and self.mask != "quantile":
            raise ValueError("mask_area has no effect without mask: quantile")
        if self.mask_when == "high_confidence" and self.mask_blocks != "confidence_weighted":
            raise ValueError("mask_when: high_confidence needs mask_blocks: confidence_weighted")
        if self.variant is None and (self.wrong_concept or self.strength != 1.0):
            raise ValueError("wrong_concept and strength need a residual; set variant to a training variant")
        return self


class Sample(SamplingConfig):
    """Defaults of all configs, and the configs as sparse differences from them."""

    configs: dict[Name, dict[str, Any]] = Field(
        {"base": {}, "ours": {"variant": "ours"}, "ours_lag": {"variant": "ours", "lag": True}}
    )

    @model_validator(mode="after")
    def _typed(self) -> Sample:
        problems = []
        for name in self.configs:
            try:
                self.config(name)
            except ValidationError as error:
                problems += [f"configs.{name}.{line}" for line in problem_lines(error)]
        if problems:
            raise with_paths(problems)
        return self

    def config(self, name: str) -> SamplingConfig:
        """The typed settings of one config."""
        shared = {k: v for k, v in self.model_dump().items() if k != "configs"}
        return SamplingConfig(**(shared | self.configs[name]))


class Score(Section):
    """``attribute_classifier`` is a folder with the mini world's, which separates object and background."""

    attribute_classifier: str | None = None
    batch_size: int = Field(64, ge=1)


class Tables(Section):
    """Bootstrap over concepts, and the layout of tables and sheets."""

    bootstrap: int = Field(10_000, ge=100, le=10_000_000)
    seed: int = 0
    sheet_scale: int = Field(1, ge=1, le=64)  # pixels of the sheet per image pixel
    # table -> config -> its row's label
    rows: dict[Literal["table1", "table3", "table4", "table5"], dict[Name, str]] = Field({})


class Runtime(Section):
    """Where and how fast. Nothing here changes a result beyond float tolerance."""

    workers: int = Field(1, ge=0, le=1024)  # processes; 0: one per core
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d{1,3})?)$")
    sample_batch: int = Field(8, ge=1)
    # concepts trained in one batch, where the method can; auto: as many as memory and workers allow
    concepts_per_batch: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    gradient_checkpointing: bool = False  # less memory, slower training
    cpu_offload: bool = False  # text encoders and autoencoder stay on the CPU while they are idle
    previews: Previews | None = None  # of training; a residual's only


class Profile(Section):
    """All sections of one profile."""

    base: Base = Base()
    encoders: Encoders = Encoders()
    fetch: Fetch
    macro_class: MacroClass = MacroClass()
    train: Train
    sample: Sample = Sample()
    score: Score = Score()
    tables: Tables = Tables()
    runtime: Runtime = Runtime()

    @model_validator(mode="before")
    @classmethod
    def _training(cls, raw: Any) -> Any:
        return {"train": {}} | raw if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _check_sections(self, info: ValidationInfo) -> Profile:
        """Checks that need more than one section."""
        types: SettingsTypes | None = (info.context or {}).get("types")
        problems = [line for name in self.sample.configs for line in self._config_problems(name)]
        for table, rows in self.tables.rows.items():
            unknown = [name for name in rows if name not in self.sample.configs]
            problems += [f"tables.rows.{table}.{name}: no such config in sample.configs" for name in unknown]
        problems += [] if types is None else self._dataset_problems(types)
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _dataset_problems(self, types: SettingsTypes) -> list[str]:
        dataset = self.fetch.dataset
        if dataset not in types.datasets:
            return [f"fetch.dataset: no dataset {dataset!r}; one of {', '.join(sorted(types.datasets))}"]
        if self.score.attribute_classifier is not None and dataset not in types.drawn:
            available = ", ".join(sorted(types.drawn))
            return [
                f"score.attribute_classifier: dataset {dataset} has none (only {available} has one); leave the setting out"
            ]
        configs = {name: self.sample.config(name) for name in self.sample.configs}
        return [
            f"sample.configs.{name}.ground_truth: dataset {dataset} has no renderer (only {', '.join(sorted(types.drawn))} has one)"
            for name, sampling in configs.items()
            if sampling.ground_truth is not None and dataset not in types.drawn
        ]

    def _config_problems(self, name: str) -> list[str]:
        """Settings of a config that its training variant does not support."""
        sampling = self.sample.config(name)
        if sampling.variant is None:
            return []
        if sampling.variant not in self.train.variants:
            return [no_variant(name, sampling.variant, list(self.train.variants))]
        lacking = self.train.variant(sampling.variant).lacks(sampling)
        return [] if lacking is None else [f"sample.configs.{name}.{lacking}"]
