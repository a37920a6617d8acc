"""LAG for people who live in diffusers: a Stable Diffusion pipeline with residuals that are loaded and switched by name.

    pipe = PersonalizedPipeline.from_pretrained("CompVis/stable-diffusion-v1-4", dtype=torch.float16).to("cuda")
    pipe.load_residual("my_dog.safetensors")
    pipe("a photo of a <v*> dog on the moon", lag=True).images[0]

It is called like the pipeline inside and gives on to it whatever it does not know: scheduler, negative prompts, generators,
callbacks, off-loading. Several residuals act in one picture after ``set_residuals``, each where its own concept is. Every pass through the U-Net is the pipeline's own; hooks add the residual, everywhere (paper 3.2) or inside
LAG's masks (3.3), and leave with the call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
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
from persres.models.prompts import add_concept_token, concept_positions
from persres.models.swap import token_as
from persres.places import located
from persres.prompt_text import fill_each, numbered
from persres.residuals.bank import ResidualBank, Routing, attached
from persres.residuals.file import load_bank, load_residual, load_token
from persres.sampling.lag import UNCOND_RULES, MaskRule, guidance_rule, localised
from persres.sampling.masking import Masking, masking_of, masks_prompt
from persres.sampling.several import SeveralRouting, attached_together, check_count, several_rule, stacked
from persres.seeding import generator


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
        self.residuals: dict[str, Residual] = {}
        self.active: str | None = None
        self.together: dict[str, Residual] = {}  # several that act at once, each with a token of its own

    @classmethod
    def from_pretrained(cls, model: str | Path, **arguments: Any) -> PersonalizedPipeline:
        """As ``DiffusionPipeline.from_pretrained``: a hub name or a folder. Raises PersresError where the model can't be had."""
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
        """As the pipeline's; returns self."""
        self.pipe.to(*arguments, **named)
        return self

    def load_residual(
        self, path: str | Path, name: str | None = None, *, allow_other_base: bool = False
    ) -> PersonalizedPipeline:
        """Read a residual and make it the active one, under ``name`` or its concept's own; returns self.

        Raises PersresError where the file is broken or no residual, does not fit the model's layers, or was trained on another model
        (which ``allow_other_base`` overrides: a fine-tuned model of the same layers often works).
        """
        _, info = load_residual(Path(path))
        spec = info["spec"]
        if not allow_other_base:
            check_base(Path(path), spec["model"], self.model)
        bank, base = load_bank(self.pipe.unet, Path(path)), spec["base"]
        named = spec["settings"].get("name_class", True)
        phrase = f"{base['token']} {spec['macro_class']}" if named else base["token"]
        name = name or spec["concept"]
        self.residuals[name] = Residual(bank, base["token"], base["rare_token"], phrase, load_token(Path(path)), info)
        return self.set_residual(name)

    def set_residual(self, name: str | None) -> PersonalizedPipeline:
        """Make a loaded residual the active one, or None: the base model. Returns self; raises PersresError for an unknown name."""
        if name is not None:
            residual = self._residual(name)
            for tokenizer, encoder in self._towers():
                add_concept_token(tokenizer, encoder, residual.token, residual.rare_token)
        self.active, self.together = name, {}
        return self

    def set_residuals(self, names: list[str]) -> PersonalizedPipeline:
        """Let two to four loaded residuals act in one picture. Each has a V* of its own, ``<v1*>``, ``<v2*>`` … in this order: a prompt
        names them by ``together[name].phrase`` or in braces, ``{1}`` or ``{my_dog}``. Returns self.

        Raises PersresError for an unknown name, one named twice, more than four, and residuals of other layers.
        """
        if len(set(names)) != len(names):
            raise PersresError(f"a residual is named twice in {', '.join(names)}; each acts once")
        check_count(len(names))
        found = [self._residual(name) for name in names]
        stacked([one.bank for one in found])
        for number, one in enumerate(found, 1):
            for tokenizer, encoder in self._towers():
                add_concept_token(tokenizer, encoder, numbered(one.token, number), one.rare_token)
        self.active, self.together = None, {name: _numbered(one, i) for i, (name, one) in enumerate(zip(names, found, strict=True), 1)}  # fmt: skip
        return self

    def unload_residual(self, name: str) -> PersonalizedPipeline:
        """Forget one. Returns self; raises PersresError for an unknown name."""
        self._residual(name)
        del self.residuals[name]
        self.active = None if self.active == name else self.active
        self.together = {} if name in self.together else self.together
        return self

    def _residual(self, name: str) -> Residual:
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
        lag: bool | str | Masking = False,
        strength: float = 1.0,
        uncond_rule: str = "mask",
        return_masks: bool = False,
        **arguments: Any,
    ) -> Any:
        """Draw with the active residual or residuals, or with none as the pipeline does.

        ``lag``: only where the attention of V* and its class lies; the prompt must then name both (``residuals[name].phrase``).
        True takes the paper's masks, ``"auto"`` ours, a :class:`persres.sampling.masking.Masking` its own.
        ``strength`` scales the residual, ``uncond_rule`` is that of ``sample.methods``.
        ``return_masks`` gives a :class:`PersonalizedOutput`; everything else goes to the pipeline.

        Raises PersresError where LAG has no prompt text to find the concept in, or nothing is loaded.
        """
        if self.together:
            return self._draw_together(prompt, lag, strength, uncond_rule, return_masks, arguments)
        if self.active is None:
            if lag or return_masks:
                raise PersresError("lag needs a residual; call load_residual or set_residual first")
            return self.pipe(prompt, **arguments)
        residual, device = self._residual(self.active), self.pipe._execution_device
        passes = _Passes(strength, uncond_rule, bool(lag))
        if lag:
            each = arguments.get("num_images_per_prompt") or 1
            passes.rule = self._rule(residual, prompt, each, masking_of(lag), device)
            passes.rule.record = return_masks
        with ExitStack() as stack:
            if residual.vector is not None:
                tokenizer, encoder = self._towers()[0]
                stack.enter_context(
                    token_as(encoder, tokenizer.convert_tokens_to_ids(residual.token), residual.vector.to(device))
                )
            stack.enter_context(passes.watching(self.pipe.unet))
            stack.enter_context(localised(self.pipe.unet, passes.routing, passes.rule) if lag else nullcontext())
            stack.enter_context(attached(self.pipe.unet, residual.bank.to(device), passes.routing))
            found = self.pipe(prompt, **arguments)
        return _with_masks(found, passes) if return_masks else found

    def _draw_together(self, prompt: Any, lag: Any, strength: float, uncond_rule: str, return_masks: bool, arguments: dict):  # fmt: skip
        """As ``__call__``: without ``lag`` all residuals act everywhere."""
        if prompt is None:
            raise PersresError(
                "several residuals find their concepts in the prompt's words; give prompt, not prompt_embeds"
            )
        phrases, device = {name: one.phrase for name, one in self.together.items()}, self.pipe._execution_device
        texts = [fill_each(t, phrases) if "{" in t else t for t in ([prompt] if isinstance(prompt, str) else prompt)]
        each = arguments.get("num_images_per_prompt") or 1
        tokenizer, encoder = self._towers()[0]
        places = [[concept_positions(tokenizer, text, phrase) for text in texts] for phrase in phrases.values()]
        tokens = torch.stack([torch.stack(row) for row in places]).repeat_interleave(each, 1).to(device)
        passes = _PassesTogether(strength, uncond_rule, tokens, masking_of(lag) if lag else None, return_masks)
        with ExitStack() as stack:
            for one in self.together.values():
                if one.vector is not None:
                    number = tokenizer.convert_tokens_to_ids(one.token)
                    stack.enter_context(token_as(encoder, number, one.vector.to(device)))
            stack.enter_context(passes.watching(self.pipe.unet))
            stack.enter_context(localised(self.pipe.unet, passes.routing, passes.rule) if lag else nullcontext())
            bank = stacked([one.bank for one in self.together.values()]).to(device)
            stack.enter_context(attached_together(self.pipe.unet, bank, passes.routing))
            found = self.pipe(texts[0] if isinstance(prompt, str) else texts, **arguments)
        return _with_masks(found, passes) if return_masks else found

    def _rule(
        self,
        residual: Residual,
        prompt: str | list[str] | None,
        each: int,
        masking: Masking,
        device: torch.device,
    ) -> MaskRule:
        """Where V* and class stand in every prompt, as the batch orders them: a prompt's pictures side by side."""
        if prompt is None:
            raise PersresError("lag finds the concept in the prompt's words; give prompt, not prompt_embeds")
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        tokenizer = self._towers()[0][0]
        tokens = torch.stack([concept_positions(tokenizer, text, residual.phrase) for text in texts])
        tokens = tokens.repeat_interleave(each, 0).to(device)
        unmasked = torch.tensor([not masks_prompt(masking, text, residual.phrase) for text in texts], device=device)

        def draws(pixels: int) -> list[torch.Generator]:
            return [generator("mask", i % len(tokens), pixels) for i in range(2 * len(tokens))]

        return guidance_rule(tokens, "mask", masking, draws, unmasked=unmasked.repeat_interleave(each, 0))[1]


