"""Images of several concepts by every config from the same noise, in batches; cached on disk per pair and prompt order."""

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
REGULARIZATION_PROMPTS = 300  # on which the merge preserves the base model
BATCH_PIXELS = 512 * 64**2  # on a GPU


@dataclass(frozen=True)
class MultiConceptConfig:
    """``weights``: ``base`` (no residual, plain prompt), ``residuals``, or ``merged`` (Custom Diffusion). ``lag`` as in
    ``sample.configs``. ``last_zeroed``: the last concept's residual is zero."""

    weights: str = "residuals"
    lag: bool | str = False
    split: str = "exclusive"
    last_zeroed: bool = False


CONFIGS: dict[str, MultiConceptConfig] = {
    "base": MultiConceptConfig("base"),
    "added": MultiConceptConfig(),
    "merged": MultiConceptConfig("merged"),
    "halves": MultiConceptConfig(lag="auto", split="halves"),
    "halves_back": MultiConceptConfig(lag="auto", split="halves_back"),
    "one_mask": MultiConceptConfig(lag="auto", split="shared"),
    "per_block_median": MultiConceptConfig(lag=True),
    "ours": MultiConceptConfig(lag="auto"),
    "swapped": MultiConceptConfig(lag="auto", split="swapped"),
    "one_zeroed": MultiConceptConfig(lag="auto", last_zeroed=True),
}
TRIPLE_CONFIGS = ("base", "added", "ours")


@dataclass
class SampledImages:
    """``images`` uint8 [n, h, w, 3] in the cases' order; ``masks`` float [n, K, s, s], None without masks."""

    images: np.ndarray
    masks: np.ndarray | None


