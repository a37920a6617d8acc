"""Custom Diffusion's closed-form merge against what defines it: a least-squares problem under constraints."""

from __future__ import annotations

import pytest
import torch

from persres.config.schema import Base
from persres.errors import PersresError
from persres.experiments.extensions.multi_concept.constrained_merge import (
    FineTuned,
    constrained_merge,
    merged_kv_weights,
    trained_tokens,
)
from persres.methods.custom_diffusion import trained_names
from persres.models.diffusion import load_diffusion
from persres.models.text_encoding import concept_positions
from persres.models.weight_patching import TOKEN, trainable_copies
from persres.sampling.multi_concept import add_numbered_tokens

DRAW = torch.Generator().manual_seed(3)
WIDTH, OUT = 12, 7


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64)


def problem() -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
    base = normal(OUT, WIDTH)
    return base, [(base + normal(OUT, WIDTH), normal(2, WIDTH)) for _ in range(2)], normal(60, WIDTH)


def test_each_concepts_words_give_the_output_of_its_matrix():
    base, concepts, regular = problem()
    merged = constrained_merge(base, concepts, regular)
    for matrix, words in concepts:
        torch.testing.assert_close(words @ merged.T, words @ matrix.T, atol=1e-8, rtol=1e-8)


def test_nothing_that_keeps_the_constraints_is_nearer_to_the_base_model():
    """Any other solution differs by rows orthogonal to the words; a step along one raises the objective, both ways."""
    base, concepts, regular = problem()
    merged = constrained_merge(base, concepts, regular)
    words = torch.cat([c for _, c in concepts])
    outside = torch.eye(WIDTH, dtype=words.dtype) - torch.linalg.pinv(words) @ words

    def distance(matrix: torch.Tensor) -> float:
        return float(((matrix - base) @ regular.T).square().sum())

    for _ in range(5):
        step = 0.05 * normal(OUT, WIDTH) @ outside
        assert distance(merged) < min(distance(merged + step), distance(merged - step))
    simple = base + torch.cat([c @ (matrix - base).T for matrix, c in concepts]).T @ torch.linalg.pinv(words).T
    assert distance(merged) < 0.999 * distance(simple), "the features that are kept count"


def test_concepts_that_learned_nothing_leave_the_base_model():
    base, concepts, regular = problem()
    unchanged = constrained_merge(base, [(base, words) for _, words in concepts], regular)
    torch.testing.assert_close(unchanged, base, atol=1e-10, rtol=1e-10)


def test_features_that_do_not_span_the_width_are_no_obstacle():
    base, concepts, regular = problem()
    merged = constrained_merge(base, concepts, regular[:3])
    for matrix, words in concepts:
        torch.testing.assert_close(words @ merged.T, words @ matrix.T, atol=1e-4, rtol=1e-4)


def test_two_concepts_of_a_model_keep_what_each_learned_of_its_words(tiny_pipeline):
    """Keys and values that two trainings left, random here, with vectors of their own for V1* and V2*."""
    diffusion = load_diffusion(Base(model=str(tiny_pipeline), resolution=32), "cpu")
    tokens, phrases = ["<v1*>", "<v2*>"], ["<v1*> mug", "<v2*> robot"]
    add_numbered_tokens(diffusion, tuple(tokens), "sks")
    start = trainable_copies(diffusion, trained_names(diffusion), diffusion.tokenizer.convert_tokens_to_ids("<v*>"))
    states = [
        {name: v.detach() + 0.1 * torch.randn(v.shape, generator=DRAW) for name, v in start.items()} for _ in tokens
    ]
    concepts = [FineTuned(*parts) for parts in zip(states, phrases, tokens, strict=True)]
    merged = merged_kv_weights(diffusion, concepts, ["a photo of a cat", "a photo of a tree in the snow"])
    assert set(merged) == set(start) - {TOKEN}
    for state, phrase in zip(states, phrases, strict=True):
        prompt = f"a photo of a {phrase}"
        with trained_tokens(diffusion, concepts):
            words = diffusion.encode([prompt]).states[0][concept_positions(diffusion.tokenizer, prompt, phrase).bool()]
        for name, weight in merged.items():
            torch.testing.assert_close(words @ weight.T, words @ state[name].T, atol=1e-3, rtol=1e-3)
            assert not torch.allclose(words @ start[name].T, words @ state[name].T, atol=1e-2)
    with pytest.raises(PersresError, match="different weights"):
        other = FineTuned({TOKEN: states[1][TOKEN]}, phrases[1], tokens[1])
        merged_kv_weights(diffusion, [concepts[0], other], ["a cat"])
