"""``params.yaml``, typed at the edge: unknown keys refused, every problem in one message.

The file holds ``profile`` and one mapping per profile with sections named after the stages, plus
``base`` (the frozen model), ``encoders`` and ``runtime`` (where and how fast, never what). Defaults
are the paper's values wherever the paper states one.

A method's own settings stand in the method's file (persres/methods/): this file knows only what every method's settings
have, and is told the types when it reads a profile (:class:`Known`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Archive = Literal["benchmark_dataset.zip", "custom-diffusion-main.zip", "dreambooth-main.zip"]

# what macro_class decided, the dataset's word, the nearest noun (paper), the class found by itself
ClassSource = Literal["selected", "dataset", "wordnet", "zero_shot"]


class Section(BaseModel):
    """A frozen part of params.yaml: unknown keys refused, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Base(Section):
    """The frozen text-to-image model: a diffusers pipeline by hub name or folder."""

    model: str = "CompVis/stable-diffusion-v1-4"
    resolution: int = Field(512, ge=16, multiple_of=8)  # pixels, short side after the centre crop
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the frozen model; residuals learn in float32
    token: str = "<v*>"  # V*, as it stands in prompts
    rare_token: str = "sks"  # whose embedding V* holds, frozen (paper 3.2: "a rarely occurring token")


class Clip(Section):
    """An open_clip model: a name with ``pretrained``, or ``local-dir:`` and a folder."""

    model: str = "ViT-B-32-quickgelu"
    pretrained: str | None = "openai"


class Dino(Section):
    """A timm ViT, by name or ``local-dir:`` and a folder, and the reference evaluation's geometry. DINOv2 is
    ``vit_small_patch14_dinov2.lvd142m`` (crop: a multiple of its patch, 14)."""

    model: str = "vit_small_patch16_224.dino"
    resize: int = Field(256, ge=8)
    crop: int = Field(224, ge=8)


class Encoders(Section):
    """What images and prompts are measured with."""

    clip: Clip = Clip()
    dino: Dino = Dino()


class Fetch(Section):
    """Which concepts. An empty list takes all that the dataset has."""

    dataset: str = "folder"  # one of persres/datasets
    # dataset: folder: holds one folder of photos and a concept.json per concept; the two benchmarks: where their files lie or
    # are downloaded to, .work/datasets/<dataset> if not said
    folder: str | None = None
    sha256: dict[Archive, Sha256] = Field(
        {}
    )  # pins a benchmark's archive; without it the digest is recorded and printed
    concepts: tuple[str, ...] = Field((), strict=False)
    references: int = Field(5, ge=1)  # mini world: pictures of each concept to learn from
    held_out: int = Field(5, ge=0)  # mini world: further pictures, never trained on
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> Fetch:
        twice = sorted({c for c in self.concepts if self.concepts.count(c) > 1})
        if twice:
            raise ValueError(f"concept named twice: {', '.join(twice)}")
        if self.dataset == "folder" and not self.folder:
            raise ValueError("dataset: folder needs fetch.folder, the folder that holds one folder per concept")
        return self


class ZeroShotClassSettings(Section):
    """How the class is found by itself (persres/metrics/zero_shot_class.py)."""

    templates: tuple[str, ...] = Field(
        ("{}", "a photo of a {}"), min_length=1, strict=False
    )  # put to CLIP's text tower
    diffusion_classifier: bool = (
        True  # the base model judges the likeliest names; else photos, prompts and WordNet alone
    )
    prompt: str = "a photo of a {}"  # what it judges them in
    num_candidates: int = Field(8, ge=1)  # names that it judges
    noise_levels: int = Field(4, ge=1)  # noise levels of each photo
    batch_size: int = Field(8, ge=1)


class MacroClass(Section):
    """Paper appendix B. ``candidates`` is ``wordnet`` or a text file with one noun a line."""

    source: Literal["dataset", "wordnet", "zero_shot"] = "dataset"
    candidates: str = "wordnet"
    nearest: bool = False  # look for the nearest noun even where the dataset's class is used, and report it
    template: str = "{}"  # how a candidate is put to the CLIP text tower
    batch_size: int = Field(512, ge=1)
    zero_shot: bool = False  # find the class too where another is used, and report it
    zero_shot_settings: ZeroShotClassSettings = ZeroShotClassSettings()

    @property
    def uses_nouns(self) -> bool:
        """Whether CLIP is asked for nouns at all."""
        return self.nearest or self.uses_zero_shot or self.source == "wordnet"

    @property
    def uses_zero_shot(self) -> bool:
        """Whether the class is found by itself, to use or to report."""
        return self.zero_shot or self.source == "zero_shot"


class ClassImageSettings(Section):
    """How the base model draws images of a class, for the variants that learn some beside the photos."""

    steps: int = Field(50, ge=1, le=1000)
    cfg_scale: float = Field(6.0, ge=1)


