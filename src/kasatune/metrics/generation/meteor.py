"""METEOR without its WordNet and paraphrase tables: exact and stem matches only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

from kasatune.errors import MissingExtraError
from kasatune.metrics.generation.tokenization import treebank_tokens

_ALPHA, _BETA, _GAMMA = 0.85, 0.2, 0.6
_STEM_WEIGHT = 0.6
_BEAM = 40


class _Counts(NamedTuple):
    """Of an alignment: total weight and number of matches, number of chunks, predicted and reference tokens."""

    weight: float
    matches: int
    chunks: int
    predicted: int
    expected: int

    def score(self) -> float:
        if not self.matches:
            return 0.0
        precision, recall = self.weight / self.predicted, self.weight / self.expected
        mean = precision * recall / (_ALPHA * precision + (1 - _ALPHA) * recall)
        return mean * (1 - _GAMMA * (self.chunks / self.matches) ** _BETA)


class _Partial(NamedTuple):
    """A partial alignment; the order of tuples is the order of preference.

    More weight is better, then fewer chunks, then less distance. `used` has a bit for every matched reference token;
    `last` is the reference token matched by the previous token, -2 if it had no match.
    """

    weight: float
    fewer_chunks: int
    nearness: int
    matches: int
    used: int
    last: int


def meteor_exact_stem(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """(1 - 0.6 (chunks / matches)^0.2) P R / (0.85 P + 0.15 R), between 0 and 1, over the corpus.

    Not comparable with the METEOR of published E2E tables. Parameters and form are those of METEOR 1.5 for English, and
    each prediction counts with its best reference, but words match only if they are equal (weight 1) or have equal
    Snowball stems (weight 0.6). METEOR 1.5 also matches WordNet synonyms and paraphrases, and gives function words less
    weight, from tables of its Java program. On the 630 outputs of the E2E challenge's system TNT1, the mean over
    segments is 0.437 where METEOR 1.5 gives 0.476; the correlation between the two is 0.88.

    Source: Denkowski and Lavie, WMT 2014.

    Raises:
        MissingExtraError: nltk, whose stemmer is used, is not installed.
    """
    best = _best(predictions, references)
    return _Counts(*(sum(column) for column in zip(*best, strict=True))).score()


def meteor_exact_stem_segments(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """`meteor_exact_stem` of each prediction by itself."""
    return [counts.score() for counts in _best(predictions, references)]


def require_stemmer() -> Callable[[str], str]:
    """The Snowball stemmer for English.

    Raises:
        MissingExtraError: nltk is not installed.
    """
    try:
        from nltk.stem.snowball import SnowballStemmer
    except ImportError:
        raise MissingExtraError("the score meteor_exact_stem", "meteor") from None
    return SnowballStemmer("english").stem


def _best(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[_Counts]:
    """For each prediction the counts against the reference with the best score."""
    stem = cache(require_stemmer())
    best: list[_Counts] = []
    for text, others in zip(predictions, references, strict=True):
        tokens = treebank_tokens(text)
        best.append(max((_align(tokens, treebank_tokens(other), stem) for other in others), key=_Counts.score))
    return best


def _align(tokens: Sequence[str], reference: Sequence[str], stem: Callable[[str], str]) -> _Counts:
    """The best alignment of two texts that a beam search finds."""
    reference_stems = [stem(other) for other in reference]
    beam = [_Partial(0.0, 0, 0, 0, 0, -2)]
    for index, token in enumerate(tokens):
        own = stem(token)
        options = [
            (position, 1.0 if token == other else _STEM_WEIGHT)
            for position, other in enumerate(reference)
            if token == other or own == reference_stems[position]
        ]
        grown = {state._replace(last=-2) for state in beam}
        for state in beam:
            grown.update(
                _match(state, index, position, weight) for position, weight in options if not state.used >> position & 1
            )
        beam = sorted(grown, reverse=True)[:_BEAM]
    best = beam[0]
    return _Counts(best.weight, best.matches, -best.fewer_chunks, len(tokens), len(reference))


def _match(state: _Partial, index: int, position: int, weight: float) -> _Partial:
    """The alignment with token `index` matched to the reference token at `position`."""
    return _Partial(
        state.weight + weight,
        state.fewer_chunks - (position != state.last + 1),
        state.nearness - abs(index - position),
        state.matches + 1,
        state.used | 1 << position,
        position,
    )
