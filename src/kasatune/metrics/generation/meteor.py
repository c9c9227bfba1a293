"""METEOR as far as it goes without WordNet and paraphrase tables: exact and stem matches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from kasatune.errors import MissingExtraError
from kasatune.metrics.generation.tokens import treebank_tokens

_ALPHA, _BETA, _GAMMA = 0.85, 0.2, 0.6
_STEM_WEIGHT = 0.6
_BEAM = 40


class _Counts(NamedTuple):
    """Of an alignment: weight of its matches, their number, chunks; tokens predicted and of the reference."""

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
    """An alignment of the tokens so far; greater is better.

    More weight is better, then fewer chunks, then less distance. `used` has a bit for every reference token taken;
    `last` is the reference token of the token before, -2 where that had none.
    """

    weight: float
    fewer_chunks: int
    nearness: int
    matches: int
    used: int
    last: int


def meteor_exact_stem(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """(1 - 0.6 (chunks / matches)^0.2) P R / (0.85 P + 0.15 R), between 0 and 1, over the corpus.

    Not the METEOR of published E2E tables. Parameters and form are METEOR 1.5's for English, and each prediction counts
    with the reference that scores best; but words match only when equal (weight 1) or of equal Snowball stem (0.6).
    METEOR 1.5 also matches WordNet synonyms and paraphrases, and weighs function words less, from tables that its Java
    program brings. On the 630 outputs of the E2E challenge's system TNT1 the segments' mean is 0.437 where METEOR 1.5
    has 0.476, and the two correlate with 0.88.

    Source: Denkowski and Lavie, WMT 2014.

    Raises:
        MissingExtraError: nltk, whose stemmer is used, is not installed.
    """
    best = _best(predictions, references)
    return _Counts(*(sum(column) for column in zip(*best, strict=True))).score()


def meteor_exact_stem_segments(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """`meteor_exact_stem` of each prediction by itself."""
    return [counts.score() for counts in _best(predictions, references)]


def _best(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[_Counts]:
    """For each prediction the counts against the reference that scores best."""
    stem = _stemmer()
    best = []
    for text, others in zip(predictions, references, strict=True):
        tokens = treebank_tokens(text)
        best.append(max((_align(tokens, treebank_tokens(other), stem) for other in others), key=_Counts.score))
    return best


def _stemmer() -> Callable[[str], str]:
    try:
        from nltk.stem.snowball import SnowballStemmer
    except ImportError:
        raise MissingExtraError("the score meteor_exact_stem", "generation") from None
    stem, known = SnowballStemmer("english").stem, {}

    def remember(word: str) -> str:
        if word not in known:
            known[word] = stem(word)
        return known[word]

    return remember


def _align(tokens: Sequence[str], reference: Sequence[str], stem: Callable[[str], str]) -> _Counts:
    """The best alignment of two texts that a beam search finds."""
    other_stems = [stem(other) for other in reference]
    beam = [_Partial(0.0, 0, 0, 0, 0, -2)]
    for index, token in enumerate(tokens):
        own = stem(token)
        options = [
            (place, 1.0 if token == other else _STEM_WEIGHT)
            for place, other in enumerate(reference)
            if token == other or own == other_stems[place]
        ]
        grown = {state._replace(last=-2) for state in beam}
        for state in beam:
            grown.update(
                _match(state, index, place, weight) for place, weight in options if not state.used >> place & 1
            )
        beam = sorted(grown, reverse=True)[:_BEAM]
    found = beam[0]
    return _Counts(found.weight, found.matches, -found.fewer_chunks, len(tokens), len(reference))


def _match(state: _Partial, index: int, place: int, weight: float) -> _Partial:
    """The alignment with token `index` at reference token `place`."""
    return _Partial(
        state.weight + weight,
        state.fewer_chunks - (place != state.last + 1),
        state.nearness - abs(index - place),
        state.matches + 1,
        state.used | 1 << place,
        place,
    )
