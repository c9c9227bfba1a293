"""Scores of generated text against several references, with the definitions of the E2E challenge's scorer.

Source: Dusek, Novikova and Rieser, Computer Speech & Language 59 (2020); the scorer is tuetschek/e2e-metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from kasatune.metrics.generation.bleu import bleu, bleu_signature, sentence_bleu_segments
from kasatune.metrics.generation.cider import cider, cider_segments
from kasatune.metrics.generation.coco_rouge_l import rouge_l, rouge_l_segments
from kasatune.metrics.generation.meteor import meteor_exact_stem, meteor_exact_stem_segments, require_stemmer
from kasatune.metrics.generation.nist import nist
from kasatune.wording import counted

__all__ = [
    "OPTIONAL_SCORES",
    "bleu",
    "bleu_signature",
    "cider",
    "cider_segments",
    "generation_scores",
    "meteor_exact_stem",
    "meteor_exact_stem_segments",
    "nist",
    "require_scores",
    "rouge_l",
    "rouge_l_segments",
    "sentence_bleu_segments",
    "signatures",
]

_SCORES: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]]], float]] = {
    "bleu": bleu,
    "nist": nist,
    "rouge_l": rouge_l,
    "cider": cider,
    "meteor_exact_stem": meteor_exact_stem,
}
OPTIONAL_SCORES = ("meteor_exact_stem",)
"""Scores that no task computes unless they are requested."""


def generation_scores(
    names: Sequence[str], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Scores of a corpus of generated texts.

    Args:
        names: any of `bleu`, `nist`, `rouge_l`, `cider` and `meteor_exact_stem`.
        predictions: one text per input.
        references: one or more reference texts per input, in the same order.

    Raises:
        ValueError: a name is unknown, there is no text, or a text has no reference.
        MissingExtraError: the library of a score is not installed.
    """
    require_scores(names)
    if len(predictions) != len(references) or not len(predictions):
        raise ValueError(
            f"{counted(len(predictions), 'text')} and {counted(len(references), 'group')} of references received; "
            "give one group per text, and at least one text"
        )
    bare = next((index for index, group in enumerate(references) if isinstance(group, str) or not group), None)
    if bare is not None:
        raise ValueError(f"text {bare} has no list of references")
    return {name: _SCORES[name](predictions, references) for name in names}


def require_scores(names: Collection[str]) -> None:
    """Check, before any text is generated, that the scores `names` exist and their libraries are installed.

    Raises:
        ValueError: a name is unknown.
        MissingExtraError: the library of a score is not installed.
    """
    unknown = [name for name in names if name not in _SCORES]
    if unknown:
        raise ValueError(f"unknown score: {', '.join(unknown)}; choose from {', '.join(_SCORES)}")
    if "meteor_exact_stem" in names:
        require_stemmer()


def signatures(names: Collection[str], references: Sequence[Sequence[str]]) -> dict[str, str]:
    """The signatures of those scores that have one, by name: the settings in the form in which they are published."""
    return {"bleu": bleu_signature(references)} if "bleu" in names else {}
