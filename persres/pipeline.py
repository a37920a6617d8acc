"""LAG for people who live in diffusers: a Stable Diffusion pipeline with residuals that are loaded and switched by name.

    pipe = PersonalizedPipeline.from_pretrained("CompVis/stable-diffusion-v1-4", dtype=torch.float16).to("cuda")
    pipe.load_residual("my_dog.safetensors")
    pipe("a photo of a <v*> dog on the moon", lag=True).images[0]

Another tool's LoRA is loaded with the words that name its subject in prompts, and confined to it in the same way:

    pipe.load_residual("any_lora.safetensors", subject="dog")
    pipe("a photo of a sks dog on the moon", lag="auto").images[0]

It is called like the pipeline inside and gives on to it whatever it does not know: scheduler, negative prompts, generators,
callbacks, off-loading. Several residuals act in one picture after ``set_residuals``, each where its own concept is. Every pass through the
U-Net is the pipeline's own; hooks add the residual, everywhere (paper 3.2) or inside LAG's masks (3.3), and leave with the call.
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import nn

from persres.errors import PersresError
from persres.models.diffusion import PIPELINES, SDXL
from persres.models.loading import model_identity, unavailable
from persres.models.text_encoding import add_concept_token, concept_positions
from persres.models.weight_patching import TOKEN, patched_weights
from persres.package_paths import located
from persres.prompts import fill_each, numbered
from persres.residuals.bank import ResidualBank, residual_hooks
from persres.residuals.file import load_residual
from persres.residuals.header import check_base
from persres.residuals.lora import Lora, read_lora
from persres.sampling.lag import MaskRule, guidance_rule, lag_hooks
from persres.sampling.mask_config import MaskConfig, mask_config_of, masks_prompt
from persres.sampling.masked_lora import masked_lora_hooks, text_encoder_lora
from persres.sampling.multi_concept import check_count, multi_concept_hooks, stack_banks
from persres.sampling.pipeline_passes import MultiConceptPasses, Passes, mean_masks
from persres.seeding import generator
from persres.versions.repository import Repository
from persres.versions.residual_address import file_of


@dataclass
class PersonalizedOutput(BaseOutput):
    """The pipeline's pictures; with ``return_masks`` LAG's masks averaged over blocks and steps, float [n, h, w] at the latents'
    size; of K concepts [n, K, h, w]."""

    images: Any
    nsfw_content_detected: list[bool] | None = None
    masks: torch.Tensor | None = None


@dataclass(frozen=True)
class Residual:
    """One concept, loaded. ``phrase`` stands for it in prompts: V* and its class."""

    bank: ResidualBank
    token: str
    rare_token: str
    phrase: str
    vector: torch.Tensor | None
    info: dict[str, Any]


class PersonalizedPipeline:
    """A diffusers text-to-image pipeline of Stable Diffusion 1.x, 2.x or XL with residuals. See the module's docstring.

    ``pipe`` is the pipeline inside; everything that this class does not have is asked of it.
    """

    def __init__(self, pipe: DiffusionPipeline, model: str | None = None) -> None:
        if type(pipe).__name__ not in PIPELINES:
            raise PersresError(f"{type(pipe).__name__} is no text-to-image pipeline of {', '.join(PIPELINES)}")
        self.pipe, self.model = pipe, model
        self.residuals: dict[str, Residual | Lora] = {}
        self.active: str | None = None
        self.together: dict[str, Residual] = {}  # several that act at once, each with a token of its own

    @classmethod
    def from_pretrained(cls, model: str | Path, **arguments: Any) -> PersonalizedPipeline:
        """Load a base model.

        Args:
            model (`str` or `Path`):
                A hub name or a folder, of Stable Diffusion 1.x, 2.x or XL.
            arguments (*optional*):
                Whatever `DiffusionPipeline.from_pretrained` takes: `dtype`, `safety_checker`, `local_files_only` …

        Returns:
            [`PersonalizedPipeline`]: with no residual yet.

        Raises PersresError where the model can't be had.
        """
        try:
            return cls(DiffusionPipeline.from_pretrained(located(str(model)), **arguments), str(model))
        except (OSError, ValueError) as error:
            raise unavailable("the base model", str(model), error) from error

    def __getattr__(self, name: str) -> Any:
        if name == "pipe":  # not there before __init__, as in a copy being made
            raise AttributeError(name)
        return getattr(self.pipe, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """``pipe.scheduler = …`` is meant for the pipeline inside."""
        own = name in ("pipe", "model", "residuals", "active", "together")
        (object.__setattr__ if own else setattr)(self if own else self.pipe, name, value)

    def to(self, *arguments: Any, **named: Any) -> PersonalizedPipeline:
        """As `DiffusionPipeline.to`; returns itself. Residuals follow when they are drawn with."""
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
        """Read a residual and make it the active one.

        Args:
            path_or_ref (`str` or `Path`):
                A safetensors file; or a published residual, as `persres pull` knows it: `"dog7@v3"`, `"ours/dog7@v3"`, or with `repo`
                `"dog7"`, the newest. What was pulled is kept in the cache and checked against its version's digest.
            name (`str`, *optional*):
                What to call it here; if not given, its concept's name, or a LoRA file's.
            subject (`str`, *optional*):
                Reads any LoRA of Stable Diffusion (PEFT's or kohya's keys): the words of the prompt that name what it learned, e.g. "dog".
            repo (`str`, `Path` or [`Repository`], *optional*):
                Where a ref was published: a folder or a git URL; if not given, this folder. A `Repository` can name another DVC remote.
            allow_other_base (`bool`, *optional*, defaults to `False`):
                Take a residual though it was trained on other weights: a fine-tuned model of the same layers often works.

        Returns:
            [`PersonalizedPipeline`]: itself.

        Raises PersresError where the file is broken or no residual, can't be pulled, does not fit the model's layers, or was trained on
        another model. A hub's model and a folder can't be compared: that is logged.

        Examples:

        ```py
        >>> pipe.load_residual("my_dog.safetensors")
        >>> pipe.load_residual("dog7@v3", repo="https://github.com/you/your-persres")
        >>> pipe.load_residual("any_lora.safetensors", subject="dog")
        ```
        """
        path = file_of(path_or_ref, repo)
        if subject is not None:
            return self._load_lora(path, subject, name)
        residual = load_residual(path)
        header, vector = residual.header, residual.token
        if not allow_other_base and self.model is not None:
            check_base(path, header.model, model_identity(self.model))
        bank = residual.bank(self.pipe.unet)
        width = self._towers()[0][1].get_input_embeddings().embedding_dim
        if vector is not None and len(vector) != width:
            raise PersresError(
                f"{path}: its V* has {len(vector)} numbers, this model's words {width}; load the model it was trained on"
            )
        name = name or header.concept
        self.residuals[name] = Residual(
            bank, header.base.token, header.base.rare_token, header.phrase, vector, header.info
        )
        return self.set_residual(name)

    def _load_lora(self, path: Path, subject: str, name: str | None) -> PersonalizedPipeline:
        if not subject.strip():
            raise PersresError(
                'subject is empty; say the words of the prompt that name what the LoRA learned, e.g. "dog"'
            )
        towers = [encoder for _, encoder in self._towers()]
        self.residuals[name or path.stem] = read_lora(path, subject.strip(), self.pipe.unet, towers)
        return self.set_residual(name or path.stem)

    def set_residual(self, name: str | None) -> PersonalizedPipeline:
        """Switch.

        Args:
            name (`str` or `None`):
                A loaded residual's name; `None` is the base model.

        Returns:
            [`PersonalizedPipeline`]: itself. Raises PersresError for an unknown name.
        """
        if name is not None:
            residual = self._residual(name)
            for tokenizer, encoder in self._towers() if isinstance(residual, Residual) else []:
                add_concept_token(tokenizer, encoder, residual.token, residual.rare_token)
        self.active, self.together = name, {}
        return self

    def set_residuals(self, names: list[str]) -> PersonalizedPipeline:
        """Let several loaded residuals act in one picture, each where its own concept is.

        Args:
            names (`list[str]`):
                Two to four. Each gets a V* of its own, `<v1*>`, `<v2*>` … in this order; prompts name them by
                `together[name].phrase` or in braces, `{1}` or `{my_dog}`.

        Returns:
            [`PersonalizedPipeline`]: itself.

        Raises PersresError for an unknown name, one named twice, more than four, and residuals of other layers.
        """
        if len(set(names)) != len(names):
            raise PersresError(f"a residual is named twice in {', '.join(names)}; each acts once")
        check_count(len(names))
        found = [self._residual(name) for name in names]
        loras = [name for name, one in zip(names, found, strict=True) if isinstance(one, Lora)]
        if loras:
            raise PersresError(
                f"{loras[0]} is another tool's LoRA; only residuals act together, so switch to it by set_residual"
            )
        stack_banks([one.bank for one in found])
        for number, one in enumerate(found, 1):
            for tokenizer, encoder in self._towers():
                add_concept_token(tokenizer, encoder, numbered(one.token, number), one.rare_token)
        self.active, self.together = None, {name: _numbered(one, i) for i, (name, one) in enumerate(zip(names, found, strict=True), 1)}  # fmt: skip
        return self

    def unload_residual(self, name: str) -> PersonalizedPipeline:
        """Forget one; where it was active, the base model draws.

        Args:
            name (`str`):
                A loaded residual's name.

        Returns:
            [`PersonalizedPipeline`]: itself. Raises PersresError for an unknown name.
        """
        self._residual(name)
        del self.residuals[name]
        self.active = None if self.active == name else self.active
        self.together = {} if name in self.together else self.together
        return self

    def _residual(self, name: str) -> Residual | Lora:
        if name not in self.residuals:
            raise PersresError(f"no residual {name!r} is loaded; there are {', '.join(self.residuals) or 'none'}")
        return self.residuals[name]

    def _towers(self) -> list[tuple[Any, nn.Module]]:
        names = ("", "_2") if type(self.pipe).__name__ == SDXL else ("",)
        return [(getattr(self.pipe, f"tokenizer{n}"), getattr(self.pipe, f"text_encoder{n}")) for n in names]

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
        """Draw with the active residual or residuals, or with none as the pipeline does.

        Args:
            prompt (`str` or `list[str]`):
                Holds V* and its class (`residuals[name].phrase`), or a LoRA's subject.
            lag (`bool`, `str` or [`Masking`], *optional*, defaults to `False`):
                Only where the attention of V* and its class lies; the prompt must then name both. `True` takes the paper's masks, `"auto"`
                ours, a `persres.sampling.mask_config.MaskConfig` its own. Under a LoRA the attention is that of its subject's words, and all of
                its deltas are masked.
            strength (`float`, *optional*, defaults to 1):
                Times the residual; 0 is the base model with V* in its prompt.
            uncond_rule (`str`, *optional*, defaults to `"mask"`):
                What the unconditional branch gets under LAG: its partner's `mask`, `base` or `full`.
            return_masks (`bool`, *optional*, defaults to `False`):
                Return LAG's masks too.
            arguments (*optional*):
                Whatever the pipeline inside takes: `negative_prompt`, `generator`, `num_images_per_prompt`, `latents`,
                `callback_on_step_end`, `output_type` …

        Returns:
            What the pipeline inside returns, or with `return_masks` a [`PersonalizedOutput`].

        Raises PersresError where LAG has no prompt text to find the concept in, or nothing is loaded.

        Examples:

        ```py
        >>> pipe("a photo of a <v*> dog on the moon", lag="auto", num_inference_steps=50, guidance_scale=6.0).images[0]
        ```
        """
        if self.together:
            return self._draw_together(prompt, lag, strength, uncond_rule, return_masks, arguments)
        if self.active is None:
            if lag or return_masks:
                raise PersresError("lag needs a residual; call load_residual or set_residual first")
            return self.pipe(prompt, **arguments)
        residual, device = self._residual(self.active), self.pipe._execution_device
        passes = Passes(1.0 if isinstance(residual, Lora) else strength, uncond_rule, bool(lag))
        if lag:
            each = arguments.get("num_images_per_prompt") or 1
            passes.rule = self._rule(residual, prompt, each, mask_config_of(lag), device)
            passes.rule.record = return_masks
        with ExitStack() as stack:
            stack.enter_context(passes.watching(self.pipe.unet))
            if isinstance(residual, Lora):
                stack.enter_context(
                    text_encoder_lora([encoder for _, encoder in self._towers()], residual.towers, strength)
                )
                stack.enter_context(
                    masked_lora_hooks(self.pipe.unet, residual.unet, passes.routing, passes.rule, strength)
                )
            else:
                self._attach(stack, residual, passes, device)
            found = self.pipe(prompt, **arguments)
        return _with_masks(found, passes) if return_masks else found

    def _attach(self, stack: ExitStack, residual: Residual, passes: Passes, device: torch.device) -> None:
        if residual.vector is not None:
            token_id = self.pipe.tokenizer.convert_tokens_to_ids(residual.token)
            stack.enter_context(patched_weights(self.pipe, {TOKEN: residual.vector.to(device)}, token_id))
        masked = nullcontext() if passes.rule is None else lag_hooks(self.pipe.unet, passes.routing, passes.rule)
        stack.enter_context(masked)
        stack.enter_context(residual_hooks(self.pipe.unet, residual.bank.to(device), passes.routing))

    def _draw_together(self, prompt: Any, lag: Any, strength: float, uncond_rule: str, return_masks: bool, arguments: dict):  # fmt: skip
        """As ``__call__``: without ``lag`` all residuals act everywhere."""
        if prompt is None:
            raise PersresError(
                "several residuals find their concepts in the prompt's words; give prompt, not prompt_embeds"
            )
        phrases, device = {name: one.phrase for name, one in self.together.items()}, self.pipe._execution_device
        texts = [fill_each(t, phrases) if "{" in t else t for t in ([prompt] if isinstance(prompt, str) else prompt)]
        each = arguments.get("num_images_per_prompt") or 1
        tokenizer = self.pipe.tokenizer
        places = [[concept_positions(tokenizer, text, phrase) for text in texts] for phrase in phrases.values()]
        tokens = torch.stack([torch.stack(row) for row in places]).repeat_interleave(each, 1).to(device)
        passes = MultiConceptPasses(strength, uncond_rule, tokens, mask_config_of(lag) if lag else None, return_masks)
        with ExitStack() as stack:
            for one in self.together.values():
                if one.vector is not None:
                    number = tokenizer.convert_tokens_to_ids(one.token)
                    stack.enter_context(patched_weights(self.pipe, {TOKEN: one.vector.to(device)}, number))
            stack.enter_context(passes.watching(self.pipe.unet))
            stack.enter_context(lag_hooks(self.pipe.unet, passes.routing, passes.rule) if lag else nullcontext())
            bank = stack_banks([one.bank for one in self.together.values()]).to(device)
            stack.enter_context(multi_concept_hooks(self.pipe.unet, bank, passes.routing))
            found = self.pipe(texts[0] if isinstance(prompt, str) else texts, **arguments)
        return _with_masks(found, passes) if return_masks else found

    def _rule(
        self,
        residual: Residual | Lora,
        prompt: str | list[str] | None,
        each: int,
        mask_config: MaskConfig,
        device: torch.device,
    ) -> MaskRule:
        """Where V* and class stand in every prompt, as the batch orders them: a prompt's pictures side by side."""
        if prompt is None:
            raise PersresError("lag finds the concept in the prompt's words; give prompt, not prompt_embeds")
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        check_subject(residual, texts)
        tokenizer = self._towers()[0][0]
        tokens = torch.stack([concept_positions(tokenizer, text, residual.phrase) for text in texts])
        tokens = tokens.repeat_interleave(each, 0).to(device)
        unmasked = torch.tensor([not masks_prompt(mask_config, text, residual.phrase) for text in texts], device=device)

        def draws(pixels: int) -> list[torch.Generator]:
            return [generator("mask", i, pixels) for i in range(len(tokens))]

        return guidance_rule(tokens, "mask", mask_config, draws, unmasked=unmasked.repeat_interleave(each, 0))[1]


def check_subject(residual: Residual | Lora, prompts: list[str]) -> None:
    """Raises PersresError for the first prompt that does not name a LoRA's subject."""
    for prompt in prompts if isinstance(residual, Lora) else []:
        if residual.phrase.lower() not in prompt.lower():
            raise PersresError(
                f"subject {residual.phrase!r} is not in the prompt {prompt!r}; name it there, or load the file with the subject"
                " that the prompt names"
            )


def _numbered(residual: Residual, number: int) -> Residual:
    """The same under a token of its own."""
    token = numbered(residual.token, number)
    return replace(residual, token=token, phrase=residual.phrase.replace(residual.token, token))


def _with_masks(found: Any, passes: Passes) -> Any:
    masks = None if passes.rule is None else mean_masks(passes)
    if isinstance(found, tuple):
        return (*found, masks)
    return PersonalizedOutput(found.images, getattr(found, "nsfw_content_detected", None), masks)
