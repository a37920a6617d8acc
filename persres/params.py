"""``params.yaml``, typed at the edge: unknown keys refused, every problem in one message.

The file holds ``profile`` and one mapping per profile with sections named after the stages, plus
``base`` (the frozen model), ``encoders`` and ``runtime`` (where and how fast, never what). Defaults
are the paper's values wherever the paper states one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from persres.errors import PersresError
from persres.methods.settings import Section, Settings

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Archive = Literal["benchmark_dataset.zip", "custom-diffusion-main.zip", "dreambooth-main.zip"]

ClassSource = Literal["chosen", "dataset", "wordnet"]  # what macro_class decided, the dataset's word, the nearest noun


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

    dataset: Literal["miniworld", "folder", "customconcept101", "dreambooth"] = "folder"
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


class MacroClass(Section):
    """Paper appendix B. ``candidates`` is ``wordnet`` or a text file with one noun a line."""

    source: Literal["dataset", "wordnet"] = "dataset"
    candidates: str = "wordnet"
    nearest: bool = False  # look for the nearest noun even where the dataset's class is used, and report it
    template: str = "{}"  # how a candidate is put to the CLIP text tower
    batch_size: int = Field(512, ge=1)


class Variant(Section):
    """One way to train (paper 3.2 and 4.1)."""

    concepts: int | None = Field(None, ge=1)  # learn only so many, spread evenly over the names; none: all
    target: Literal["proj_out", "proj_in", "attn_kv"] = "proj_out"  # the other two are ablations
    rank_ratio: float = Field(0.05, gt=0)
    rank: int | None = Field(None, ge=1)  # a fixed rank in place of the ratio (table 5)
    init: Literal["scaled_normal", "normal", "lora"] = "scaled_normal"
    init_gain: float = Field(0.01, gt=0)
    steps: int = Field(150, ge=1)
    batch_size: int = Field(4, ge=1)
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    prompt: str = "a photo of a {}"
    name_class: bool = True  # ablation: false names the concept by V* alone, here and in sampling
    class_source: ClassSource = "chosen"  # ablation (table 4): whose macro class the prompt names
    prior_images: int = Field(0, ge=0)  # ablation: class images by the base model, learned beside the photos
    prior_weight: float = Field(1.0, ge=0)
    train_token: bool = False  # ablation: V*'s embedding learns too
    seed: int = 0
    checkpoint_every: int = Field(50, ge=1)


_RIVAL: TypeAdapter[Settings] = TypeAdapter(Annotated[Settings, Field(discriminator="method")])


class Train(Variant):
    """Defaults for all variants of ours, and the variants as sparse differences from them. A variant with ``method`` is a
    rival: it starts from that method's own defaults (persres/methods/settings.py)."""

    variants: dict[Name, dict[str, Any]] = Field({"ours": {}})

    def variant(self, name: str) -> Variant | Settings:
        """The typed settings of one variant."""
        if "method" in self.variants[name]:
            return _RIVAL.validate_python(self.variants[name])
        shared = {k: v for k, v in self.model_dump().items() if k != "variants"}
        return Variant(**(shared | self.variants[name]))


class Drawing(Section):
    """One way to sample (paper 3.3 and 4.3). ``residual`` names a training variant; none is the base model."""

    residual: str | None = None
    strength: float = Field(1.0, ge=0)  # times ΔW; 0 leaves V* alone in the prompt
    lag: bool = False
    mask: Literal["attention", "inverted", "random", "disk"] = "attention"  # all but the first are controls
    mask_blocks: tuple[str, ...] = Field(
        (), strict=False
    )  # whose attention masks all blocks; none: each its own (paper)
    other_concept: bool = False  # a control: the next concept's residual in place of its own
    uncond_rule: Literal["mask", "base", "full"] = "mask"  # what the unconditional branch gets under LAG
    steps: int = Field(50, ge=1, le=1000)
    cfg_scale: float = Field(6.0, ge=1)
    class_source: ClassSource = (
        "chosen"  # whose macro class the prompt names (table 4); noise and scores keep the chosen one
    )
    images_per_prompt: int = Field(50, ge=1)
    prompts: int | None = Field(None, ge=1)  # per concept, spread evenly over the groups; none takes all
    seed: int = 0

    @model_validator(mode="after")
    def _lag(self) -> Drawing:
        if self.lag and self.residual is None:
            raise ValueError("lag: true needs a residual to localise; say residual: <a training variant>")
        if (self.mask != "attention" or self.mask_blocks) and not self.lag:
            raise ValueError("mask and mask_blocks have no effect without lag: true")
        if self.residual is None and (self.other_concept or self.strength != 1.0):
            raise ValueError("other_concept and strength need a residual; say residual: <a training variant>")
        return self


