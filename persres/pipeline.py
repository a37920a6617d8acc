"""Diffusers' Stable Diffusion pipelines with LAG and residuals that are loaded and switched by name.

    pipe = PersonalizedPipeline.from_pretrained("CompVis/stable-diffusion-v1-4", dtype=torch.float16).to("cuda")
    pipe.load_residual("my_dog.safetensors")
    pipe("a photo of a <v*> dog on the moon", lag=True).images[0]

A LoRA of another tool is loaded with the words that name its subject in prompts, and restricted to the subject in the same way:

    pipe.load_residual("any_lora.safetensors", subject="dog")
    pipe("a photo of a sks dog on the moon", lag="auto").images[0]

Each class is a subclass of a class of diffusers, which samples. Residuals act in a call through hooks of its context
(:mod:`persres.models.call_hooks`), everywhere (paper 3.2) or inside LAG's masks (3.3); no weight and no module changes. So another pipeline
that shares the U-Net draws the base model's images.
"""

from __future__ import annotations

# isort: split
import functools
import inspect
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines import auto_pipeline
from torch import nn

from persres.errors import PersresError
from persres.models.base_model import is_single_file, load_as, load_pipeline
from persres.models.loading import unavailable
from persres.pipeline_mixins.calls import ResidualCallMixin
from persres.pipeline_mixins.loading import ResidualLoaderMixin
from persres.pipeline_mixins.prompts import ResidualPromptMixin

log = logging.getLogger(__name__)
FAMILIES = ("StableDiffusion", "StableDiffusionXL")
TASKS = ("", "Img2Img", "Inpaint")  # what the pipelines of a family start from, beside the prompt


class PersonalizedPipeline(ResidualCallMixin, ResidualPromptMixin, ResidualLoaderMixin):
    """A diffusers pipeline of Stable Diffusion 1.x, 2.x or XL with residuals. See the module's docstring.

    :meth:`from_pretrained`, :meth:`from_single_file` and :meth:`from_pipe` choose the class: text-to-image, image-to-image or inpainting, with
    or without a ControlNet (:data:`PERSONALIZED`). ``active`` is the name of the residual that acts; ``multi_concept`` are the residuals that
    act together after ``set_residuals``, by name. A pipeline made from the parts of another one of these has its residuals.
    """

    def __new__(cls, *arguments: Any, **named: Any) -> Self:
        """Refuses this class itself, which has no pipeline of diffusers in it."""
        if cls is PersonalizedPipeline:
            raise TypeError(
                "PersonalizedPipeline is made by from_pretrained(model), from_single_file(path) or from_pipe(pipe)"
            )
        return super().__new__(cls)

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        if "_plain" in vars(cls):  # else it is a user's subclass, which may have a call of its own
            cls.__call__ = _with_signature(cls)

    @classmethod
    def from_pretrained(cls, model: str | Path, **arguments: Any) -> PersonalizedPipeline:
        """Load a base model.

        Args:
            model (`str` or `Path`):
                A hub name or a folder, of Stable Diffusion 1.x, 2.x or XL.
            arguments (*optional*):
                Arguments of `DiffusionPipeline.from_pretrained`: `dtype`, `variant`, `safety_checker`, `local_files_only` …

        Returns:
            [`PersonalizedPipeline`]: without residuals.

        Raises an error that is a PersresError, OSError and ValueError where the model can't be loaded.
        """
        if cls is PersonalizedPipeline:
            return load_pipeline(model, PERSONALIZED, **arguments)
        try:
            return load_as(cls, model, arguments)
        except PersresError:
            raise
        except (OSError, ValueError) as error:
            raise unavailable("the base model", str(model), error) from error

    @classmethod
    def from_single_file(cls, path: str | Path, **arguments: Any) -> Self:
        """Load a base model from one safetensors file in the original layout; arguments as `from_single_file` of diffusers.

        Raises PersresError where it is no file, and as :meth:`from_pretrained`.
        """
        if not is_single_file(path):
            raise PersresError(f"{path} is not a safetensors file; load a folder or a hub's model with from_pretrained")
        return cls.from_pretrained(path, **arguments)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **arguments: Any) -> PersonalizedPipeline:
        """Make a pipeline from the parts of another, as `DiffusionPipeline.from_pipe`; the precision stays unless `dtype` is given.

        A pipeline of this class carries its residuals over: `AutoPipelineForImage2Image.from_pipe(pipe)` does so too.

        Raises PersresError for a pipeline of another model than Stable Diffusion 1.x, 2.x and XL.
        """
        if cls is PersonalizedPipeline:
            return _counterpart(getattr(pipeline, "_plain", type(pipeline)).__name__).from_pipe(pipeline, **arguments)
        if {"dtype", "torch_dtype"} & set(arguments):
            return super().from_pipe(pipeline, **arguments)
        parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
        dtypes = [part.dtype for part in parts]
        made = super().from_pipe(pipeline, dtype=dtypes[0] if len(set(dtypes)) == 1 else torch.float32, **arguments)
        for part, dtype in zip(parts, dtypes, strict=True):
            part.to(dtype=dtype)
        return made

    @property
    def model(self) -> str | None:
        """The base model's hub name or folder, where it is known."""
        return self.config.get("_name_or_path")

    @property
    def components(self) -> dict[str, Any]:
        """As diffusers'. Raises PersresError where a plain class of another task would leave the active residual out in silence."""
        caller = sys._getframe(1)
        if caller.f_code is DiffusionPipeline.from_pipe.__func__.__code__ and self._acting():
            other = caller.f_locals["pipeline_class"]  # a custom pipeline's, or that of the call
            if not issubclass(type(self), other) and not issubclass(other, PersonalizedPipeline):
                raise PersresError(
                    f"{other.__name__} has no residuals, and {', '.join(self.multi_concept) or self.active} is active; make a pipeline with"
                    " residuals by AutoPipelineFor….from_pipe, or call set_residual(None) first"
                )
        self._gives_parts()
        return super().components

    def save_pretrained(self, save_directory: str | Path, **arguments: Any) -> None:
        """As diffusers', under the name of diffusers' class. Residuals are files of their own and are not saved: that is logged."""
        if self.residuals:
            log.warning("%s: residuals are not saved with the pipeline (%s); keep their files", save_directory, ", ".join(self.residuals))  # fmt: skip
        super().save_pretrained(save_directory, **arguments)

    def to_json_string(self) -> str:
        """The pipeline's config, which any diffusers can load."""
        return super().to_json_string().replace(f'"{type(self).__name__}"', f'"{self._plain.__name__}"')


