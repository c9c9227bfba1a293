"""An index of passages: BM25, or the vectors of a dense encoder, over the chunks of a corpus."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from kasatune.data.retrieval.chunks import Chunk
from kasatune.errors import MissingExtraError

BM25 = "bm25"
K1, B = 1.5, 0.75

Floats = npt.NDArray[np.float32]


class Passage(NamedTuple):
    """A retrieved chunk.

    Attributes:
        chunk: the chunk.
        score: its score for the question; larger is better.
    """

    chunk: Chunk
    score: float


class _Scorer(Protocol):
    def __call__(self, question: str) -> Floats:
        """The score of every chunk."""
        ...


class PassageIndex:
    """Retrieves the chunks of a corpus that fit a question best.

    The name of its document is indexed with each chunk.

    Args:
        chunks: at least one.
        retriever: "bm25" for Okapi BM25 (Lucene's form, k1 = 1.5, b = 0.75), otherwise the name of an encoder, see
            `DenseEncoder`.

    Raises:
        MissingExtraError: bm25s is not installed.
        ModelError: the encoder cannot be loaded.
    """

    def __init__(self, chunks: Sequence[Chunk], retriever: str = BM25) -> None:
        self.chunks = list(chunks)
        self.retriever = retriever
        texts = [f"{chunk.document}\n{chunk.text}" for chunk in self.chunks]
        self._scores: _Scorer = bm25_scorer(texts) if retriever == BM25 else _dense_scorer(texts, retriever)

    def search(self, question: str, k: int, *, allowed: Callable[[Chunk], bool] = lambda chunk: True) -> list[Passage]:
        """The `k` chunks with the largest scores among those that are `allowed`, the first of equal ones first.

        A chunk that shares no word with the question is never returned by BM25, so there may be fewer.
        """
        scores = self._scores(question)
        passages: list[Passage] = []
        for number in np.argsort(-scores, kind="stable"):
            if len(passages) == k or (self.retriever == BM25 and scores[number] <= 0):
                break
            if allowed(self.chunks[number]):
                passages.append(Passage(self.chunks[number], round(float(scores[number]), 6)))
        return passages


def words_of(text: str) -> list[str]:
    """Lower-case words for BM25: letters, digits and underscores; an identifier also gives its parts."""
    words = re.findall(r"\w+", text.lower())
    return [part for word in words for part in ([word, *word.split("_")] if "_" in word else [word]) if part]


def bm25_scorer(texts: Sequence[str]) -> _Scorer:
    """A function that scores `texts` by BM25.

    Raises:
        MissingExtraError: bm25s is not installed.
    """
    if find_spec("bm25s") is None:
        raise MissingExtraError("retrieval by BM25", "rag", ["bm25s"])
    import bm25s

    index: Any = bm25s.BM25(k1=K1, b=B, method="lucene")
    # A text without words would stop bm25s: the word that no question has stands in for it.
    index.index([words_of(text) or ["\0"] for text in texts], show_progress=False)
    vocabulary = index.vocab_dict

    def scores(question: str) -> Floats:
        known = [word for word in words_of(question) if word in vocabulary]
        return np.asarray(index.get_scores(known)) if known else np.zeros(len(texts), dtype=np.float32)

    return scores


def _dense_scorer(texts: Sequence[str], name: str) -> _Scorer:
    from kasatune.data.retrieval.dense_encoder import DenseEncoder

    encoder = DenseEncoder(name)
    vectors = encoder(texts)
    return lambda question: vectors @ encoder([question])[0]
