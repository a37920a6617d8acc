"""Pictures of several concepts by every method from the same noise, in batches as large as the device takes, kept pair by pair."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from persres.datasets.layout import read_concepts
from persres.experiments.evidence.provenance import code_of
from persres.experiments.extensions.multi_concept.cases import Case
from persres.experiments.extensions.multi_concept.constrained_merge import FineTuned, merged_kv_weights, trained_tokens
from persres.images import to_images
from persres.methods.common.state_file import load_state
from persres.models.diffusion import Diffusion
from persres.models.loading import model_identity
from persres.models.weight_patching import patched_weights
from persres.prompts import fill, numbered
from persres.residuals.bank import ResidualBank, stack_banks
from persres.residuals.file import load_bank
from persres.sampling.multi_concept import MAX_CONCEPTS, add_numbered_tokens
from persres.sampling.sample import MultiConceptImage, Request, sample_batch
from persres.units.context import Context
from persres.units.files import digest_file, write_atomic
from persres.units.outputs import learned_path, read_macro_classes

log = logging.getLogger(__name__)
CODE = (
    "persres.sampling.sample",
    "persres.experiments.extensions.multi_concept.constrained_merge",
    "persres.experiments.extensions.multi_concept.cases",
)
REGULAR = 300  # prompts on which the merge keeps the base model
PIXELS = 512 * 64**2  # of a batch on a GPU


@dataclass(frozen=True)
class MultiConceptConfig:
    """``weights``: ``base`` (none, the plain prompt), ``residuals`` or ``merged`` (Custom Diffusion). ``lag`` as in a config.
    ``silent``: the last concept's residual is zeroed."""

    weights: str = "residuals"
    lag: bool | str = False
    split: str = "exclusive"
    silent: bool = False


CONFIGS: dict[str, MultiConceptConfig] = {
    "base": MultiConceptConfig("base"),
    "added": MultiConceptConfig(),
    "merged": MultiConceptConfig("merged"),
    "halves": MultiConceptConfig(lag="auto", split="halves"),
    "halves_back": MultiConceptConfig(lag="auto", split="halves_back"),
    "one_mask": MultiConceptConfig(lag="auto", split="shared"),
    "own_blocks": MultiConceptConfig(lag=True),
    "ours": MultiConceptConfig(lag="auto"),
    "swapped": MultiConceptConfig(lag="auto", split="swapped"),
    "one_zeroed": MultiConceptConfig(lag="auto", silent=True),
}
TRIPLE_CONFIGS = ("base", "added", "ours")  # for triples


@dataclass
class SampledImages:
    """Pictures uint8 [n, h, w, 3] in the cases' order, and masks float [n, K, s, s] where there are any."""

    images: np.ndarray
    masks: np.ndarray | None


