"""Textual Inversion (Gal et al. 2022): one embedding vector is learned, the model stays."""

from __future__ import annotations

import torch

from persres.errors import PersresError
from persres.methods.lessons import Pictures, Plan, plain_batch
from persres.methods.settings import TextualInversion
from persres.methods.templates import captions_of
from persres.methods.weights import TOKEN
from persres.models import Diffusion


def phrase(token: str, rare_token: str, macro_class: str) -> str:
    """V* alone stands for the thing: its vector starts as the class's and has to say all of it."""
    return token


def start_vector(diffusion: Diffusion, word: str) -> torch.Tensor:
    """The embedding of a word that is one token. Raises PersresError where it is several."""
    ids = diffusion.tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise PersresError(
            f"init_word {word!r} is {len(ids)} tokens for this tokenizer; choose a near word that is exactly one"
        )
    return diffusion.text_encoder.get_input_embeddings().weight[ids[0]].detach().float()


def plan(diffusion: Diffusion, settings: TextualInversion, photos: Pictures, token: str, macro_class: str) -> Plan:
    """Random photos under random neutral captions."""
    captions = captions_of(settings, token)
    vector = start_vector(diffusion, settings.init_word or macro_class.split()[-1])
    return Plan(
        [TOKEN],
        {TOKEN: settings.lr},
        lambda step, draw: plain_batch(photos, captions, settings.batch_size, draw),
        vector,
    )
