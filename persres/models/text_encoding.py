"""V* as a token, prompts as embeddings, and the concept's positions in a prompt."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from persres.errors import PersresError
from persres.prompts import mentions

log = logging.getLogger(__name__)
if TYPE_CHECKING:  # seconds to import, and here only names
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


@torch.no_grad()
def add_concept_token(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, token: str, rare_token: str) -> int:
    """Adds V* with the rare token's embedding (paper 3.2); returns its id. A second call changes nothing.

    Raises PersresError where the rare token is more than one token of this tokenizer.
    """
    rare = rare_token_id(tokenizer, rare_token)
    if token not in tokenizer.get_vocab():
        tokenizer.add_tokens([token])
    if len(tokenizer) > text_encoder.get_input_embeddings().num_embeddings:
        text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    token_id = tokenizer.convert_tokens_to_ids(token)
    table = text_encoder.get_input_embeddings().weight
    table[token_id] = table[rare]
    _pool_at_end(tokenizer, text_encoder)
    return token_id


def rare_token_id(tokenizer: CLIPTokenizer, rare_token: str) -> int:
    """Returns the rare token's id. Raises PersresError where the word is more than one token of this tokenizer."""
    rare = tokenizer(rare_token, add_special_tokens=False).input_ids
    if len(rare) != 1:
        raise PersresError(
            f"rare_token {rare_token!r} is {len(rare)} tokens for this tokenizer; choose a word that is one token"
        )
    return rare[0]


def _pool_at_end(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
    """Sets each tower's real end token. Old configs have number 2, and transformers then takes the prompt's highest number for the end. That
    is now V*, at which SDXL's pooled prompt would be read."""
    for module in text_encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = tokenizer.eos_token_id


def prompt_ids(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    """Returns token ids [n, length], padded as in Stable Diffusion."""
    return tokenizer(
        prompts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids


def prompt_states(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: list[str]) -> torch.Tensor:
    """Returns the states of :func:`encode_prompts`, with gradients."""
    return text_encoder(prompt_ids(tokenizer, prompts).to(text_encoder.device)).last_hidden_state


@torch.no_grad()
def encode_prompts(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: list[str]) -> torch.Tensor:
    """Returns last hidden states [n, length, width], padded to the tokenizer's length as in Stable Diffusion."""
    return prompt_states(tokenizer, text_encoder, prompts)


def check_length(tokenizer: CLIPTokenizer, prompt: str, phrase: str) -> None:
    """Logs the end of a prompt that is cut at the tokenizer's length. Raises PersresError where the concept's phrase is beyond it."""
    concept_positions(tokenizer, prompt, phrase)
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    room = tokenizer.model_max_length - 2  # the start and end tokens
    if len(ids) > room:
        rest = tokenizer.decode(ids[room:])
        log.warning("prompt %r is too long by %d tokens: %r is left out", prompt, len(ids) - room, rest)


Tower = tuple["CLIPTokenizer", "CLIPTextModel | CLIPTextModelWithProjection"]


def two_tower_states(towers: list[Tower], prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns SDXL's conditioning: the states before each tower's last layer, concatenated [n, length, width of both], and the
    last tower's pooled and projected prompt, [n, d]."""
    outputs = [
        encoder(prompt_ids(tokenizer, prompts).to(encoder.device), output_hidden_states=True)
        for tokenizer, encoder in towers
    ]
    return torch.cat([out.hidden_states[-2] for out in outputs], dim=-1), outputs[-1].text_embeds


def concept_positions(
    tokenizer: CLIPTokenizer, prompt: str, phrase: str, convert: Callable[[str], str] = str
) -> torch.Tensor:
    """Returns C: float [length] with 1 at every token of ``phrase`` (V* and macro class) in the prompt.

    Whole words count, singular or plural, wherever they stand ("a pair of V* dishes", in CustomConcept101). ``convert`` writes a text as
    the text encoder reads it. SDXL's two tokenizers split words alike, so its first serves for both. Raises PersresError where the phrase is
    not in the prompt, or lies beyond its last token.
    """
    if not mentions(prompt, phrase):
        raise PersresError(f"the prompt {prompt!r} does not name the concept; write {phrase!r} in it")
    positions = read_positions(tokenizer, prompt, phrase, convert)
    if not positions.any():
        raise PersresError(
            f"{phrase!r} is not among the first {len(positions)} tokens of the prompt {prompt!r}; shorten the prompt"
        )
    return positions


def read_positions(
    tokenizer: CLIPTokenizer, prompt: str, phrase: str, convert: Callable[[str], str] = str
) -> torch.Tensor:
    """Returns :func:`concept_positions`, zeros where the text encoder reads no whole phrase."""
    positions = torch.zeros(tokenizer.model_max_length)
    for span in mentions(prompt, phrase):
        first, end = (1 + _count(tokenizer, convert(prompt[:place])) for place in span)
        if end < len(positions):  # the last token is the end's
            positions[first:end] = 1
    return positions


def _count(tokenizer: CLIPTokenizer, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False).input_ids)
