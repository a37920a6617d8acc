"""The prompts of a diffusers pipeline with residuals: V* as the text encoders read it, and where a concept's words are.

V* needs no token of the tokenizer: it has the embedding of a rare token, so the rare token is written in its place (paper 3.2). Where V*'s
embedding was trained too, a hook puts that vector at V*'s position. The tokenizer and the embedding table stay as they are, and a user's
own token of the same name too.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from persres.errors import PersresError
from persres.models.call_hooks import CallHooks
from persres.models.text_encoding import concept_positions, prompt_ids, read_positions
from persres.residuals.loaded import Residual
from persres.residuals.lora import Lora
from persres.sampling.masked_lora import text_encoder_lora

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

Convert = Callable[[str], str]
Places = dict[tuple[int, ...], dict[int, torch.Tensor]]  # ids of a prompt -> position -> the vector there


def with_rare_tokens(text: str, rare: Mapping[str, str]) -> str:
    """The text with each V* of ``rare`` replaced by its rare token."""
    for token, word in rare.items():
        text = text.replace(token, f" {word} ")
    return text


def prompt_list(prompt: str | list[str] | None) -> list[str]:
    """One prompt, several or none, as a list. Raises ValueError for another type, as diffusers does."""
    if prompt is None:
        return []
    if not isinstance(prompt, str | list | tuple):
        raise ValueError(f"`prompt` has to be of type `str` or `list` but is {type(prompt)}")
    return [prompt] if isinstance(prompt, str) else list(prompt)


def positions_of(tokenizer: CLIPTokenizer, prompts: list[str], phrases: list[str], convert: Convert) -> torch.Tensor:
    """The positions of each of K phrases in each of n prompts, float [K, n, length]. Raises PersresError where one is missing."""
    rows = [[concept_positions(tokenizer, prompt, phrase, convert) for prompt in prompts] for phrase in phrases]
    return torch.stack([torch.stack(row) for row in rows])


def vector_places(
    tokenizer: CLIPTokenizer, prompts: list[str], vectors: Mapping[str, torch.Tensor], convert: Convert
) -> Places:
    """Where the prompts have a V* of ``vectors``, by the ids that the text encoder reads."""
    places: Places = {}
    for prompt in prompts:
        ids = tuple(prompt_ids(tokenizer, [convert(prompt)])[0].tolist())
        for token, vector in vectors.items():
            positions = read_positions(tokenizer, prompt, token, convert).nonzero().flatten()  # a cut V* is not read
            places.setdefault(ids, {}).update(dict.fromkeys(positions.tolist(), vector))
    return places


@contextmanager
def vector_hooks(text_encoder: nn.Module, places: Places) -> Iterator[None]:
    """Within the context the text encoder's embeddings are the vectors of ``places`` at their positions."""

    def place(_module: nn.Module, args: tuple, _named: dict, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        for row, ids in enumerate(args[0].tolist()):
            for position, vector in places.get(tuple(ids), {}).items():
                output[row, position] = vector.to(output)
        return output

    hooks = CallHooks(text_encoder)
    if places:
        hooks.add_after(text_encoder.get_input_embeddings(), place)
    with hooks:
        yield


class EncodedPrompts:
    """The prompts whose embeddings a pipeline returned, as long as those exist: LAG needs their words."""

    def __init__(self) -> None:
        self.prompts: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __reduce__(self) -> tuple:
        """A copy, or a pipeline that is pickled, begins without any: it has other tensors."""
        return EncodedPrompts, ()

    def add(self, embeds: torch.Tensor, prompts: list[str], each: int) -> None:
        """Remember the prompts of ``embeds`` [n · each, length, width]."""
        self.prompts[embeds] = [prompt for prompt in prompts for _ in range(each)]

    def of(self, embeds: Any) -> list[str]:
        """One prompt for each row of ``embeds``. Raises PersresError for other tensors than :meth:`add` was given."""
        if not isinstance(embeds, torch.Tensor) or embeds not in self.prompts:
            raise PersresError(
                "LAG and several residuals locate concepts in the prompt; pass prompt, not prompt_embeds, or pass the very tensor that this"
                " pipeline's encode_prompt returned"
            )
        return self.prompts[embeds]


# The residual's factor in the call in progress.
call_scale: ContextVar[float] = ContextVar("persres_call_scale", default=1.0)


class ResidualPromptMixin:
    """Encodes prompts with V*, as diffusers' ``TextualInversionLoaderMixin`` does with its tokens."""

    @functools.cached_property
    def _encoded(self) -> EncodedPrompts:
        return EncodedPrompts()

    def encode_prompt(self, *arguments: Any, **named: Any) -> tuple:
        """As diffusers', with the active residual's V* and text layers. What it returns may be passed as `prompt_embeds`, also with LAG."""
        encode, residuals = super().encode_prompt, self._acting()
        given = inspect.signature(encode).bind(*arguments, **named).arguments
        texts = [prompt_list(given.get(f"{sign}prompt{tower}")) for sign in ("", "negative_") for tower in ("", "_2")]
        vectors = {r.token: r.vector for r in residuals if isinstance(r, Residual) and r.vector is not None}
        with ExitStack() as stack:
            if vectors:
                convert = functools.partial(self.maybe_convert_prompt, tokenizer=self.tokenizer)
                places = vector_places(self.tokenizer, [text for part in texts for text in part], vectors, convert)
                stack.enter_context(vector_hooks(self.text_encoder, places))
            for lora in residuals:
                if isinstance(lora, Lora):
                    stack.enter_context(text_encoder_lora(self._text_encoders(), lora.towers, call_scale.get()))
            encoded = encode(*arguments, **named)
        if texts[0] and given.get("prompt_embeds") is None:
            self._encoded.add(encoded[0], texts[0], given.get("num_images_per_prompt") or 1)
        return encoded

    def maybe_convert_prompt(self, prompt: str | list[str], tokenizer: Any) -> str | list[str]:
        """As diffusers', with the rare token in V*'s place."""
        rare = self._rare_tokens(tokenizer)
        texts = [with_rare_tokens(text, rare) for text in prompt_list(prompt)]
        return super().maybe_convert_prompt(texts[0] if isinstance(prompt, str) else texts, tokenizer)

    def _rare_tokens(self, tokenizer: Any) -> dict[str, str]:
        """The rare token of each V*. A user's token of the same name counts while no residual with that V* acts."""
        acting = {residual.token for residual in self._acting() if isinstance(residual, Residual)}
        theirs = tokenizer.get_added_vocab().keys() - acting
        return {token: rare for token, (_, rare) in self._tokens.items() if token not in theirs}

    def _positions(self, residuals: list[Residual | Lora], prompts: list[str]) -> torch.Tensor:
        """The positions of every residual's phrase in every prompt, float [K, n, length]."""
        convert = functools.partial(self.maybe_convert_prompt, tokenizer=self.tokenizer)
        return positions_of(self.tokenizer, prompts, [residual.phrase for residual in residuals], convert)