class MultiConceptSampler:
    """What draws: the model with a token for each concept of a picture, all residuals in one bank, and where pictures are kept."""

    def __init__(self, context: Context, diffusion: Diffusion, kept: Path) -> None:
        self.context, self.diffusion, self.kept = context, diffusion, kept
        base, self.names = context.profile.base, list(read_macro_classes(context))
        self.tokens = [numbered(base.token, i) for i in range(1, MAX_CONCEPTS + 1)]
        add_numbered_tokens(diffusion, tuple(self.tokens), base.rare_token)
        paths = [learned_path(context.data, "ours", name) for name in self.names]
        bank = stack_banks([load_bank(diffusion.unet, path) for path in paths])
        self.bank = stack_banks(
            [bank, ResidualBank(list(bank.targets)).to(bank.up[0].device)]
        )  # the last one is nobody's: zero
        self.code, self.model = code_of(CODE), model_identity(base.model)
        # the merge keeps the base model on the concepts' own prompts with the plain class
        concepts = [concept for concept, _ in read_concepts(context.data / "concepts")]
        self.regular = [fill(text, c.macro_class) for c in concepts for _, text in c.prompts][:REGULAR]

    def draw(self, method: str, cases: list[Case]) -> SampledImages:
        """Every case's picture, those drawn before from the disk. All cases have as many concepts."""
        groups: dict[str, list[Case]] = {}
        for case in cases:
            groups.setdefault(case.order, []).append(case)
        todo = {name: own for name, own in groups.items() if not self._path(method, own).exists()}
        for batch in self._batches(method, todo):
            self._finish(method, batch)
            log.info("several: %s, %d of %d groups", method, len(todo), len(groups))
        read = {name: _read(self._path(method, own)) for name, own in groups.items()}
        rows = [(case.order, groups[case.order].index(case)) for case in cases]
        images = np.stack([read[group][0][i] for group, i in rows])
        masks = None if read[rows[0][0]][1] is None else np.stack([read[group][1][i] for group, i in rows])
        return SampledImages(images, masks)

    def _batches(self, method: str, todo: dict[str, list[Case]]) -> Iterator[list[list[Case]]]:
        """Groups side by side, as many as the device takes; merged weights are one group's."""
        size, batch = self._size(), []
        for own in todo.values():
            if batch and (CONFIGS[method].weights == "merged" or sum(map(len, batch)) + len(own) > size):
                yield batch
                batch = []
            batch.append(own)
        if batch:
            yield batch

    def _size(self) -> int:
        if self.diffusion.unet.device.type != "cuda":
            return max(24, self.context.profile.runtime.sample_batch)
        return max(4, PIXELS // self.context.profile.base.resolution**2)

    def _finish(self, method: str, batch: list[list[Case]]) -> None:
        images, masks, start = *self._batch(method, [case for own in batch for case in own]), 0
        for own in batch:
            rows = slice(start, start + len(own))
            start += len(own)
            data, held = {"images": images[rows]}, io.BytesIO()
            if masks is not None:
                data["masks"] = masks[rows].astype(np.float16)
            np.savez(held, **data)
            write_atomic(self._path(method, own), held.getvalue())

    def _batch(self, method: str, cases: list[Case]) -> tuple[np.ndarray, np.ndarray | None]:
        how, base = CONFIGS[method], self.context.profile.base
        sampling = self.context.profile.sample.model_copy(update={"lag": how.lag})
        bank = self.bank if how.weights == "residuals" else None
        images, masks = [], []
        with self._weights(how, cases):
            for start in range(0, len(cases), self._size()):
                part = [self._shown(how, case) for case in cases[start : start + self._size()]]
                [(x, m)] = sample_batch(self.diffusion, [Request(part, sampling, bank, how.split)], base.resolution)
                images += [np.asarray(image) for image in to_images(x)]
                masks += [] if m is None else list(m.cpu().numpy())
        return np.stack(images), np.stack(masks) if masks else None

    def _shown(self, how: MultiConceptConfig, case: Case) -> MultiConceptImage:
        if how.weights == "base":
            return MultiConceptImage(case.plain, case.classes, (0,) * len(case.names), case.plain, case.image)
        shown = case.shown(self.context.profile.base.token, self.names)
        if how.silent:
            return replace(shown, rows=(*shown.rows[:-1], len(self.names)))
        return shown

    def _weights(self, how: MultiConceptConfig, cases: list[Case]) -> AbstractContextManager:
        """Custom Diffusion's merged keys, values and vectors for one order of one pair; for the others nothing."""
        if how.weights != "merged":
            return nullcontext()
        one, token = cases[0], self.context.profile.base.token
        phrases = one.shown(token, self.names).phrases
        concepts = [
            FineTuned(load_state(learned_path(self.context.data, "custom_diffusion", name))[0], phrase, v_star)
            for name, phrase, v_star in zip(one.names, phrases, self.tokens, strict=False)
        ]
        values = merged_kv_weights(self.diffusion, concepts, self.regular)
        stack = ExitStack()
        stack.enter_context(trained_tokens(self.diffusion, concepts))
        stack.enter_context(patched_weights(self.diffusion, values))
        return stack

    def _path(self, method: str, own: list[Case]) -> Path:
        """Named by all that the pictures depend on."""
        base, sample = self.context.profile.base, self.context.profile.sample
        variant = {"residuals": "ours", "merged": "custom_diffusion"}.get(CONFIGS[method].weights)
        learned = (
            [digest_file(learned_path(self.context.data, variant, name)) for name in own[0].names] if variant else []
        )
        said = [method, repr(CONFIGS[method]), base.model_dump(), self.model, sample.steps, sample.cfg_scale, sample.seed,
                [[c.order, c.template, c.image, c.classes] for c in own], learned, self.code]  # fmt: skip
        name = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:20]
        return self.kept / f"{method}-{name}.npz"


def _read(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with np.load(path, allow_pickle=False) as data:
        return data["images"], data["masks"].astype(np.float32) if "masks" in data else None
