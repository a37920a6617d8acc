"""Residuals of a pipeline: loaded, switched and unloaded by name."""

from __future__ import annotations

# isort: split
from pathlib import Path
from typing import Any, Self
from weakref import WeakKeyDictionary, ref

from torch import nn

from persres.errors import PersresError
from persres.models.call_hooks import unwrapped
from persres.models.text_encoding import rare_token_id
from persres.residuals.bank import stack_banks
from persres.residuals.loaded import Residual, read_trained
from persres.residuals.lora import Lora, read_lora
from persres.sampling.multi_concept import check_count
from persres.versions.repository import Repository
from persres.versions.residual_address import file_of

# U-Net -> the pipeline of ours whose parts were given to another one last: a new pipeline takes its residuals over
_givers: WeakKeyDictionary[nn.Module, ref] = WeakKeyDictionary()


class ResidualLoaderMixin:
    """Loads residuals and chooses those that act, as diffusers' ``StableDiffusionLoraLoaderMixin`` does for LoRAs.

    ``active`` is the name of the residual that acts; ``multi_concept`` are the residuals that act together after ``set_residuals``, by name.
    """

    residuals: dict[str, Residual | Lora]
    active: str | None
    multi_concept: dict[str, Residual]

    def register_modules(self, **modules: Any) -> None:
        """As diffusers'; a new pipeline takes over the residuals of the one whose parts it is made from."""
        super().register_modules(**modules)
        if "unet" not in modules or "residuals" in self.__dict__:
            return
        unet = unwrapped(self.unet)
        giver = _givers[unet]() if unet is not None and unet in _givers else None
        self.residuals = dict(giver.residuals) if giver else {}
        self.multi_concept = dict(giver.multi_concept) if giver else {}
        self.active = giver.active if giver else None
        self._tokens = dict(giver._tokens) if giver else {}  # V* -> its residual's name, its rare token
        self._gives_parts()

    def _gives_parts(self) -> None:
        """The next pipeline with this U-Net takes over this one's residuals."""
        if self.unet is not None:
            _givers[unwrapped(self.unet)] = ref(self)

    def load_residual(
        self,
        path_or_ref: str | Path,
        name: str | None = None,
        *,
        subject: str | None = None,
        repo: str | Path | Repository | None = None,
        allow_other_base: bool = False,
    ) -> Self:
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
        path, unet = file_of(path_or_ref, repo), self.unet
        if subject is None:
            residual = read_trained(path, unwrapped(unet), self.text_encoder, None if allow_other_base else self.model)
            name = name or residual.concept
        elif subject.strip():
            residual = read_lora(
                path, subject.strip(), unwrapped(unet), [unwrapped(part) for part in self._text_encoders()]
            )
            name = name or path.stem
        else:
            raise PersresError(
                'subject is empty; pass the words of the prompt that name the LoRA\'s subject, e.g. "dog"'
            )
        self.residuals[name] = residual
        return self.set_residual(name)

    def set_residual(self, name: str | None) -> Self:
        """Activate one residual.

        Args:
            name (`str` or `None`):
                A loaded residual's name; `None` is the base model.

        Returns:
            [`PersonalizedPipeline`]: itself. Raises PersresError for an unknown name.
        """
        residual = None if name is None else self._residual(name)
        if isinstance(residual, Residual):
            self._add_token(name, residual)
        self.active, self.multi_concept = name, {}
        return self

    def set_residuals(self, names: list[str]) -> Self:
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
        numbered = {name: residual.numbered(i) for i, (name, residual) in enumerate(residuals.items(), 1)}
        for name, residual in numbered.items():
            self._add_token(name, residual)
        self.active, self.multi_concept = None, numbered
        return self

    def unload_residual(self, name: str) -> Self:
        """Remove a residual; if it was active, the base model is.

        Args:
            name (`str`):
                A loaded residual's name.

        Returns:
            [`PersonalizedPipeline`]: itself. Raises PersresError for an unknown name.
        """
        self._residual(name)
        del self.residuals[name]
        self._tokens = {token: (owner, rare) for token, (owner, rare) in self._tokens.items() if owner != name}
        self.active = None if self.active == name else self.active
        self.multi_concept = {} if name in self.multi_concept else self.multi_concept
        return self

    def _acting(self) -> list[Residual | Lora]:
        return list(self.multi_concept.values()) or [self._residual(n) for n in (self.active,) if n is not None]

    def _residual(self, name: str) -> Residual | Lora:
        if name not in self.residuals:
            raise PersresError(f"no residual {name!r} is loaded; loaded are {', '.join(self.residuals) or 'none'}")
        return self.residuals[name]

    def _towers(self) -> list[tuple[Any, nn.Module]]:
        towers = [(getattr(self, f"tokenizer{s}", None), getattr(self, f"text_encoder{s}", None)) for s in ("", "_2")]
        return [tower for tower in towers if None not in tower]

    def _text_encoders(self) -> list[nn.Module | None]:
        """The family's text encoders, None for one that the pipeline was loaded without."""
        names = [name for name in ("text_encoder", "text_encoder_2") if name in self.config]
        return [getattr(self, name) for name in names]

    def _add_token(self, name: str, residual: Residual) -> None:
        for tokenizer, _ in self._towers():
            rare_token_id(tokenizer, residual.rare_token)  # raises where it is several tokens
        self._tokens[residual.token] = (name, residual.rare_token)