class MultiConceptSampler:
    """Samples cases and caches them below ``cache``: the model with a token per concept, and all residuals in one bank."""

    def __init__(self, context: Context, diffusion: Diffusion, cache: Path) -> None:
        self.context, self.diffusion, self.cache = context, diffusion, cache
        base, self.names = context.profile.base, list(read_macro_classes(context))
        self.tokens = [numbered(base.token, i) for i in range(1, MAX_CONCEPTS + 1)]
        add_numbered_tokens(diffusion, tuple(self.tokens), base.rare_token)
        self.bank = self._stacked_bank()
        self.code, self.model = code_of(CODE), model_identity(base.model)
        # the merge preserves the base model on the concepts' prompts with the plain class
        concepts = [concept for concept, _ in read_concepts(context.data / "concepts")]
        prompts = [fill(text, c.macro_class) for c in concepts for _, text in c.prompts]
        self.regularization = prompts[:REGULARIZATION_PROMPTS]

    def _stacked_bank(self) -> ResidualBank:
        """All residuals in one bank, and a zero residual at the end."""
        paths = [learned_path(self.context.data, "ours", name) for name in self.names]
        bank = stack_banks([load_bank(self.diffusion.unet, path) for path in paths])
        return stack_banks([bank, ResidualBank(list(bank.targets)).to(bank.up[0].device)])

    def sample(self, config: str, cases: list[Case]) -> SampledImages:
        """Return the images of all cases, from the cache where possible. All cases must have the same number of concepts."""
        groups: dict[str, list[Case]] = {}
        for case in cases:
            groups.setdefault(case.order, []).append(case)
        missing = {name: group for name, group in groups.items() if not self._path(config, group).exists()}
        for batch in self._batches(config, missing):
            self._sample_groups(config, batch)
            log.info("multi_concept: %s, %d of %d groups", config, len(missing), len(groups))
        cached = {name: _read(self._path(config, group)) for name, group in groups.items()}
        rows = [(case.order, groups[case.order].index(case)) for case in cases]
        images = np.stack([cached[group][0][i] for group, i in rows])
        masks = None if cached[rows[0][0]][1] is None else np.stack([cached[group][1][i] for group, i in rows])
        return SampledImages(images, masks)

    def _batches(self, config: str, groups: dict[str, list[Case]]) -> Iterator[list[list[Case]]]:
        """Batches of groups, as many as fit the device; merged weights belong to one group only."""
        size, batch = self._size(), []
        for group in groups.values():
            if batch and (CONFIGS[config].weights == "merged" or sum(map(len, batch)) + len(group) > size):
                yield batch
                batch = []
            batch.append(group)
        if batch:
            yield batch

    def _size(self) -> int:
        if self.diffusion.unet.device.type != "cuda":
            return max(24, self.context.profile.runtime.sample_batch)
        return max(4, BATCH_PIXELS // self.context.profile.base.resolution**2)

    def _sample_groups(self, config: str, groups: list[list[Case]]) -> None:
        images, masks, start = *self._sample_cases(config, [case for group in groups for case in group]), 0
        for group in groups:
            rows = slice(start, start + len(group))
            start += len(group)
            data, buffer = {"images": images[rows]}, io.BytesIO()
            if masks is not None:
                data["masks"] = masks[rows].astype(np.float16)
            np.savez(buffer, **data)
            write_atomic(self._path(config, group), buffer.getvalue())

    def _sample_cases(self, name: str, cases: list[Case]) -> tuple[np.ndarray, np.ndarray | None]:
        config, base = CONFIGS[name], self.context.profile.base
        sampling = self.context.profile.sample.model_copy(update={"lag": config.lag})
        bank = self.bank if config.weights == "residuals" else None
        images, masks = [], []
        with self._weights(config, cases):
            for start in range(0, len(cases), self._size()):
                part = [self._request(config, case) for case in cases[start : start + self._size()]]
                [(x, m)] = sample_batch(self.diffusion, [Request(part, sampling, bank, config.split)], base.resolution)
                images += [np.asarray(image) for image in to_images(x)]
                masks += [] if m is None else list(m.cpu().numpy())
        return np.stack(images), np.stack(masks) if masks else None

    def _request(self, config: MultiConceptConfig, case: Case) -> MultiConceptImage:
        if config.weights == "base":
            return MultiConceptImage(case.plain, case.classes, (0,) * len(case.names), case.plain, case.image)
        request = case.request(self.context.profile.base.token, self.names)
        if config.last_zeroed:
            return replace(request, rows=(*request.rows[:-1], len(self.names)))
        return request

    def _weights(self, config: MultiConceptConfig, cases: list[Case]) -> AbstractContextManager:
        """Patch in Custom Diffusion's merged keys, values and token vectors for one pair; do nothing for other configs."""
        if config.weights != "merged":
            return nullcontext()
        case = cases[0]
        phrases = case.request(self.context.profile.base.token, self.names).phrases
        concepts = [
            FineTuned(load_state(learned_path(self.context.data, "custom_diffusion", name))[0], phrase, token)
            for name, phrase, token in zip(case.names, phrases, self.tokens, strict=False)
        ]
        values = merged_kv_weights(self.diffusion, concepts, self.regularization)
        stack = ExitStack()
        stack.enter_context(trained_tokens(self.diffusion, concepts))
        stack.enter_context(patched_weights(self.diffusion, values))
        return stack

    def _path(self, config: str, group: list[Case]) -> Path:
        """The cache file, named by a digest of everything that the images depend on."""
        base, sample = self.context.profile.base, self.context.profile.sample
        variant = {"residuals": "ours", "merged": "custom_diffusion"}.get(CONFIGS[config].weights)
        names = group[0].names if variant else ()
        learned = [digest_file(learned_path(self.context.data, variant, name)) for name in names]
        key = [config, repr(CONFIGS[config]), base.model_dump(), self.model, sample.steps, sample.cfg_scale, sample.seed,
               [[c.order, c.template, c.image, c.classes] for c in group], learned, self.code]  # fmt: skip
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
        return self.cache / f"{config}-{name}.npz"


def _read(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with np.load(path, allow_pickle=False) as data:
        return data["images"], data["masks"].astype(np.float32) if "masks" in data else None
