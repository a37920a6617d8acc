"""Custom Diffusion's merge of concepts that were learned apart (Kumari et al. 2023, section 3.2, "Constrained optimization to merge
concepts"), in closed form: for every matrix of keys or values

    Ŵ = argmin ‖W C_regᵀ − W0 C_regᵀ‖  with  W Cᵀ = V,

rows of C the text features of the concepts' words, V what each concept's own fine-tuned matrix makes of them. By Lagrange's method
Ŵ = W0 + vᵀ d with d = C (C_regᵀ C_reg)⁻¹ and vᵀ = (V − W0 Cᵀ)(d Cᵀ)⁻¹, as in the paper's appendix.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch

from persres.errors import PersresError
from persres.models.diffusion import Diffusion
from persres.models.text_encoding import concept_positions
from persres.models.weight_patching import TOKEN, patched_weights

RIDGE = 1e-6  # of the mean diagonal: features of few prompts don't span the text's width


def constrained_merge(
    base: torch.Tensor, wanted: list[tuple[torch.Tensor, torch.Tensor]], regular: torch.Tensor
) -> torch.Tensor:
    """One matrix [out, d] from the base model's and, of each concept, its own matrix [out, d] and its words' features [words, d];
    ``regular`` [m, d] are features on which the base model is to be kept. In float64; returns ``base``'s type."""
    w0, reg = base.double(), regular.double()
    words = torch.cat([c.double() for _, c in wanted])
    target = torch.cat([c.double() @ own.double().T for own, c in wanted]).T  # V: [out, words]
    gram = reg.T @ reg
    gram = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    d = torch.linalg.solve(gram, words.T).T  # [words, d]
    v = (target - w0 @ words.T) @ torch.linalg.pinv(d @ words.T, hermitian=True)
    return (w0 + v @ d).to(base.dtype)


def token_vectors(diffusion: Diffusion, states: list[dict[str, torch.Tensor]], tokens: list[str]) -> ExitStack:
    """A context in which each concept's token stands for its own learned vector."""
    stack = ExitStack()
    for state, token in zip(states, tokens, strict=True):
        number = diffusion.tokenizer.convert_tokens_to_ids(token)
        vector = state[TOKEN].to(diffusion.text_encoder.device)
        stack.enter_context(patched_weights(diffusion, {TOKEN: vector}, number))
    return stack


def merged_kv_weights(
    diffusion: Diffusion,
    states: list[dict[str, torch.Tensor]],
    phrases: list[str],
    tokens: list[str],
    regular: list[str],
    template: str = "a photo of a {}",
) -> dict[str, torch.Tensor]:
    """The merged matrices by parameter name (persres.models.weight_patching), for prompts that hold each concept's ``phrase`` with its ``token``.

    ``states`` are concepts' learned keys, values and V* vectors; ``regular`` prompts keep the base model. Raises PersresError where
    the states are of different weights.
    """
    names = [name for name in states[0] if name != TOKEN]
    if any({*names, TOKEN} != set(state) for state in states):
        raise PersresError("these concepts' states hold different weights; merge states of one method and one model")
    with token_vectors(diffusion, states, tokens):
        words = [_features(diffusion, template.replace("{}", phrase), phrase) for phrase in phrases]
    keep = diffusion.encode(regular).states.flatten(0, 1).float()
    found = {}
    for name in names:
        base = diffusion.unet.get_parameter(name.removeprefix("unet.")).detach()
        wanted = [(state[name].to(base.device), c) for state, c in zip(states, words, strict=True)]
        found[name] = constrained_merge(base, wanted, keep)
    return found


def _features(diffusion: Diffusion, prompt: str, phrase: str) -> torch.Tensor:
    """Text features [words, d] of a phrase in its prompt."""
    places = concept_positions(diffusion.tokenizer, prompt, phrase).bool()
    return diffusion.encode([prompt]).states[0][places.to(diffusion.text_encoder.device)].float()
