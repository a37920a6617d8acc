"""Zero-shot class of a concept from its photos: CLIP, prompt templates, WordNet and the base model, with a confidence.

1. Each photo gives a softmax over nouns and prompt templates at the encoder's temperature, summed over the templates. So a
   template can explain the background, and an outlier photo has one vote, not a share of a mean.
2. WordNet's hypernyms turn the mean over photos into everyday names (persres/metrics/class_naming.py).
3. The base model classifies the likeliest names by denoising error (persres/metrics/diffusion_classifier.py).

The confidence is the probability of the returned name: that of step 2, times the likelihood of step 3's paired differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image

from persres.config.schema import ZeroShotClassSettings
from persres.datasets.wordnet.senses import Senses, load_senses
from persres.metrics.class_naming import TokenCount, assign_names, best_names, name_probabilities
from persres.metrics.clip_scores import ClipEncoder
from persres.metrics.short_texts import lengths
from persres.prompts import fill

MAX_CANDIDATES = 256  # nouns nearest to a set of photos; all others have almost no probability
MIN_SPREAD = 0.05  # least spread of the photos' differences, relative to their mean: few photos can agree by chance
DiffusionClassifier = Callable[
    [list[Image.Image], list[str]], torch.Tensor
]  # photos, prompts -> errors [photos, levels, prompts]


@dataclass(frozen=True)
class ZeroShotResult:
    """The likeliest name, its probability, the share of photos that alone would give it, and the five likeliest names."""

    noun: str
    confidence: float
    agreement: float
    top: tuple[tuple[str, float], ...]

    def entry(self) -> dict:
        """The entry of macro_class.json."""
        top = [[noun, round(p, 4)] for noun, p in self.top]
        scores = {"confidence": round(self.confidence, 4), "agreement": round(self.agreement, 4)}
        return {"zero_shot": self.noun, **scores, "zero_shot_top": top}


@dataclass(frozen=True)
class Vocabulary:
    """Nouns to compare photos with, WordNet's senses of them, a token counter, and the allowed names (None: the nouns)."""

    nouns: list[str]
    senses: Senses
    tokens: TokenCount
    names: list[str] | None = None


def noun_probabilities(photos: torch.Tensor, templates: list[torch.Tensor], scale: float) -> torch.Tensor:
    """Each photo's probability of each noun, summed over the templates, [p, n].

    ``photos`` [p, d] and each template's noun features [n, d] have unit rows; ``scale`` is the encoder's inverse temperature.
    """
    logits = torch.stack([scale * photos @ features.T for features in templates])
    return logits.logsumexp(0).softmax(1)


def classify(
    probabilities: torch.Tensor,
    vocabulary: Vocabulary,
    num_candidates: int,
    errors: Callable[[list[str]], torch.Tensor] | None = None,
) -> ZeroShotResult | None:
    """The class of one set of photos; None where no noun is a thing that a photo can show.

    ``probabilities`` [photos, nouns], rows summing to 1. ``errors`` gives the diffusion classifier's errors [photos, names] of
    the ``num_candidates`` likeliest names.
    """
    nouns, mean = vocabulary.nouns, probabilities.mean(0)
    nearest = mean.topk(min(MAX_CANDIDATES, len(nouns))).indices.tolist()
    near = [nouns[i] for i in nearest]
    mass = dict(zip(near, mean[nearest].tolist(), strict=True))
    names = best_names(near, vocabulary.names or nouns, vocabulary.senses, vocabulary.tokens)
    assigned = assign_names(mass, names, vocabulary.senses)
    candidates = list(name_probabilities(mass, assigned))[:num_candidates]
    if not candidates:
        return None
    rows = probabilities[:, nearest].tolist()
    single = [name_probabilities(dict(zip(near, row, strict=True)), assigned) for row in rows]
    prior = torch.tensor([[photo.get(name, 0.0) for name in candidates] for photo in single])
    return decide(candidates, prior, errors(candidates) if errors and len(candidates) > 1 else None)


def decide(names: list[str], prior: torch.Tensor, errors: torch.Tensor | None) -> ZeroShotResult:
    """The likeliest name. ``prior``: step 2's probabilities; ``errors``: step 3's; both [photos, names]."""
    weight, alone = prior.mean(0).log(), prior
    if errors is not None:
        weight, alone = weight - penalty(errors), -errors
    likely = weight.softmax(0) * (1.0 if errors is not None else prior.mean(0).sum().item())
    order = likely.argsort(descending=True, stable=True).tolist()
    agreement = (alone.argmax(1) == order[0]).float().mean().item()
    top = tuple((names[i], float(likely[i])) for i in order[:5])
    return ZeroShotResult(names[order[0]], float(likely[order[0]]), agreement, top)


def penalty(errors: torch.Tensor) -> torch.Tensor:
    """Half the squared t statistic of each name's paired differences to the best name's errors, [names]."""
    over = errors - errors[:, errors.mean(0).argmin()][:, None]
    mean = over.mean(0)
    spread = over.std(0) if len(errors) > 1 else torch.zeros_like(mean)
    error = (spread / len(errors) ** 0.5).clamp(min=1e-12) + MIN_SPREAD * mean.abs()
    return (mean / error).pow(2) / 2


def token_counter(encoder: ClipEncoder) -> TokenCount:
    """Counts the tokens of a word by the encoder's tokenizer, without start and end tokens."""

    def count(word: str) -> int:
        return int(lengths(encoder.model, encoder.tokenize([word]))[0])

    return lambda word: max(1, count(word) - count(""))


def zero_shot_classifier(
    settings: ZeroShotClassSettings,
    encoder: ClipEncoder,
    nouns: list[str],
    templates: list[torch.Tensor],
    diffusion_classifier: DiffusionClassifier | None,
) -> Callable[[list[Image.Image]], ZeroShotResult | None]:
    """A function that classifies one set of photos. ``templates``: the nouns' features [n, d] in each template; without
    ``diffusion_classifier`` step 3 is skipped."""
    vocabulary = Vocabulary(nouns, load_senses(), token_counter(encoder))
    scale = float(encoder.model.logit_scale.exp())

    def classify_photos(photos: list[Image.Image]) -> ZeroShotResult | None:
        def errors(names: list[str]) -> torch.Tensor:
            return diffusion_classifier(photos, [fill(settings.prompt, name) for name in names]).mean(1)

        probabilities = noun_probabilities(encoder.images(photos), templates, scale)
        return classify(probabilities, vocabulary, settings.num_candidates, errors if diffusion_classifier else None)

    return classify_photos