class ClassImageRequest(Section):
    """Images of its class that a variant learns beside the photos: drawn under ``prompt``, or real ones of a ``folder``."""

    prompt: str
    count: int
    folder: str | None = None


class VariantSettings(Section):
    """What every method's settings have. A method's file adds its own, and names itself in ``method``."""

    method: str
    concepts: int | None = Field(None, ge=1)  # learn only so many, spread evenly over the names; none: all
    class_source: ClassSource = "selected"  # ablation (table 4): whose macro class the prompt names
    steps: int = Field(150, ge=1)
    batch_size: int = Field(4, ge=1)
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    seed: int = 0
    checkpoint_every: int = Field(50, ge=1)

    def class_images(self) -> ClassImageRequest | None:
        """The class images that it asks for."""
        return None

    def lacks(self, sampling: SamplingConfig) -> str | None:
        """Why it can't be drawn like this, or None."""
        return None


@dataclass(frozen=True)
class SettingsTypes:
    """What the layers above know and this file doesn't: settings' types by method's name, the method that a variant without
    ``method`` is of, the datasets, and those of them that have a judge."""

    methods: Mapping[str, type[VariantSettings]]
    default: str
    datasets: frozenset[str] = frozenset()
    judged: frozenset[str] = frozenset()


class Train(Section):
    """``variants`` are sparse differences from their method's defaults. What is said here beside ``class_images`` and
    ``variants`` holds for all variants of the default method, which is the paper's own."""

    class_images: ClassImageSettings = ClassImageSettings()
    default: SerializeAsAny[VariantSettings]  # of the default method, as said for the whole section
    variants: dict[Name, SerializeAsAny[VariantSettings]]

    @model_validator(mode="before")
    @classmethod
    def _typed(cls, raw: Any, info: ValidationInfo) -> Any:
        known: SettingsTypes | None = (info.context or {}).get("known")
        if not isinstance(raw, dict) or known is None:
            return raw
        own = {key: raw[key] for key in ("class_images",) if key in raw}
        said = {key: value for key, value in raw.items() if key not in ("class_images", "default", "variants")}
        shared = dict(raw.get("default", {})) | said
        typed, problems = {}, _problems(known.methods[known.default], shared)
        for name, sparse in raw.get("variants", {known.default: {}}).items():
            found = sparse if isinstance(sparse, VariantSettings) else _variant(name, sparse, shared, known, problems)
            if found is not None:
                typed[name] = found
        if problems:
            raise _paths(problems)
        return own | {"default": known.methods[known.default](**shared), "variants": typed}

    def variant(self, name: str) -> VariantSettings:
        """The typed settings of one variant."""
        return self.variants[name]


def _problems(settings: type[VariantSettings], raw: dict[str, Any]) -> list[str]:
    try:
        settings(**raw)
        return []
    except ValidationError as error:
        return problem_lines(error)


def _variant(name: str, sparse: Any, shared: dict, known: SettingsTypes, problems: list[str]) -> VariantSettings | None:
    """One variant's typed settings; what is wrong with it goes to ``problems``."""
    if not isinstance(sparse, dict):
        problems.append(f"variants.{name}: a mapping of settings is wanted, {{}} for the defaults")
        return None
    method = sparse.get("method", known.default)
    if method not in known.methods:
        problems.append(f"variants.{name}.method: no method {method!r}; one of {', '.join(known.methods)}")
        return None
    try:
        return known.methods[method](**((shared if method == known.default else {}) | sparse))
    except ValidationError as error:
        own = [line for line in problem_lines(error) if line.split(":")[0].split(".")[0] in sparse or not shared]
        problems += [f"variants.{name}.{line}" for line in own]
        return None


class SamplingConfig(Section):
    """One way to sample (paper 3.3 and 4.3). ``variant`` names a training variant; none is the base model."""

    variant: str | None = None
    strength: float = Field(1.0, ge=0)  # times ΔW; 0 leaves V* alone in the prompt
    lag: bool | Literal["auto"] = False  # true: the paper's masks, but for what the next six say; auto: ours
    mask: Literal["median", "otsu", "soft", "quantile"] = "median"  # how a map of attention is cut (paper: median)
    mask_area: float = Field(0.5, gt=0, lt=1)  # quantile: share of the picture that is marked
    # whose attention masks all blocks: none, each its own (paper); confident, all blocks, weighted by how sure their maps are
    mask_blocks: Annotated[tuple[str, ...], Field(strict=False)] | Literal["confidence_weighted"] = ()
    mask_smooth: float = Field(0.0, ge=0, lt=1)  # share of the map of the steps before that is kept
    mask_control: Literal["disk", "random", "inverted"] | None = None  # the same area, without looking
    mask_when: Literal["always", "scenes", "high_confidence"] = (
        "always"  # scenes: not where the prompt asks for another look
    )
    wrong_concept: bool = False  # a control: the next concept's residual in place of its own
    uncond_rule: Literal["mask", "base", "full"] = "mask"  # what the unconditional branch gets under LAG
    steps: int = Field(50, ge=1, le=1000)
    cfg_scale: float = Field(6.0, ge=1)
    # whose macro class the prompt names (table 4); noise and scores keep the chosen one
    class_source: ClassSource = "selected"
    images_per_prompt: int = Field(50, ge=1)
    prompts: int | None = Field(None, ge=1)  # per concept, spread evenly over the groups; none takes all
    seed: int = 0

    @model_validator(mode="after")
    def _lag(self) -> SamplingConfig:
        if self.lag and self.variant is None:
            raise ValueError("lag: true needs a residual to localise; say variant: <a training variant>")
        said = [
            name
            for name, field in SamplingConfig.model_fields.items()
            if name.startswith("mask") and getattr(self, name) != field.default
        ]
        if said and self.lag is not True:
            raise ValueError(f"{', '.join(said)}: no effect without lag: true (lag: auto has masks of its own)")
        if self.mask_area != 0.5 and self.mask != "quantile":
            raise ValueError("mask_area has no effect without mask: quantile")
        if self.mask_when == "high_confidence" and self.mask_blocks != "confidence_weighted":
            raise ValueError("mask_when: sure asks the blocks' confidence; say mask_blocks: confident")
        if self.variant is None and (self.wrong_concept or self.strength != 1.0):
            raise ValueError("other_concept and strength need something learned; say variant: <a training variant>")
        return self