def _with_signature(cls: type) -> Callable:
    """The class's ``__call__`` with the signature of diffusers' class and the arguments that are ours."""
    call = ResidualCallMixin.__call__
    parameters = inspect.signature(cls._plain.__call__).parameters
    ours = [
        p
        for name, p in inspect.signature(call).parameters.items()
        if p.kind is p.KEYWORD_ONLY and name not in parameters
    ]
    *given, rest = parameters.values()
    every = [*given, *ours, rest] if rest.kind is rest.VAR_KEYWORD else [*given, rest, *ours]

    @functools.wraps(call)
    def signed(self: PersonalizedPipeline, *arguments: Any, **named: Any) -> Any:
        return call(self, *arguments, **named)

    signed.__signature__ = inspect.Signature(every)
    return signed


def _counterpart(name: str) -> type[PersonalizedPipeline]:
    """Our class for the name of a class of diffusers. Raises PersresError for another one."""
    if name not in PERSONALIZED:
        raise PersresError(f"{name} is not supported; use one of {', '.join(PERSONALIZED)}")
    return PERSONALIZED[name]


def _personalized(family: str, control: str, task: str) -> type[PersonalizedPipeline]:
    plain = getattr(diffusers, f"{family}{control}{task}Pipeline")
    about = f"diffusers' {plain.__name__} with residuals; see :class:`PersonalizedPipeline`."
    fields = {"_plain": plain, "__doc__": about, "__module__": __name__}
    made = type(f"Personalized{plain.__name__}", (PersonalizedPipeline, plain), fields)
    globals()[made.__name__] = made  # so that it can be pickled and imported
    return made


# Our class for each of diffusers', by that one's name.
PERSONALIZED: dict[str, type[PersonalizedPipeline]] = {}
_TABLES = dict(
    zip(TASKS, (auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING, auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING, auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING), strict=True)
)  # fmt: skip
for _family in FAMILIES:
    for _control in ("", "ControlNet"):
        for _task in TASKS:
            _made = _personalized(_family, _control, _task)
            PERSONALIZED[_made._plain.__name__] = _made
            _TABLES[_task][f"persres-{_family}{_control}"] = _made  # AutoPipeline….from_pipe of ours
