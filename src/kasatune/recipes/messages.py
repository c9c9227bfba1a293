"""Turn pydantic's errors into sentences that a user can act on: key, value received, limit, remedy."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kasatune.recipes.foreign_keys import translate
from kasatune.redaction import redacted

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails


PARTS = ("task", "parts")
_LONGEST_VALUE = 60

_LIMITS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list of text",
    "dict_type": "a mapping of `name: value`",
    "model_type": "a section of `key: value` lines",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "at most {le:,.10g}",
    "literal_error": "{expected}",
    "string_too_short": "text that is not empty",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}


def show(value: Any) -> str:
    """`value` as JSON with secrets redacted, cut to 60 characters."""
    text = redacted(json.dumps(value, default=str, ensure_ascii=False))  # before a cut removes what marks a secret
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def did_you_mean(wrong: object, right: Iterable[str], kind: str = "") -> str:
    """`; did you mean X?` for the choice in `right` that is spelled most like `wrong`, "" if none is similar.

    Args:
        wrong: the value received.
        right: the valid choices.
        kind: put before the choice, such as "the built-in recipe ".
    """
    choices = list(right)
    near = difflib.get_close_matches(str(wrong).lower(), choices, n=1, cutoff=0.6)
    return f"; did you mean {kind}{near[0]}?" if near else ""


def sentences(
    errors: Iterable[ErrorDetails], values: Mapping[str, Any], sections: Mapping[str, type[BaseModel]]
) -> dict[str, str]:
    """One sentence for each faulty key, by its place "section.key", in the order of `errors`.

    Args:
        errors: pydantic's errors for the complete recipe.
        values: the sections as they were received.
        sections: the pydantic model of each section.
    """
    by_place: dict[str, list[ErrorDetails]] = {}
    of_parts: list[ErrorDetails] = []
    for error in errors:
        if error["loc"][:2] == PARTS and len(error["loc"]) > len(PARTS):
            of_parts.append(error)
            continue
        place = ".".join(str(part) for part in error["loc"][: 2 if error["loc"][0] in sections else 1])
        by_place.setdefault(place, []).append(error)
    found = {place: f"{place}: {_sentence(place, group, values, sections)}" for place, group in by_place.items()}
    return found | part_sentences(of_parts, values)


def part_sentences(errors: Iterable[ErrorDetails], values: Mapping[str, Any]) -> dict[str, str]:
    """One sentence for each faulty key of a part of a mixture, by its place; that of the first is "task.parts"."""
    by_place: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        given = values["task"]["parts"]
        number, *keys = error["loc"][len(PARTS) :]
        part = given[number] if isinstance(given[number], Mapping) else {}
        named = next((part[name] for name in ("title", "name") if isinstance(part.get(name), str)), None)
        inner = keys[: 2 if keys[:1] == ["generation"] else 1]
        place = ".".join([f"task.parts[{named or f'part {int(number) + 1}'}]", *map(str, inner)])
        by_place.setdefault(place, []).append(error)
    sentences = {}
    for place, group in by_place.items():
        first = group[0]
        if first["type"] == "missing":
            text = f"{place}: missing; give the task of the part, such as e2e or instruction"
        elif first["type"] == "extra_forbidden":
            text = f"{place}: {_not_of_parts(place.rpartition('.')[2])}"
        elif first["type"] == "model_type":
            text = f"{place}: {show(first['input'])} received; must be a mapping such as {{name: e2e, weight: 1}}"
        else:
            limits = " or ".join(dict.fromkeys(_limit(error) for error in group))
            text = f"{place}: {show(first['input'])} received; must be {limits}"
        sentences["task.parts" if not sentences else place] = text
    return sentences


def _not_of_parts(key: str) -> str:
    from kasatune.recipes.sections import PartSection, TaskSection  # slow to import, and `--help` needs no sections

    keys = list(PartSection.model_fields)
    if key in TaskSection.model_fields:
        return f"not a key of a part; it is the same for all parts: write task.{key}"
    return f"not a key of a part{did_you_mean(key, keys) or '; its keys are ' + ', '.join(keys)}"


def _sentence(
    place: str, group: list[ErrorDetails], values: Mapping[str, Any], sections: Mapping[str, type[BaseModel]]
) -> str:
    error = group[0]
    section, _, key = place.partition(".")
    if error["type"] == "extra_forbidden":
        if len(error["loc"]) > 2:
            return f"{show(error['loc'][2])} is not a key of it; " + _remedy(section, key, sections)
        return _unknown(section, key, sections)
    if error["type"] == "missing":
        return "missing; " + _remedy(section, key, sections)
    limits = list(dict.fromkeys(_limit(each) for each in group))
    near = ""
    if error["type"] == "literal_error":
        near = did_you_mean(error["input"], _words(error.get("ctx", {}).get("expected", "")))
    received = values[section][key] if key else values[section]
    return f"{show(received)} received; must be {' or '.join(limits)}{near or '; ' + _remedy(section, key, sections)}"


def message(error: ErrorDetails) -> str:
    """The message of one of pydantic's errors, without the "Value error, " that it puts before those of validators."""
    cause = error.get("ctx", {}).get("error") if error["type"] in ("value_error", "assertion_error") else None
    return error["msg"] if cause is None else str(cause)