class Sample(SamplingConfig):
    """Defaults for all configs, and the configs as sparse differences from them."""

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
            raise _paths(problems)
        return self

    def config(self, name: str) -> SamplingConfig:
        """The typed settings of one config."""
        shared = {k: v for k, v in self.model_dump().items() if k != "configs"}
        return SamplingConfig(**(shared | self.configs[name]))


class Score(Section):
    """``judge`` is a folder with the mini world's judge, which tells object from background."""

    attribute_classifier: str | None = None
    batch_size: int = Field(64, ge=1)


class Tables(Section):
    """Bootstrap over concepts, and what the sheets show."""

    bootstrap: int = Field(10_000, ge=100)
    seed: int = 0
    sheet_scale: int = Field(1, ge=1)  # pixels a picture's pixel takes on a sheet
    # which methods stand in which of the paper's tables, and the name of their row there
    rows: dict[Literal["table1", "table3", "table4", "table5"], dict[Name, str]] = Field({})


class Runtime(Section):
    """Where and how fast. Nothing here changes a result beyond float tolerance."""

    workers: int = Field(1, ge=0)  # processes; 0 takes one per core
    device: str = "auto"
    sample_batch: int = Field(8, ge=1)
    # concepts that train in one pass, where their method can; auto: as many as memory and workers leave room for
    concepts_per_batch: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    gradient_checkpointing: bool = False  # train with gradient checkpointing: less memory, more time
    cpu_offload: bool = False  # text towers and autoencoder wait on the CPU while they have nothing to do


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
    def _together(self, info: ValidationInfo) -> Profile:
        """What no section can see by itself."""
        known: SettingsTypes | None = (info.context or {}).get("known")
        problems = [line for name in self.sample.configs for line in self._method_problems(name)]
        for table, rows in self.tables.rows.items():
            unknown = [name for name in rows if name not in self.sample.configs]
            problems += [f"tables.rows.{table}.{name}: no such config in sample.configs" for name in unknown]
        if known is not None and self.fetch.dataset not in known.datasets:
            problems.append(
                f"fetch.dataset: no dataset {self.fetch.dataset!r}; one of {', '.join(sorted(known.datasets))}"
            )
        elif (
            known is not None and self.score.attribute_classifier is not None and self.fetch.dataset not in known.judged
        ):
            problems.append(
                f"score.attribute_classifier: no judge reads pictures of dataset {self.fetch.dataset} (but of {', '.join(sorted(known.judged))});"
                " leave it out"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _method_problems(self, name: str) -> list[str]:
        """What a method's settings ask of a variant that it can't give."""
        sampling = self.sample.config(name)
        if sampling.variant is None:
            return []
        if sampling.variant not in self.train.variants:
            return [no_variant(name, sampling.variant, list(self.train.variants))]
        lacking = self.train.variant(sampling.variant).lacks(sampling)
        return [] if lacking is None else [f"sample.configs.{name}.{lacking}"]


def no_variant(method: str, variant: str, variants: list[str]) -> str:
    """What is said of a method of a variant that is not there."""
    return f"sample.configs.{method}.variant: no training variant {variant!r}; one of {', '.join(variants)}"


def _paths(problems: list[str]) -> PydanticCustomError:
    """One error of several lines, each with the rest of its path before it."""
    return PydanticCustomError("paths", "{lines}", {"lines": "\n".join(problems)})


def problem_lines(error: ValidationError) -> list[str]:
    """One line a problem, each with its path in the file."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown parameter; docs/development.md says where the known ones stand"
        for line in message.split("\n"):
            lines.append(f"{where}{'.' if item['type'] == 'paths' else ': '}{line}" if where else line)
    return lines
