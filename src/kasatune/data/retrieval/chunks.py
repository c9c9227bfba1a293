"""Cut documents into chunks of a number of words, with overlap."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kasatune.data.retrieval.documents import Document

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Chunk:
    """A part of a document.

    Attributes:
        document: name of the document.
        number: place among the chunks of the document, from 0.
        text: its words as they stand in the document.
        start: offset of its first character in the document.
    """

    document: str
    number: int
    text: str
    start: int

    @property
    def name(self) -> str:
        """The name of the document with the number of the chunk."""
        return f"{self.document}[{self.number}]"


def cut_into_chunks(documents: Iterable[Document], words: int, overlap: int) -> list[Chunk]:
    """Chunks of `words` words, each beginning `words - overlap` words after the one before; the last may be shorter.

    Args:
        documents: in the order of the chunks.
        words: blank-separated words of a chunk, at least 1.
        overlap: words that a chunk shares with the one before, less than `words`.

    Raises:
        ValueError: `overlap` is negative or not below `words`.
    """
    if not 0 <= overlap < words:
        raise ValueError(f"overlap must be at least 0 and below words ({words}); it is {overlap}")
    chunks = []
    for document in documents:
        places = [(match.start(), match.end()) for match in _WORD.finditer(document.text)]
        for number, first in enumerate(range(0, max(1, len(places) - overlap), words - overlap)):
            part = places[first : first + words]
            if part:
                text = document.text[part[0][0] : part[-1][1]]
                chunks.append(Chunk(document.name, number, text, part[0][0]))
    return chunks
