"""Documentation of an importable module as documents, and facts of its signatures and sentences, read by inspect."""

from __future__ import annotations

import importlib
import inspect
import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from kasatune.errors import DataError
from kasatune.metrics.answer_match import contains_answer

PACKAGE = "package:"
_LEAST_WORDS = 15
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_RETURNS = re.compile(r"^Returns\n-+\n(?:[\w ,]+ : )?([^\n,]+)", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.])\s+(?=[A-Z])")
_PLAIN_SENTENCE = re.compile(r"[A-Z][\w\s,;:'`()/-]+\.")
_SENTENCE_WORDS = range(6, 21)
_SUMMARY_WORDS = range(3, 13)
_LEAST_LETTERS = 5
_PLAIN_TYPE = re.compile(r"[A-Za-z_][\w.]*(?:\[[\w., ]+\])?( \| [\w.]+)*")


class Fact(NamedTuple):
    """A question about a documented object that its signature or its description answers.

    Attributes:
        kind: "default", "parameter" or "returns" of the signature; "summary" or "missing-word" of the description.
        question: names the object.
        answer: occurs in the text of the object.
        statement: a sentence of the description with the answer; None where it takes no sentence to answer.
    """

    kind: str
    question: str
    answer: str
    statement: str | None = None


@dataclass(frozen=True)
class DocumentedObject:
    """A documented function, class or method.

    Attributes:
        name: its qualified name, such as "json.JSONEncoder.encode".
        text: its signature and its documentation string.
        facts: what its signature says.
        descriptions: what sentences of its description say.
    """

    name: str
    text: str
    facts: tuple[Fact, ...]
    descriptions: tuple[Fact, ...] = ()


def documented_objects(module: str) -> list[DocumentedObject]:
    """The public functions, classes and methods of a module that have a documentation string of 15 words or more.

    Args:
        module: import name, such as "json" or "scipy.stats"; it is imported, its submodules are not.

    Raises:
        DataError: the module cannot be imported, or documents nothing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about deprecated attributes of foreign modules
            imported = importlib.import_module(module)
            objects = [item for name, value in _public(imported, module) if (item := _documented(name, value))]
    except Exception as fault:  # whatever a foreign module raises when it is imported
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        raise DataError(f"{PACKAGE}{module}: cannot be imported ({reason}); install it") from fault
    if not objects:
        raise DataError(f"{PACKAGE}{module}: no documented functions or classes; name a module that has some")
    return sorted(objects, key=lambda item: item.name)


def _public(module: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(qualified name, object) of what a module defines or exports from its own package."""
    package = name.partition(".")[0]
    exported = getattr(module, "__all__", None)
    for attribute in sorted(set(exported or vars(module))):
        value = getattr(module, attribute, None)
        if attribute.startswith("_") or inspect.ismodule(value) or not callable(value):
            continue
        if not exported and str(getattr(value, "__module__", "")).partition(".")[0] != package:
            continue
        yield f"{name}.{attribute}", value
        if inspect.isclass(value):
            for method, function in sorted(vars(value).items()):
                if not method.startswith("_") and (callable(function) or isinstance(function, classmethod)):
                    yield f"{name}.{attribute}.{method}", getattr(value, method)


def _documented(name: str, value: Callable[..., Any]) -> DocumentedObject | None:
    description = inspect.getdoc(value) or ""
    if not isinstance(description, str) or len(description.split()) < _LEAST_WORDS:
        return None
    descriptions = tuple(_descriptions(name, description))
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # built-in functions without one
        return DocumentedObject(name, f"{name}\n\n{description}", (), descriptions)
    text = f"{name}{_ADDRESS.sub('', str(signature))}\n\n{description}"
    facts = [fact for fact in _facts(name, signature, description) if contains_answer(text, fact.answer)]
    return DocumentedObject(name, text, tuple(facts), descriptions)


def _facts(name: str, signature: inspect.Signature, description: str) -> Iterator[Fact]:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = [item for item in signature.parameters.values() if item.name not in ("self", "cls")]
    for item in parameters:
        if (default := _literal(item.default)) is not None:
            yield Fact("default", f"What is the default value of the parameter `{item.name}` of `{name}`?", default)
    for before, item in itertools.pairwise(item for item in parameters if item.kind not in variable):
        question = f"Which parameter comes directly after `{before.name}` in the signature of `{name}`?"
        yield Fact("parameter", question, item.name)
    returned = _return_type(signature, description)
    if returned is not None:
        yield Fact("returns", f"What is the type of the value that `{name}` returns?", returned)


def _descriptions(name: str, description: str) -> Iterator[Fact]:
    """What the first paragraphs say: the summary, if it is short, and the longest word of each plain sentence."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in description.split("\n\n")[:3]]
    sentences = [sentence for paragraph in paragraphs for sentence in _SENTENCE_END.split(paragraph)]
    for number, sentence in enumerate(sentences):
        words = sentence.split()
        if number == 0 and len(words) in _SUMMARY_WORDS:
            yield Fact("summary", f"What does `{name}` do?", sentence)
        answer = _longest_word(sentence) if len(words) in _SENTENCE_WORDS else None
        if answer is not None:
            gap = " ".join("..." if word == answer else word for word in words)
            question = f"Which word is missing in this sentence about `{name}`? {gap}"
            yield Fact("missing-word", question, answer, sentence)


def _longest_word(sentence: str) -> str | None:
    """The longest word that occurs once in a plain sentence, but for its first word; None without one of 5 letters."""
    if not _PLAIN_SENTENCE.fullmatch(sentence):
        return None
    long = [word for word in sentence.split()[1:] if word.isalpha() and len(word) >= _LEAST_LETTERS]
    return max((word for word in long if sentence.lower().count(word.lower()) == 1), key=len, default=None)


def _literal(value: Any) -> str | None:
    """A default value as text, if it is a number, a truth value or a short word."""
    if isinstance(value, bool | int | float):
        return str(value)
    return value if isinstance(value, str) and value.isascii() and re.fullmatch(r"[\w.-]{2,30}", value) else None


def _return_type(signature: inspect.Signature, description: str) -> str | None:
    """The annotated type, or that of numpydoc's section Returns; None if it is not a plain type."""
    annotation = signature.return_annotation
    if annotation is inspect.Signature.empty:
        section = _RETURNS.search(description)
        text = section.group(1).strip() if section else ""
    else:
        text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return text if _PLAIN_TYPE.fullmatch(text) and text not in ("None", "Any", "NoneType") else None
