"""Text into tokens, in the two ways of the E2E challenge's scorer.

`mteval_tokens` is for BLEU and NIST, `treebank_tokens` for ROUGE-L, CIDEr and METEOR.
"""

from __future__ import annotations

import re

_ENTITIES = (("<skipped>", ""), ("-\n", ""), ("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_MTEVAL = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),  # every ASCII sign but ' , - .
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)

_QUOTES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"'})
_TREEBANK = (
    (re.compile(r"(\.\.\.|--+|[\"()\[\]{}<>;?!…£$€%&#@*=+])"), r" \1 "),
    (re.compile(r"([,:])(?!\d)"), r" \1 "),
    (re.compile(r"(?<!\d)([,:])(?=\d)"), r" \1 "),
    (re.compile(r"(?<=\w)-(?!\w)"), " - "),
    (re.compile(r"(?<!\S)\.(?=[^\W\d])"), ". "),
    (re.compile(r"(?i)(?<=[^\W_])(n't|'(?:s|m|d|ll|re|ve))(?![\w'])"), r" \1"),
)
_CLITICS = frozenset(["'s", "'m", "'d", "'ll", "'re", "'ve"])
_ABBREVIATIONS = frozenset(["mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "inc", "ltd", "co", "corp", "vs", "etc"])
_INITIALS = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")
_LEFT_OUT = frozenset([*"'`\"()[]{}.?!,:-;", "''", "``", "--", "..."])


def mteval_tokens(text: str) -> list[str]:
    """Lower-case tokens as NIST's mteval-v13a has them for Western text.

    Every ASCII sign is a token; points and commas are unless they stand between digits, hyphens only after a digit.
    """
    for written, meant in _ENTITIES:
        text = text.replace(written, meant)
    text = f" {text} "  # so that a sign at either end has a neighbour
    for pattern, parted in _MTEVAL:
        text = pattern.sub(parted, text)
    return text.lower().split()


def treebank_tokens(text: str) -> list[str]:
    """Lower-case tokens by the Penn Treebank's conventions, without punctuation, as the COCO caption scorer has them.

    Clitics ("n't", "'s"), currency and per cent signs are tokens of their own; hyphenated words and numbers are whole;
    a point at the end of a word is punctuation unless the word is an abbreviation.
    """
    text = text.translate(_QUOTES)
    for pattern, parted in _TREEBANK:
        text = pattern.sub(parted, text)
    words = (_without_marks(word) for word in text.lower().split())
    return [word for word in words if word and word not in _LEFT_OUT]


def _without_marks(word: str) -> str:
    if word.endswith(".") and not word.endswith(".."):
        stem = word[:-1]
        if stem not in _ABBREVIATIONS and not _INITIALS.fullmatch(stem):
            word = stem
    return word if word in _CLITICS else word.lstrip("'`").rstrip("'")