def _numbered(residual: Residual, number: int) -> Residual:
    """The same under a token of its own."""
    token = numbered(residual.token, number)
    return replace(residual, token=token, phrase=residual.phrase.replace(residual.token, token))


def check_base(path: Path, trained_on: str, model: str | None) -> None:
    """Raises PersresError where a residual says that it was trained on another model. A hub name and a folder can't be compared."""
    if model is None:
        return
    here = model_identity(model)
    comparable = ("@" in trained_on) == ("@" in here)
    if comparable and trained_on.rpartition("@")[2] != here.rpartition("@")[2]:
        raise PersresError(
            f"{path} was trained on {trained_on}, this is {here}; load that model, or say allow_other_base=True where it has the"
            " same layers and you mean it"
        )


class _Passes:
    """Fits routing and masks to each pass through the U-Net: guided, [unconditional; conditional], or not."""

    def __init__(self, strength: float, uncond_rule: str, lag: bool) -> None:
        if uncond_rule not in UNCOND_RULES:
            raise PersresError(f"unknown uncond_rule {uncond_rule!r}; one of {', '.join(UNCOND_RULES)}")
        self.strength, self.uncond_rule, self.lag = strength, uncond_rule, lag
        self.routing, self.rule = Routing.everywhere(1), None
        self.conditional: torch.Tensor | None = None  # the tokens of one sample each
        self.unmasked: torch.Tensor | None = None  # those that are not masked at all
        self.size, self.guided = (0, 0), False

    def conditional_of(self, seen: torch.Tensor) -> torch.Tensor:
        """The conditional samples' rows."""
        return seen[len(seen) // 2 :] if self.guided else seen

    @contextmanager
    def watching(self, unet: nn.Module) -> Iterator[None]:
        """Before every pass within the context."""
        handle = unet.register_forward_pre_hook(self._before, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _before(self, _unet: nn.Module, args: tuple, named: dict[str, Any]) -> None:
        sample = args[0] if args else named["sample"]
        self.size = tuple(sample.shape[-2:])
        if not self.lag:
            routing = Routing.everywhere(len(sample), sample.device)
        else:
            routing = self._masked(len(sample))
            self.rule.steps += 1
        self.routing.rows, self.routing.weight = routing.rows, routing.weight * self.strength

    def _masked(self, n: int) -> Routing:
        rule = self.rule
        if self.conditional is None:
            half = len(rule.tokens) // 2
            self.conditional, self.unmasked = rule.tokens[:half], rule.everywhere[half:]
        count = len(self.conditional)
        self.guided = n == 2 * count
        if self.guided:
            routing, fitted = guidance_rule(self.conditional, self.uncond_rule, unmasked=self.unmasked)
            rule.tokens, rule.mask_from, rule.everywhere = fitted.tokens, fitted.mask_from, fitted.everywhere
            return routing
        if n != count:
            raise PersresError(
                f"lag: {n} samples in a pass for {count} prompts; this way of guidance is not known here"
            )
        device = self.conditional.device
        rule.tokens, rule.mask_from = self.conditional, torch.arange(n, device=device)
        rule.everywhere = self.unmasked
        return Routing.everywhere(n, device)


class _PassesTogether(_Passes):
    """The same for several residuals; ``tokens`` [K, n, length] of the conditional samples."""

    def __init__(
        self, strength: float, uncond_rule: str, tokens: torch.Tensor, masking: Masking | None, record: bool
    ) -> None:
        super().__init__(strength, uncond_rule, masking is not None)
        self.tokens = tokens
        if masking is None:
            self.routing = SeveralRouting(torch.arange(len(tokens), device=tokens.device)[:, None], torch.ones(1))
        else:
            self.routing, self.rule = several_rule(tokens, uncond_rule, masking, record=record)

    def _before(self, _unet: nn.Module, args: tuple, named: dict[str, Any]) -> None:
        sample = args[0] if args else named["sample"]
        self.size, (k, n) = tuple(sample.shape[-2:]), self.tokens.shape[:2]
        self.guided = len(sample) == 2 * n
        if not self.guided and len(sample) != n:
            raise PersresError(
                f"{len(sample)} samples in a pass for {n} prompts; this way of guidance is not known here"
            )
        routing, fitted = several_rule(self.tokens, self.uncond_rule)
        if self.rule is not None:
            rule, rows = self.rule, slice(None) if self.guided else slice(n, None)
            rule.steps += 1
            rule.tokens, rule.everywhere = (
                x.unflatten(0, (k, -1))[:, rows].flatten(0, 1) for x in (fitted.tokens, fitted.everywhere)
            )
            rule.mask_from = fitted.mask_from if self.guided else torch.arange(k * n, device=sample.device)
        self.routing.rows = routing.rows[:, : len(sample)]
        weight = routing.weight[-len(sample) :] if self.lag else torch.ones(len(sample), device=sample.device)
        self.routing.weight = weight * self.strength

    def conditional_of(self, seen: torch.Tensor) -> torch.Tensor:
        """Of K·n rows, [n·K, pixels]."""
        every = seen.unflatten(0, (len(self.tokens), -1))
        return every[:, -self.tokens.shape[1] :].transpose(0, 1).flatten(0, 1)


def _with_masks(found: Any, passes: _Passes) -> Any:
    masks = None if passes.rule is None else averaged(passes)
    if isinstance(found, tuple):
        return (*found, masks)
    return PersonalizedOutput(found.images, getattr(found, "nsfw_content_detected", None), masks)


def averaged(passes: _Passes) -> torch.Tensor:
    """The conditional samples' masks over blocks and steps, float [n, h, w] in [0, 1], for pictures of any shape."""
    height, width = passes.size
    total = []
    for seen in passes.rule.seen.values():
        picked = passes.conditional_of(seen)
        coarse = round((height * width / picked.shape[1]) ** 0.5)  # pixels of the latents to one of this block's
        picked = picked.float().view(len(picked), 1, -(-height // coarse), -(-width // coarse))
        total.append(nn.functional.interpolate(picked, size=(height, width), mode="nearest")[:, 0])
    found = torch.stack(total).mean(0) / max(1, passes.rule.steps)
    return found.unflatten(0, (-1, len(passes.tokens))) if isinstance(passes, _PassesTogether) else found