def _limit(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    if error["type"] == "string_type" and isinstance(error["loc"][-1], int):
        return "a list of text"
    template = _LIMITS.get(error["type"])
    return template.format(**context) if template else message(error)


def _words(expected: str) -> list[str]:
    """The choices in pydantic's "'a', 'b' or 'c'"."""
    return [part.strip(" '") for part in expected.replace(" or ", ", ").split(",")]


def _remedy(section: str, key: str, sections: Mapping[str, type[BaseModel]]) -> str:
    if not key:
        return "write it as in `kasatune train --help`"
    field = sections[section].model_fields[key]
    if field.is_required():
        first = str(field.description or "").partition(". ")[0].rstrip(".")
        return f"give the {first[:1].lower()}{first[1:]}" if first else "it has no default"
    if field.default is None:
        return "leave it out, or write null"
    default: Any = field.get_default(call_default_factory=True)
    return f"the default is {show(getattr(default, 'model_dump', lambda: default)())}"


def _near_key(wrong: str, sections: Mapping[str, type[BaseModel]]) -> str:
    """`; did you mean SECTION.KEY?` for the key of any section that is spelled most like `wrong`; "" if none is."""
    homes = {key: name for name, model in sections.items() for key in model.model_fields}
    near = difflib.get_close_matches(wrong.lower(), homes, n=1, cutoff=0.75)
    return f"; did you mean {homes[near[0]]}.{near[0]}?" if near else ""


def _unknown(section: str, key: str, sections: Mapping[str, type[BaseModel]]) -> str:
    if not key:
        home = next((name for name, model in sections.items() if section in model.model_fields), None)
        clause = translate(section)
        if clause:
            return f"not a key of a recipe; {clause}"
        if home:
            return f"not a section; it is a key of {home}: write {home}.{section}"
        names = [*sections, "output"]
        elsewhere = _near_key(section, sections) if not did_you_mean(section, names) else ""
        if elsewhere:
            return f"not a section of a recipe{elsewhere}"
        return f"not a section of a recipe (they are {', '.join(names)}){did_you_mean(section, names)}"
    keys = list(sections[section].model_fields)
    home = next((name for name, model in sections.items() if key in model.model_fields), None)
    clause = translate(key)
    if clause:
        return f"not a key of {section}; {clause}"
    if home:
        return f"not a key of {section}; it is a key of {home}: write {home}.{key}"
    near = did_you_mean(key, keys) or _near_key(key, sections)
    return f"not a key of {section}{near or '; its keys are ' + ', '.join(keys)}"
