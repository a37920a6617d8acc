"""A pipeline's call with residuals, everywhere or inside LAG's masks."""

from __future__ import annotations

# isort: split
import inspect
import math
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from torch import nn

from persres.errors import PersresError
from persres.models.call_hooks import OutsideCalls, unwrapped
from persres.pipeline_mixins.prompts import call_scale, prompt_list
from persres.prompts import fill_each
from persres.residuals.bank import residual_hooks, stack_banks
from persres.residuals.loaded import Residual, check_maskable, check_subject
from persres.residuals.lora import Lora
from persres.sampling.lag import MaskRule, check_uncond_rule, lag_hooks
from persres.sampling.mask_config import MaskConfig, mask_config_of, masks_prompt
from persres.sampling.masked_lora import masked_lora_hooks
from persres.sampling.pipeline_passes import PipelinePasses
from persres.sampling.samplers import scheduled
from persres.seeding import generator

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()  # one call at a time for each U-Net


@dataclass
class PersonalizedOutput(BaseOutput):
    """Output of the pipeline. ``masks``: with ``return_masks`` LAG's masks averaged over blocks and steps, float [n, h, w] at the
    latents' size; of K concepts [n, K, h, w]."""

    images: Any
    nsfw_content_detected: list[bool] | None = None
    masks: torch.Tensor | None = None


