"""A diffusers Stable Diffusion pipeline with LAG and residuals that are loaded and switched by name.

    pipe = PersonalizedPipeline.from_pretrained("CompVis/stable-diffusion-v1-4", dtype=torch.float16).to("cuda")
    pipe.load_residual("my_dog.safetensors")
    pipe("a photo of a <v*> dog on the moon", lag=True).images[0]

A LoRA of another tool is loaded with the words that name its subject in prompts, and restricted to the subject in the same way:

    pipe.load_residual("any_lora.safetensors", subject="dog")
    pipe("a photo of a sks dog on the moon", lag="auto").images[0]

Everything else goes to the wrapped pipeline: scheduler, negative prompts, generators, callbacks, offloading. After ``set_residuals``
several residuals act in one image, each where its concept is. The wrapped pipeline makes every U-Net pass; hooks add the residuals,
everywhere (paper 3.2) or inside LAG's masks (3.3), and are removed after the call.
"""

from __future__ import annotations

# isort: split
import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import nn

from persres.errors import PersresError
from persres.models.base_model import PIPELINES, SDXL, load_pipeline
from persres.models.loading import unavailable
from persres.models.text_encoding import add_concept_token
from persres.models.weight_patching import TOKEN, patched_weights
from persres.prompts import fill_each
from persres.residuals.bank import residual_hooks, stack_banks
from persres.residuals.loaded import Residual, check_subject, read_trained
from persres.residuals.lora import Lora, read_lora
from persres.sampling.lag import MaskRule, check_uncond_rule, concept_tokens, lag_hooks
from persres.sampling.mask_config import MaskConfig, mask_config_of, masks_prompt
from persres.sampling.masked_lora import masked_lora_hooks, text_encoder_lora
from persres.sampling.multi_concept import check_count
from persres.sampling.pipeline_passes import PipelinePasses
from persres.sampling.samplers import scheduled
from persres.seeding import generator
from persres.versions.repository import Repository
from persres.versions.residual_address import file_of


@dataclass
class PersonalizedOutput(BaseOutput):
    """Output of the pipeline. ``masks``: with ``return_masks`` LAG's masks averaged over blocks and steps, float [n, h, w] at the
    latents' size; of K concepts [n, K, h, w]."""

    images: Any
    nsfw_content_detected: list[bool] | None = None
    masks: torch.Tensor | None = None


