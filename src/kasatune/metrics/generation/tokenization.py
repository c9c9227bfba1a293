"""The two tokenizations of the E2E challenge's scorer: mteval-v13a (for NIST) and Penn Treebank (for the others).

sacrebleu brings its own mteval-v13a tokens for BLEU.
"""

from __future__ import annotations

import re

_ENTITIES = (("<skipped>", ""), ("-\n", ""), ("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_MTEVAL = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),  # every ASCII punctuation mark except ' , - .
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
    """Lower-case tokens of NIST's mteval-v13a for Western text.

    Every ASCII punctuation mark is a token; a point or comma only if it is not between digits, a hyphen only after a
    digit.
    """
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    text = f" {text} "  # the patterns need a neighbour at either end
    for pattern, replacement in _MTEVAL:
        text = pattern.sub(replacement, text)
    return text.lower().split()


def treebank_tokens(text: str) -> list[str]:
    """Lower-case Penn Treebank tokens without punctuation, as in the COCO caption scorer.

    Clitics ("n't", "'s"), currency and percent signs are separate tokens; hyphenated words and numbers are not split; a
    point at the end of a word is punctuation unless the word is an abbreviation.
    """
    text = text.translate(_QUOTES)
    for pattern, replacement in _TREEBANK:
        text = pattern.sub(replacement, text)
    words = (_without_marks(word) for word in text.lower().split())
    return [word for word in words if word and word not in _LEFT_OUT]


def _without_marks(word: str) -> str:
    if word.endswith(".") and not word.endswith(".."):
        stem = word[:-1]
        if stem not in _ABBREVIATIONS and not _INITIALS.fullmatch(stem):
            word = stem
    return word if word in _CLITICS else word.lstrip("'`").rstrip("'")
