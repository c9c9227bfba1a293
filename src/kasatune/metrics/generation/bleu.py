"""BLEU of a corpus, computed by sacrebleu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kasatune.errors import MissingExtraError

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """min(1, exp(1 - r/c)) exp(mean over n = 1..4 of log p_n), between 0 and 1.

    p_n: clipped n-gram matches / n-grams of the predictions, over the corpus. c: number of predicted tokens; r: number
    of tokens of the references closest in length. Tokens are those of mteval-v13a, in lower case, without smoothing (0
    if some p_n is 0): the settings of the E2E challenge's scorer, with which it agrees. `bleu_signature` names them.

    Source: Papineni et al., ACL 2002; Post, WMT 2018 (sacrebleu).

    Raises:
        MissingExtraError: sacrebleu is not installed.
    """
    return _sacrebleu().corpus_score(predictions, _columns(references)).score / 100


def sentence_bleu_segments(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """BLEU of each prediction alone, between 0 and 1, with sacrebleu's settings for sentences.

    Orders n that a short text does not have are left out (effective order), and an order without a match counts as
    1 / 2^i matches for the i-th such order (smoothing "exp"). Tokens are those of `bleu`. The mean over texts is not
    the BLEU of the corpus.

    Raises:
        MissingExtraError: sacrebleu is not installed.
    """
    metric = _sacrebleu(smooth_method="exp", effective_order=True)
    pairs = zip(predictions, references, strict=True)
    return [metric.sentence_score(text, list(others)).score / 100 for text, others in pairs]


def bleu_signature(references: Sequence[Sequence[str]]) -> str:
    """Sacrebleu's signature of the settings of `bleu` on these references, to be published with the score.

    Raises:
        MissingExtraError: sacrebleu is not installed.
    """
    metric = _sacrebleu()
    extremes = [min(references, key=len), max(references, key=len)]  # these decide "nrefs", and scoring them is quick
    metric.corpus_score(["", ""], _columns(extremes))
    return str(metric.get_signature())


def _columns(references: Sequence[Sequence[str]]) -> Any:
    """The first references of all texts, the second ones, and so on; None where a text has fewer."""
    most = max(map(len, references))
    return [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]


def _sacrebleu(*, smooth_method: str = "none", effective_order: bool = False) -> BLEU:
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise MissingExtraError("the score bleu", "train") from None
    return BLEU(lowercase=True, tokenize="13a", smooth_method=smooth_method, effective_order=effective_order)
