"""The everyday name of what an encoder labels too finely: "dog" for a Pembroke, from WordNet's hypernyms.

Each noun assigns its probability to the best name among its hypernyms. A good name holds much of the probability, has few
synsets below it (the information that Deng et al., "Hedging your bets", CVPR 2012, weigh against certainty), and is a word in
common use: frequent in tagged text and short to a tokenizer (paper 3.2 puts it into every prompt). Names compete with their
hypernyms and hyponyms only, so frequency does not favour a common thing over a rare one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

from persres.datasets.wordnet.senses import Senses

INFORMATION = 2.0  # exponent that favours narrow names; at 1 WordNet's "device" replaces "glasses"
PER_TOKEN = 0.5  # factor on a name's weight for each further token
MIN_SENSE_SHARE = 0.5  # least share of a word's use that must mean the synset it names
TokenCount = Callable[[str], int]
Names = dict[int, tuple[str, float]]  # by synset


def best_names(nouns: Iterable[str], candidates: Iterable[str], senses: Senses, tokens: TokenCount) -> Names:
    """The best name among ``candidates`` for each hypernym of ``nouns``, with its weight, by synset.

    The weight is (1 + log(1 + count)) · PER_TOKEN^(tokens − 1). ``tokens`` counts a word's tokens.
    """
    synsets = {above for noun in nouns for synset in senses.shown(noun) for above in senses.above(synset)}
    names: Names = {}
    for noun in candidates:
        counts = {s.synset: s.count for s in senses.senses.get(noun, ()) if s.synset in synsets}
        shown = senses.shown(noun) if counts else {}
        for synset in (s for s in counts if shown.get(s, 0) >= MIN_SENSE_SHARE):
            weight = (1 + math.log1p(counts[synset])) * PER_TOKEN ** (tokens(noun) - 1)
            if weight > names.get(synset, ("", 0.0))[1]:
                names[synset] = noun, weight
    return names


def assign_names(mass: dict[str, float], names: Names, senses: Senses) -> dict[str, dict[str, float]]:
    """The names that each noun assigns its probability to, with their shares. ``mass``: probability by noun.

    A noun that WordNet lacks names itself; a noun that no photo can show ("night") has no name.
    """
    pooled: dict[int, float] = defaultdict(float)
    for noun, probability in mass.items():
        for synset, share in senses.shown(noun).items():
            for above in senses.above(synset) & names.keys():
                pooled[above] += probability * share
    value = {s: held * _information(s, senses) ** INFORMATION * names[s][1] for s, held in pooled.items()}
    return {noun: _assigned(noun, names, value, senses) for noun in mass}


def _information(synset: int, senses: Senses) -> float:
    """1 for a synset without hyponyms, 0 for the root."""
    return 1 - math.log(senses.sizes()[synset]) / math.log(len(senses.file))


def _assigned(noun: str, names: Names, value: dict[int, float], senses: Senses) -> dict[str, float]:
    if noun not in senses.senses:
        return {noun: 1.0}
    shares: dict[str, float] = defaultdict(float)
    for synset, share in senses.shown(noun).items():
        over = senses.above(synset) & value.keys()
        shares[names[max(over, key=lambda s: (value[s], -s))][0] if over else noun] += share
    return dict(shares)


def name_probabilities(mass: dict[str, float], assigned: dict[str, dict[str, float]]) -> dict[str, float]:
    """Probability by name, normalised, the largest first. Empty where no noun is a thing that a photo can show."""
    total: dict[str, float] = defaultdict(float)
    for noun, probability in mass.items():
        for name, share in assigned[noun].items():
            total[name] += probability * share
    whole = sum(total.values())
    return {n: total[n] / whole for n in sorted(total, key=lambda n: (-total[n], n))} if whole > 0 else {}