class Sample(Drawing):
    """Defaults for all methods, and the methods as sparse differences from them."""

    methods: dict[Name, dict[str, Any]] = Field(
        {"base": {}, "ours": {"residual": "ours"}, "ours_lag": {"residual": "ours", "lag": True}}
    )

    def method(self, name: str) -> Drawing:
        """The typed settings of one method."""
        shared = {k: v for k, v in self.model_dump().items() if k != "methods"}
        return Drawing(**(shared | self.methods[name]))


class Score(Section):
    """``judge`` is a folder with the mini world's judge, which tells object from background."""

    judge: str | None = None
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
    offload: bool = False  # text towers and autoencoder wait on the CPU while they have nothing to do


class Profile(Section):
    """All sections of one profile."""

    base: Base = Base()
    encoders: Encoders = Encoders()
    fetch: Fetch
    macro_class: MacroClass = MacroClass()
    train: Train = Train()
    sample: Sample = Sample()
    score: Score = Score()
    tables: Tables = Tables()
    runtime: Runtime = Runtime()

    @model_validator(mode="after")
    def _variants(self) -> Profile:
        problems = []
        for section, names, typed in (("train.variants", self.train.variants, self.train.variant),
                                      ("sample.methods", self.sample.methods, self.sample.method)):  # fmt: skip
            for name in names:
                try:
                    typed(name)
                except ValidationError as error:
                    problems += [f"{section}.{name}.{line}" for line in _lines(error)]
        for name, sparse in self.sample.methods.items():
            wanted = sparse.get("residual", self.sample.residual)
            if wanted is not None and wanted not in self.train.variants:
                problems.append(
                    f"sample.methods.{name}.residual: no training variant {wanted!r}; one of {', '.join(self.train.variants)}"
                )
            elif wanted is not None and not problems:
                problems += self._fits(name, wanted)
        for table, rows in self.tables.rows.items():
            unknown = [name for name in rows if name not in self.sample.methods]
            problems += [f"tables.rows.{table}.{name}: no such method in sample.methods" for name in unknown]
        if self.score.judge is not None and self.fetch.dataset != "miniworld":
            problems.append("score.judge: the judge reads pictures of the mini world only; leave it out")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _fits(self, method: str, wanted: str) -> list[str]:
        """What a method asks of a variant that the variant can't give."""
        drawing, variant = self.sample.method(method), self.train.variant(wanted)
        target = variant.target if isinstance(variant, Variant) else variant.method
        where = f"sample.methods.{method}"
        problems = []
        if drawing.lag and target != "proj_out":
            problems.append(f"{where}.lag: masks act on residuals of proj_out, but {wanted} trains {target}")
        if drawing.strength != 1.0 and not isinstance(variant, Variant):
            problems.append(f"{where}.strength: only residuals can be scaled, and {wanted} is {target}")
        return problems


def _lines(error: ValidationError) -> list[str]:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown parameter; see persres/params.py for the known ones"
        for line in message.split("\n"):
            lines.append(f"{where}: {line}" if where else line)
    return lines


def load_params(path: Path = Path("params.yaml"), profile: str | None = None) -> Profile:
    """The chosen profile. Raises PersresError with all problems in one message."""
    if not path.exists():
        raise PersresError(f"{path} not found; run from the folder that holds it")
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise PersresError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict) or "profile" not in raw:
        raise PersresError(f"{path}: the key 'profile' is missing; it names the profile to run")
    name = profile or raw["profile"]
    if name not in raw or name == "profile":
        known = ", ".join(sorted(set(raw) - {"profile"}))
        raise PersresError(f"{path}: no profile {name!r}; one of {known}")
    try:
        return Profile.model_validate(raw[name] or {})
    except ValidationError as error:
        problems = "\n".join(f"  {name}.{line}" for line in _lines(error))
        raise PersresError(f"{path} has these problems:\n{problems}") from error
