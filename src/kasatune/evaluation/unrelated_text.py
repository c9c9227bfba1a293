"""The unrelated text that forgetting is measured on: the standard library's documentation strings, or a user's file."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from kasatune.data.readers.docstrings import standard_library_docstrings
from kasatune.data.readers.text_files import read_text
from kasatune.errors import InputError
from kasatune.wording import counted

TOKENS = 20_000
WINDOW = 64  # tokens of a piece of text, with the tokenizer's special tokens
_LEAST_CHARACTERS = 2  # of a token; text with fewer cannot hold the tokens asked for
_WORDS = 60  # least words of a documentation string, enough for one window with most tokenizers
_MAX_BYTES = 64_000_000


@dataclass(frozen=True)
class UnrelatedText:
    """Where the unrelated text comes from and how much of it is read.

    Attributes:
        file: a UTF-8 text file; None for the documentation strings of Python's standard library.
        tokens: tokens to measure on.
    """

    file: str | None = None
    tokens: int = TOKENS

    @property
    def source(self) -> str:
        """The origin of the text, for reports."""
        if self.file is not None:
            return f"the file {Path(self.file).name}"
        return f"documentation strings of the standard library of Python {platform.python_version()}"

    def documents(self) -> tuple[str, ...]:
        """The texts, in the order in which they are read.

        Raises:
            InputError: the file is missing, unreadable or too short.
        """
        return _documents(self.file, self.tokens)

    @property
    def sha256(self) -> str:
        """SHA-256 of the texts."""
        digest = hashlib.sha256()
        for text in self.documents():
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()


@lru_cache(maxsize=4)
def _documents(file: str | None, tokens: int) -> tuple[str, ...]:
    if file is not None:
        name, texts = file, [read_text(Path(file), _MAX_BYTES)]
    else:
        name = "the text of the standard library"
        texts = standard_library_docstrings(_WORDS, number=tokens // WINDOW + 32)
    characters = sum(map(len, texts))
    if characters < _LEAST_CHARACTERS * tokens:
        raise InputError(
            f"--unrelated: {name} has {characters:,} characters, too few for {counted(tokens, 'token')}; give a "
            "longer text "
            "with --unrelated FILE, or fewer --unrelated-tokens"
        )
    return tuple(texts)


def windows(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], tokens: int, length: int = WINDOW
) -> list[list[int]]:
    """Pieces of exactly `length` tokens, special tokens included, that hold at least `tokens` tokens together.

    Pieces of equal length need no padding, and the loss per token is the plain mean over the pieces.

    Raises:
        InputError: the documents are too short for the tokenizer.
    """
    pieces: list[list[int]] = []
    needed = -(-tokens // length)
    for text in documents:
        fast = bool(tokenizer.is_fast)
        encoded: Any = tokenizer(
            text, truncation=True, max_length=length, return_overflowing_tokens=fast, verbose=False
        )["input_ids"]
        rows = encoded if fast else [encoded]
        pieces += [list(row) for row in rows if len(row) == length]
        if len(pieces) >= needed:
            return pieces[:needed]
    raise InputError(
        f"--unrelated: the text gives {counted(len(pieces) * length, 'token')} in pieces of {length}, "
        f"{tokens:,} are needed; "
        "give a longer text with --unrelated FILE, or fewer --unrelated-tokens"
    )
