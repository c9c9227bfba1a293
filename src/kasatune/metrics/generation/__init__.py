"""Scores of generated text against several references, as the E2E challenge's scorer has them.

Source: Dusek, Novikova and Rieser, Computer Speech & Language 59 (2020); the scorer is tuetschek/e2e-metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kasatune.metrics.generation.cider import cider, cider_segments
from kasatune.metrics.generation.meteor import meteor_exact_stem, meteor_exact_stem_segments
from kasatune.metrics.generation.mteval import bleu, nist
from kasatune.metrics.generation.rouge import rouge_l, rouge_l_segments

__all__ = [
    "bleu",
    "cider",
    "cider_segments",
    "generation_scores",
    "meteor_exact_stem",
    "meteor_exact_stem_segments",
    "nist",
    "rouge_l",
    "rouge_l_segments",
]

_SCORES: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]]], float]] = {
    "bleu": bleu,
    "nist": nist,
    "rouge_l": rouge_l,
    "cider": cider,
    "meteor_exact_stem": meteor_exact_stem,
}


def generation_scores(
    names: Sequence[str], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Scores of a corpus of generated texts.

    Args:
        names: of `bleu`, `nist`, `rouge_l`, `cider` and `meteor_exact_stem`.
        predictions: one text for each input.
        references: one or more right texts for each input, in the same order.

    Raises:
        ValueError: a name is unknown, there is no text, or a text has no reference.
        MissingExtraError: as `meteor_exact_stem` has it.
    """
    unknown = [name for name in names if name not in _SCORES]
    if unknown:
        raise ValueError(f"no such score: {', '.join(unknown)}; there are {', '.join(_SCORES)}")
    if len(predictions) != len(references) or not len(predictions):
        raise ValueError(f"{len(predictions)} texts and {len(references)} groups of references; one each is needed")
    bare = next((index for index, others in enumerate(references) if isinstance(others, str) or not others), None)
    if bare is not None:
        raise ValueError(f"text {bare} has no list of references")
    return {name: _SCORES[name](predictions, references) for name in names}