class PersonalizedPipeline:
    """A diffusers text-to-image pipeline of Stable Diffusion 1.x, 2.x or XL with residuals. See the module's docstring.

    ``pipe`` is the wrapped pipeline and receives every attribute that this class does not have. ``active`` is the name of the residual
    that acts; ``multi_concept`` are the residuals that act together after ``set_residuals``, by name.
    """

    def __init__(self, pipe: DiffusionPipeline, model: str | None = None) -> None:
        if type(pipe).__name__ not in PIPELINES:
            raise PersresError(f"{type(pipe).__name__} is not supported; use {' or '.join(PIPELINES)}")
        self.pipe, self.model = pipe, model
        self.residuals: dict[str, Residual | Lora] = {}
        self.active: str | None = None
        self.multi_concept: dict[str, Residual] = {}

    @classmethod
    def from_pretrained(cls, model: str | Path, **arguments: Any) -> PersonalizedPipeline:
        """Load a base model.

        Args:
            model (`str` or `Path`):
                A hub name or a folder, of Stable Diffusion 1.x, 2.x or XL.
            arguments (*optional*):
                Arguments of `DiffusionPipeline.from_pretrained`: `dtype`, `safety_checker`, `local_files_only` …

        Returns:
            [`PersonalizedPipeline`]: without residuals.

        Raises PersresError where the model can't be loaded.
        """
        try:
            return cls(load_pipeline(model, **arguments), str(model))
        except (OSError, ValueError) as error:
            raise unavailable("the base model", str(model), error) from error

    def __getattr__(self, name: str) -> Any:
        if name == "pipe":  # missing before __init__, as in a copy being made
            raise AttributeError(name)
        return getattr(self.pipe, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """``pipe.scheduler = …`` sets the wrapped pipeline's."""
        if name in ("pipe", "model", "residuals", "active", "multi_concept"):
            object.__setattr__(self, name, value)
        else:
            setattr(self.pipe, name, value)

    def to(self, *arguments: Any, **named: Any) -> PersonalizedPipeline:
        """As `DiffusionPipeline.to`; returns itself. Residuals move when they are used."""
        self.pipe.to(*arguments, **named)
        return self

    def load_residual(
        self,
        path_or_ref: str | Path,
        name: str | None = None,
        *,
        subject: str | None = None,
        repo: str | Path | Repository | None = None,
        allow_other_base: bool = False,
    ) -> PersonalizedPipeline:
        """Read a residual and activate it.

        Args:
            path_or_ref (`str` or `Path`):
                A safetensors file; or a published residual, as `persres pull` takes it: `"dog7@v3"`, `"ours/dog7@v3"`, or with `repo`
                `"dog7"`, the newest. Pulled files are cached and checked against the digest of their version.
            name (`str`, *optional*):
                The residual's name in this pipeline; defaults to its concept's name, or a LoRA's file name.
            subject (`str`, *optional*):
                Reads any LoRA of Stable Diffusion (PEFT's or kohya's keys): the words of the prompt that name its subject, e.g. "dog".
            repo (`str`, `Path` or [`Repository`], *optional*):
                Where a ref was published: a folder or a git URL; defaults to this folder. A `Repository` can name another DVC remote.
            allow_other_base (`bool`, *optional*, defaults to `False`):
                Accept a residual of other weights: a fine-tuned model with the same layers often works.

        Returns:
            [`PersonalizedPipeline`]: itself.

        Raises PersresError where the file is broken or no residual, can't be pulled, does not fit the model's layers, or was trained on
        another model. A hub's model and a folder can't be compared: a warning is logged.

        Examples:

        ```py
        >>> pipe.load_residual("my_dog.safetensors")
        >>> pipe.load_residual("dog7@v3", repo="https://github.com/you/your-persres")
        >>> pipe.load_residual("any_lora.safetensors", subject="dog")
        ```
        """
        path, unet = file_of(path_or_ref, repo), self.pipe.unet
        if subject is None:
            residual = read_trained(path, unet, self.pipe.text_encoder, None if allow_other_base else self.model)
            name = name or residual.concept
        elif subject.strip():
            residual = read_lora(path, subject.strip(), unet, [encoder for _, encoder in self._towers()])
            name = name or path.stem
        else:
            raise PersresError(
                'subject is empty; pass the words of the prompt that name the LoRA\'s subject, e.g. "dog"'
            )
        self.residuals[name] = residual
        return self.set_residual(name)

    def set_residual(self, name: str | None) -> PersonalizedPipeline:
        """Activate one residual.

        Args:
            name (`str` or `None`):
                A loaded residual's name; `None` is the base model.

        Returns:
            [`PersonalizedPipeline`]: itself. Raises PersresError for an unknown name.
        """
        residual = None if name is None else self._residual(name)
        if isinstance(residual, Residual):
            self._add_token(residual)
        self.active, self.multi_concept = name, {}
        return self

    def set_residuals(self, names: list[str]) -> PersonalizedPipeline:
        """Activate several residuals for one image, each where its concept is.

        Args:
            names (`list[str]`):
                Up to four. Each gets its own V*, `<v1*>`, `<v2*>` … in this order; prompts name them by
                `multi_concept[name].phrase` or in braces, `{1}` or `{my_dog}`.

        Returns:
            [`PersonalizedPipeline`]: itself.

        Raises PersresError for an unknown name, a repeated one, more than four, and residuals of different layers.
        """
        if len(set(names)) != len(names):
            raise PersresError(f"a residual is named twice in {', '.join(names)}; name each once")
        check_count(len(names))
        residuals = {name: self._residual(name) for name in names}
        for name, residual in residuals.items():
            if isinstance(residual, Lora):
                raise PersresError(f"{name} is a LoRA of another tool, which acts alone; activate it with set_residual")
        stack_banks([residual.bank for residual in residuals.values()])  # raises where layers differ
        self.active = None
        self.multi_concept = {name: residual.numbered(i) for i, (name, residual) in enumerate(residuals.items(), 1)}
        for residual in self.multi_concept.values():
            self._add_token(residual)
        return self

    def unload_residual(self, name: str) -> PersonalizedPipeline:
        """Remove a residual; if it was active, the base model is.

        Args:
            name (`str`):
                A loaded residual's name.

        Returns:
            [`PersonalizedPipeline`]: itself. Raises PersresError for an unknown name.
        """
        self._residual(name)
        del self.residuals[name]
        self.active = None if self.active == name else self.active
        self.multi_concept = {} if name in self.multi_concept else self.multi_concept
        return self

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        lag: bool | str | MaskConfig = False,
        strength: float = 1.0,
        uncond_rule: str = "mask",
        return_masks: bool = False,
        **arguments: Any,
    ) -> Any:
        """Sample with the active residual or residuals; without one, as the wrapped pipeline does.

        Args:
            prompt (`str` or `list[str]`):
                Contains V* and its class (`residuals[name].phrase`), or a LoRA's subject.
            lag (`bool`, `str` or [`MaskConfig`], *optional*, defaults to `False`):
                Restricts the residual to the region where V* and its class have attention; the prompt must then name both. `True` uses
                the paper's masks, `"auto"` ours, a `persres.sampling.mask_config.MaskConfig` any other. A LoRA is restricted by the
                attention of its subject's words, in all of its layers.
            strength (`float`, *optional*, defaults to 1):
                Scales the residual; 0 is the base model with V* in its prompt.
            uncond_rule (`str`, *optional*, defaults to `"mask"`):
                The unconditional branch under LAG: its partner's `mask`, `base` (no residual) or `full`.
            return_masks (`bool`, *optional*, defaults to `False`):
                Return LAG's masks too.
            arguments (*optional*):
                Arguments of the wrapped pipeline: `negative_prompt`, `generator`, `num_images_per_prompt`, `latents`,
                `callback_on_step_end`, `output_type` …

        Returns:
            The wrapped pipeline's output, or with `return_masks` a [`PersonalizedOutput`].

        Raises PersresError where LAG has no prompt text to find the concept in, or nothing is loaded.

        Examples:

        ```py
        >>> pipe("a photo of a <v*> dog on the moon", lag="auto", num_inference_steps=50, guidance_scale=6.0).images[0]
        ```
        """
        residuals = list(self.multi_concept.values()) or [self._residual(n) for n in (self.active,) if n is not None]
        if not residuals:
            if lag or return_masks:
                raise PersresError("lag needs a residual; call load_residual or set_residual first")
            return self.pipe(prompt, **arguments)
        check_uncond_rule(uncond_rule)
        if not math.isfinite(strength):
            raise PersresError(f"strength is {strength}; give a finite number")
        self._check_steps(arguments)
        prompt, rule = self._filled(prompt), None
        if lag:
            each = arguments.get("num_images_per_prompt") or 1
            rule = self._mask_rule(residuals, prompt, each, mask_config_of(lag), uncond_rule)
            rule.record = return_masks
        elif self.multi_concept:
            self._tokens(residuals, prompt)  # raises where a prompt lacks a concept
        passes = PipelinePasses(len(residuals), 1.0 if isinstance(residuals[0], Lora) else strength, rule)
        with ExitStack() as stack:
            stack.enter_context(passes.fitted(self.pipe.unet))
            self._enter(stack, residuals, passes, strength)
            output = self.pipe(prompt, **arguments)
        return self._with_masks(output, passes) if return_masks else output

    def check_call(self, prompts: list[str], lag: bool | str | MaskConfig, steps: int) -> None:
        """Check what calls with these prompts would fail at, before the first one.

        Raises PersresError where the schedule is not possible, or the text encoder would not read a concept that must be located.
        """
        self._check_steps({"num_inference_steps": steps})
        residuals = list(self.multi_concept.values()) or [self._residual(n) for n in (self.active,) if n is not None]
        if residuals and (lag or self.multi_concept):
            self._tokens(residuals, prompts)

    def _check_steps(self, arguments: dict[str, Any]) -> None:
        """Raises PersresError where the number of steps gives no schedule that begins at noise."""
        steps = arguments.get("num_inference_steps")
        given = any(arguments.get(name) is not None for name in ("timesteps", "sigmas"))
        if steps is not None and not given and "beta_schedule" in self.pipe.scheduler.config:
            scheduled(self.pipe.scheduler, steps)

    def _residual(self, name: str) -> Residual | Lora:
        if name not in self.residuals:
            raise PersresError(f"no residual {name!r} is loaded; loaded are {', '.join(self.residuals) or 'none'}")
        return self.residuals[name]

    def _towers(self) -> list[tuple[Any, nn.Module]]:
        suffixes = ("", "_2") if type(self.pipe).__name__ == SDXL else ("",)
        return [(getattr(self.pipe, f"tokenizer{s}"), getattr(self.pipe, f"text_encoder{s}")) for s in suffixes]

    def _add_token(self, residual: Residual) -> None:
        for tokenizer, encoder in self._towers():
            add_concept_token(tokenizer, encoder, residual.token, residual.rare_token)

    def _filled(self, prompt: Any) -> Any:
        """The prompt or prompts with phrases in place of braces, under several residuals."""
        if not self.multi_concept or prompt is None:
            return prompt
        phrases = {name: residual.phrase for name, residual in self.multi_concept.items()}
        texts = [fill_each(text, phrases) if "{" in text else text for text in _prompt_list(prompt)]
        return texts[0] if isinstance(prompt, str) else texts

    def _tokens(self, residuals: list[Residual | Lora], prompt: Any) -> torch.Tensor:
        """The positions of every residual's phrase in every prompt, float [K, n, length]."""
        if prompt is None:
            raise PersresError(
                "LAG and several residuals locate concepts in the prompt; pass prompt, not prompt_embeds"
            )
        phrases, prompts = tuple(residual.phrase for residual in residuals), _prompt_list(prompt)
        return concept_tokens(self.pipe.tokenizer, prompts, [phrases] * len(prompts))

    def _mask_rule(
        self, residuals: list[Residual | Lora], prompt: Any, each: int, mask_config: MaskConfig, uncond_rule: str
    ) -> MaskRule:
        """LAG's rule for ``each`` images of every prompt, which diffusers orders prompt by prompt."""
        device, prompts = self.pipe._execution_device, [] if prompt is None else _prompt_list(prompt)
        check_subject(residuals[0], prompts)
        tokens = self._tokens(residuals, prompt).repeat_interleave(each, 1).to(device)
        masked = [masks_prompt(mask_config, text, *(r.phrase for r in residuals)) for text in prompts]
        unmasked = ~torch.tensor(masked, device=device).repeat_interleave(each)

        def draws(pixels: int) -> list[torch.Generator]:
            return [generator("mask", i, pixels) for i in range(len(unmasked))]

        return MaskRule(tokens, uncond_rule, mask_config, unmasked, draws=draws)

    def _enter(self, stack: ExitStack, residuals: list, passes: PipelinePasses, strength: float) -> None:
        """Enter the contexts in which the residuals act."""
        unet, device = self.pipe.unet, self.pipe._execution_device
        if isinstance(residuals[0], Lora):
            encoders = [encoder for _, encoder in self._towers()]
            stack.enter_context(text_encoder_lora(encoders, residuals[0].towers, strength))
            stack.enter_context(masked_lora_hooks(unet, residuals[0].unet, passes.routing, passes.rule, strength))
            return
        for residual in residuals:
            if residual.vector is not None:
                token_id = self.pipe.tokenizer.convert_tokens_to_ids(residual.token)
                stack.enter_context(patched_weights(self.pipe, {TOKEN: residual.vector.to(device)}, token_id))
        if passes.rule is not None:
            stack.enter_context(lag_hooks(unet, passes.routing, passes.rule))
        bank = residuals[0].bank if len(residuals) == 1 else stack_banks([residual.bank for residual in residuals])
        stack.enter_context(residual_hooks(unet, bank.to(device), passes.routing))

    def _with_masks(self, output: Any, passes: PipelinePasses) -> Any:
        masks = passes.masks()
        if masks is not None and not self.multi_concept:
            masks = masks[:, 0]
        if isinstance(output, tuple):
            return (*output, masks)
        return PersonalizedOutput(output.images, getattr(output, "nsfw_content_detected", None), masks)


def _prompt_list(prompt: str | list[str]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else list(prompt)
