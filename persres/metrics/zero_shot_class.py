"""The macro class found by itself: photos, prompts, WordNet and the base model together, with a confidence.

1. Every photo says what it shows: a softmax over nouns and prompt templates together, at the encoder's own temperature, summed over
   the templates, so that a template may explain the background away and an odd photo has one voice, not a share of a mean.
2. The photos' mean is handed up WordNet's tree to names that people use (persres/metrics/class_naming.py).
3. The base model judges the likeliest names by its denoising error (persres/metrics/diffusion_classifier.py), photo by photo.

The confidence is the probability of the chosen name: step 2's, times how likely step 3's paired differences are if it is best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image

from persres.config.schema import ZeroShotClassSettings
from persres.datasets.wordnet.senses import Senses, load_senses
from persres.metrics.class_naming import Tokens, names_of, renamed, shares
from persres.metrics.clip_scores import ClipEncoder
from persres.metrics.diffusion_classifier import denoising_errors
from persres.metrics.short_texts import lengths
from persres.models.diffusion import Diffusion
from persres.prompts import fill

MAX_CANDIDATES = 256  # nouns that a set of photos is near to; what lies behind them holds next to nothing
FLOOR = 0.05  # least spread of the photos' differences, as a part of their mean: few photos can agree by chance
DiffusionClassifier = Callable[[list[str]], torch.Tensor]  # names -> errors [photos, names]


@dataclass(frozen=True)
class ZeroShotResult:
    """The chosen name, its probability, the part of the photos that would choose it alone, and the likeliest names in order."""

    noun: str
    confidence: float
    agreement: float
    top: tuple[tuple[str, float], ...]

    def entry(self) -> dict:
        """As macro_class.json has it."""
        top = [[noun, round(p, 4)] for noun, p in self.top]
        return {
            "zero_shot": self.noun,
            "confidence": round(self.confidence, 4),
            "agreement": round(self.agreement, 4),
            "zero_shot_top": top,
        }


def noun_probabilities(photos: torch.Tensor, templates: list[torch.Tensor], scale: float) -> torch.Tensor:
    """[p, n]: each photo's probability of each noun, summed over the templates. ``photos`` [p, d], each template's features [n, d],
    unit rows; ``scale``: the encoder's inverse temperature."""
    logits = torch.stack([scale * photos @ features.T for features in templates])
    return logits.logsumexp(0).softmax(1)


def classify(
    probabilities: torch.Tensor,
    nouns: list[str],
    senses: Senses,
    tokens: Tokens,
    keep: int,
    judge: DiffusionClassifier | None = None,
    words: list[str] | None = None,
) -> ZeroShotResult | None:
    """The class of one set of photos. ``probabilities`` [photos, nouns], rows adding up to 1; ``keep``: names that the judge is asked
    about; ``words``: what may be a name, the nouns themselves if not said. None where no noun means a thing that a photo can show."""
    mean = probabilities.mean(0)
    kept = mean.topk(min(MAX_CANDIDATES, len(nouns))).indices.tolist()
    near = [nouns[i] for i in kept]
    mass = dict(zip(near, mean[kept].tolist(), strict=True))
    handed = renamed(mass, names_of(near, words or nouns, senses, tokens), senses)
    asked = list(shares(mass, handed))[:keep]
    if not asked:
        return None
    single = [shares(dict(zip(near, row, strict=True)), handed) for row in probabilities[:, kept].tolist()]
    prior = torch.tensor([[photo.get(name, 0.0) for name in asked] for photo in single])
    return decide(asked, prior, judge(asked) if judge and len(asked) > 1 else None)


def decide(names: list[str], prior: torch.Tensor, errors: torch.Tensor | None) -> ZeroShotResult:
    """The likeliest name. ``prior``: each photo's shares by step 2, ``errors``: the judge's; both [photos, names]."""
    weight, alone = prior.mean(0).log(), prior
    if errors is not None:
        weight, alone = weight - penalty(errors), -errors
    likely = weight.softmax(0) * (1.0 if errors is not None else prior.mean(0).sum().item())
    order = likely.argsort(descending=True, stable=True).tolist()
    agreement = (alone.argmax(1) == order[0]).float().mean().item()
    return ZeroShotResult(
        names[order[0]], float(likely[order[0]]), agreement, tuple((names[i], float(likely[i])) for i in order[:5])
    )


def penalty(errors: torch.Tensor) -> torch.Tensor:
    """How far each name is from being the best, [names]: half the squared t of its errors' paired differences to the best name's."""
    over = errors - errors[:, errors.mean(0).argmin()][:, None]
    mean = over.mean(0)
    spread = over.std(0) if len(errors) > 1 else torch.zeros_like(mean)
    error = (spread / len(errors) ** 0.5).clamp(min=1e-12) + FLOOR * mean.abs()
    return (mean / error).pow(2) / 2


def token_counter(encoder: ClipEncoder) -> Tokens:
    """Counts a word's tokens as CLIP's own tokenizer has them, without the start and the end."""

    def count(word: str) -> int:
        return int(lengths(encoder.model, encoder.tokenize([word]))[0])

    return lambda word: max(1, count(word) - count(""))


def zero_shot_classifier(
    settings: ZeroShotClassSettings,
    encoder: ClipEncoder,
    nouns: list[str],
    templates: list[torch.Tensor],
    diffusion: Diffusion | None,
    resolution: int,
) -> Callable[[list[Image.Image]], ZeroShotResult | None]:
    """What finds the class of one set of photos. ``templates``: the nouns' features [n, d] in each template; without ``diffusion`` the
    photos, the prompts and WordNet decide alone."""
    senses, tokens, scale = load_senses(), token_counter(encoder), float(encoder.model.logit_scale.exp())

    def find(photos: list[Image.Image]) -> ZeroShotResult | None:
        def judge(names: list[str]) -> torch.Tensor:
            prompts = [fill(settings.prompt, name) for name in names]
            return denoising_errors(
                diffusion, photos, prompts, resolution, settings.noise_levels, settings.batch_size
            ).mean(1)

        likely = noun_probabilities(encoder.images(photos), templates, scale)
        return classify(
            likely, nouns, senses, tokens, settings.num_candidates, judge if diffusion is not None else None
        )

    return find