class ResidualCallMixin:
    """Samples with the active residuals; diffusers' class makes every U-Net pass."""

    def __call__(
        self,
        *arguments: Any,
        lag: bool | str | MaskConfig = False,
        strength: float | None = None,
        uncond_rule: str = "mask",
        return_masks: bool = False,
        **named: Any,
    ) -> Any:
        """Sample with the active residual or residuals; without one, as diffusers' class does.

        Args:
            prompt (`str` or `list[str]`):
                Contains V* and its class (`residuals[name].phrase`), or a LoRA's subject.
            lag (`bool`, `str` or [`MaskConfig`], *optional*, defaults to `False`):
                Restricts the residual to the region where V* and its class have attention; the prompt must then name both. `True` uses
                the paper's masks, `"auto"` ours, a `persres.sampling.mask_config.MaskConfig` any other. A LoRA is restricted by the
                attention of its subject's words, in all of its layers.
            strength (`float`, *optional*, defaults to 1):
                Scales the residual; 0 is the base model with V* in its prompt. `cross_attention_kwargs={"scale": …}` does so too. In
                image-to-image and inpainting `strength` is diffusers' own.
            uncond_rule (`str`, *optional*, defaults to `"mask"`):
                The unconditional branch under LAG: its partner's `mask`, `base` (no residual) or `full`.
            return_masks (`bool`, *optional*, defaults to `False`):
                Return LAG's masks too.
            arguments, named (*optional*):
                Arguments of diffusers' class: `negative_prompt`, `generator`, `num_images_per_prompt`, `latents`,
                `callback_on_step_end`, `output_type` …

        Returns:
            The output of diffusers' class, or with `return_masks` a [`PersonalizedOutput`].

        Raises PersresError where LAG has no prompt text to find the concept in, or nothing is loaded. Calls with one U-Net run one after
        another, from whatever thread.

        Examples:

        ```py
        >>> pipe("a photo of a <v*> dog on the moon", lag="auto", num_inference_steps=50, guidance_scale=6.0).images[0]
        ```
        """
        plain = super().__call__
        if strength is not None and "strength" in inspect.signature(plain).parameters:
            named["strength"], strength = strength, None
        call = inspect.signature(plain).bind(*arguments, **named)
        with _locks.setdefault(unwrapped(self.unet), threading.RLock()), OutsideCalls(), ExitStack() as stack:
            residuals = self._acting()
            if not residuals:
                if lag or return_masks:
                    raise PersresError("lag needs a residual; call load_residual or set_residual first")
                return plain(*call.args, **call.kwargs)
            check_uncond_rule(uncond_rule)
            self._check_steps(call.arguments)
            scale = self._scale(strength, call.arguments)
            rule = self._prepared(residuals, call.arguments, lag, uncond_rule)
            if rule is not None:
                rule.record = return_masks
            _isolate_callbacks(call.arguments)
            passes = self._enter(stack, residuals, rule, scale)
            output = plain(*call.args, **call.kwargs)
        return self._with_masks(output, passes) if return_masks else output

    def check_call(self, prompts: list[str], lag: bool | str | MaskConfig, steps: int) -> None:
        """Check what calls with these prompts would fail at, before the first one.

        Raises PersresError where the schedule is not possible, or the text encoder would not read a concept that must be located.
        """
        self._check_steps({"num_inference_steps": steps})
        residuals = self._acting()
        if residuals and (lag or self.multi_concept):
            self._positions(residuals, prompts)

    def _check_steps(self, arguments: dict[str, Any]) -> None:
        """Raises PersresError where the number of steps gives no schedule that begins at noise."""
        steps = arguments.get("num_inference_steps")
        given = any(arguments.get(name) is not None for name in ("timesteps", "sigmas"))
        if steps is not None and not given and hasattr(self.scheduler, "betas"):
            scheduled(self.scheduler, steps)

    @staticmethod
    def _scale(strength: float | None, arguments: dict[str, Any]) -> float:
        """The residual's factor: ``strength`` times diffusers' own argument for it."""
        scale = (arguments.get("cross_attention_kwargs") or {}).get("scale", 1.0)
        for name, value in (("strength", strength), ("cross_attention_kwargs: scale", scale)):
            if value is not None and not math.isfinite(value):
                raise PersresError(f"{name} is {value}; give a finite number")
        return scale * (1.0 if strength is None else strength)

    def _prepared(
        self, residuals: list, arguments: dict[str, Any], lag: bool | str | MaskConfig, uncond_rule: str
    ) -> MaskRule | None:
        """Fill in the prompt's phrases; the rule of LAG's masks, None without LAG. Raises PersresError where a prompt lacks a concept."""
        for name in ("prompt", "prompt_2") if self.multi_concept else ():
            if arguments.get(name) is not None:
                arguments[name] = self._filled(arguments[name])
        if not (lag or self.multi_concept):
            return None
        prompts = prompt_list(arguments.get("prompt")) or self._encoded.of(arguments.get("prompt_embeds"))
        if not lag:
            self._positions(residuals, prompts)
            return None
        each = arguments.get("num_images_per_prompt") or 1
        return self._mask_rule(residuals, prompts, each, mask_config_of(lag), uncond_rule)

    def _filled(self, prompt: str | list[str]) -> str | list[str]:
        """The prompt or prompts with phrases in place of braces."""
        phrases = {name: residual.phrase for name, residual in self.multi_concept.items()}
        texts = [fill_each(text, phrases) if "{" in text else text for text in prompt_list(prompt)]
        return texts[0] if isinstance(prompt, str) else texts

    def _mask_rule(
        self, residuals: list[Residual | Lora], prompts: list[str], each: int, mask_config: MaskConfig, uncond_rule: str
    ) -> MaskRule:
        """LAG's rule for ``each`` images of every prompt, which diffusers orders prompt by prompt."""
        check_maskable(residuals)
        check_subject(residuals[0], prompts)
        device = self._execution_device
        tokens = self._positions(residuals, prompts).repeat_interleave(each, 1).to(device)
        masked = [masks_prompt(mask_config, text, *(r.phrase for r in residuals)) for text in prompts]
        unmasked = ~torch.tensor(masked, device=device).repeat_interleave(each)

        def draws(pixels: int) -> list[torch.Generator]:
            return [generator("mask", i, pixels) for i in range(len(unmasked))]

        return MaskRule(tokens, uncond_rule, mask_config, unmasked, draws=draws)

    def _enter(self, stack: ExitStack, residuals: list, rule: MaskRule | None, scale: float) -> PipelinePasses:
        """Enter the contexts in which the residuals act in the U-Net; returns its passes."""
        lora = residuals[0] if isinstance(residuals[0], Lora) else None
        passes = PipelinePasses(len(residuals), 1.0 if lora else scale, rule)
        stack.callback(call_scale.reset, call_scale.set(scale))
        stack.enter_context(passes.fitted(self.unet))
        if lora:
            stack.enter_context(masked_lora_hooks(self.unet, lora.unet, passes.routing, rule, scale))
            return passes
        if rule is not None:
            stack.enter_context(lag_hooks(self.unet, passes.routing, rule))
        bank = residuals[0].bank if len(residuals) == 1 else stack_banks([residual.bank for residual in residuals])
        stack.enter_context(residual_hooks(self.unet, bank.to(self._execution_device), passes.routing))
        return passes

    def _with_masks(self, output: Any, passes: PipelinePasses) -> Any:
        masks = passes.masks()
        if masks is not None and not self.multi_concept:
            masks = masks[:, 0]
        if isinstance(output, tuple):
            return (*output, masks)
        return PersonalizedOutput(output.images, getattr(output, "nsfw_content_detected", None), masks)


def _isolate_callbacks(arguments: dict[str, Any]) -> None:
    """Let callbacks run outside the call's hooks: they may run the U-Net, in this pipeline or another."""
    callback, older = arguments.get("callback_on_step_end"), arguments.get("kwargs", {})
    if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):  # as diffusers does with these
        arguments["callback_on_step_end_tensor_inputs"] = callback.tensor_inputs
    if callback is not None:
        arguments["callback_on_step_end"] = _isolated(callback)
    if older.get("callback") is not None:  # diffusers' deprecated argument
        older["callback"] = _isolated(older["callback"])


def _isolated(callback: Callable) -> Callable:
    def isolated(*step: Any, **named: Any) -> Any:
        with OutsideCalls():
            return callback(*step, **named)

    return isolated
