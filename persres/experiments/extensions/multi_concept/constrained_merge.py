"""Custom Diffusion's merge of separately trained concepts (Kumari et al. 2023, section 3.2, "Constrained optimization to merge
concepts"), in closed form. For every key or value matrix

    Ŵ = argmin ‖W C_regᵀ − W0 C_regᵀ‖  with  W Cᵀ = V,

where the rows of C are the text features of the concepts' words, and V is what each concept's fine-tuned matrix makes of them. By
Lagrange's method Ŵ = W0 + vᵀ d with d = C (C_regᵀ C_reg)⁻¹ and vᵀ = (V − W0 Cᵀ)(d Cᵀ)⁻¹, as in the paper's appendix.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from persres.errors import PersresError
from persres.models.diffusion import Diffusion
from persres.models.text_encoding import concept_positions
from persres.models.weight_patching import TOKEN, patched_weights

State = dict[str, torch.Tensor]  # a concept's trained keys, values and V* embedding, by name
RIDGE = 1e-6  # of the mean diagonal: the features of a few prompts do not span the text width


def constrained_merge(
    base: torch.Tensor, concepts: list[tuple[torch.Tensor, torch.Tensor]], regular: torch.Tensor
) -> torch.Tensor:
    """The merged matrix [out, d], in ``base``'s dtype; computed in float64.

    ``concepts``: each concept's matrix [out, d] and the features of its words [words, d]. ``regular`` [m, d]: features
    on which the merged matrix stays close to ``base``.
    """
    w0, reg = base.double(), regular.double()
    words = torch.cat([features.double() for _, features in concepts])
    target = torch.cat([features.double() @ matrix.double().T for matrix, features in concepts]).T  # V: [out, words]
    gram = reg.T @ reg
    gram = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    d = torch.linalg.solve(gram, words.T).T  # [words, d]
    v = (target - w0 @ words.T) @ torch.linalg.pinv(d @ words.T, hermitian=True)
    return (w0 + v @ d).to(base.dtype)


@dataclass(frozen=True)
class FineTuned:
    """One concept's fine-tuned weights; ``phrase`` stands for it in prompts and contains ``token``, its V*."""

    state: State
    phrase: str
    token: str


@contextmanager
def trained_tokens(diffusion: Diffusion, concepts: list[FineTuned]) -> Iterator[None]:
    """Within the context, each concept's token has its trained embedding."""
    with ExitStack() as stack:
        for concept in concepts:
            token_id = diffusion.tokenizer.convert_tokens_to_ids(concept.token)
            vector = concept.state[TOKEN].to(diffusion.text_encoder.device)
            stack.enter_context(patched_weights(diffusion, {TOKEN: vector}, token_id))
        yield


def merged_kv_weights(
    diffusion: Diffusion, concepts: list[FineTuned], regular: list[str], template: str = "a photo of a {}"
) -> State:
    """The merged key and value matrices by parameter name (persres.models.weight_patching).

    ``regular``: prompts on which the result stays close to the base model. Raises PersresError if the states hold different weights.
    """
    names = [name for name in concepts[0].state if name != TOKEN]
    if any({*names, TOKEN} != set(concept.state) for concept in concepts):
        raise PersresError("these concepts' states hold different weights; merge states of one method and one model")
    with trained_tokens(diffusion, concepts):
        words = [_features(diffusion, template.replace("{}", one.phrase), one.phrase) for one in concepts]
    features = diffusion.encode(regular).states.flatten(0, 1).float()
    merged = {}
    for name in names:
        base = diffusion.unet.get_parameter(name.removeprefix("unet.")).detach()
        tuned = [(one.state[name].to(base.device), c) for one, c in zip(concepts, words, strict=True)]
        merged[name] = constrained_merge(base, tuned, features)
    return merged


def _features(diffusion: Diffusion, prompt: str, phrase: str) -> torch.Tensor:
    """Text features [words, d] of a phrase in its prompt."""
    positions = concept_positions(diffusion.tokenizer, prompt, phrase).bool()
    return diffusion.encode([prompt]).states[0][positions.to(diffusion.text_encoder.device)].float()
