"""A table of the paper beside ours: the rows for a terminal, and the page in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kasatune.methods.table import METHODS
from kasatune.reports.formatting import metric_title

HEAD = ("task", "score", "method", "paper", "authors' log", "ours", "95 % interval", "verdict")
CURVE_HEAD = ("task", "method", "", "best epoch", "last epoch", "mean of the last ten")
_UNKNOWN = "not known"
_WHOSE = {"published": "published ones", "recipe": "recipes, whose settings are a choice"}
_NONE = "-"


def rows(found: Mapping[str, Any]) -> list[list[str]]:
    """One line a figure, in the order of `HEAD`.

    Args:
        found: the content of reproduction.json.
    """
    return [
        [
            figure["task"],
            metric_title(figure["metric"]) if figure["metric"] != "score" else "mean",
            _method(figure),
            paper(figure),
            _number(log["best"], 2) if (log := figure["log"]) else _NONE,
            _number(ours["score"], 2) if (ours := figure["ours"]) else _NONE,
            _interval(figure),
            figure["verdict"],
        ]
        for figure in found["figures"]
    ]


def curve_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """The best and the last epochs, the authors' logs and ours by turns, in the order of `CURVE_HEAD`."""
    lines = []
    for figure in found["figures"]:
        log, ours = figure["log"], figure["ours"]
        if not log or figure["minus"]:
            continue
        name = [figure["task"], _method(figure)]
        at = f" at {log['epoch']}" if log["epoch"] is not None else ""
        last = [_number(log[key], 2) for key in ("last", "last_ten")]
        lines.append([*name, "log", f"{_number(log['best'], 2)}{at}", *last])
        if ours:
            epochs = "/".join(f"{epoch:g}" for epoch in ours["epochs"])
            last = [_number(ours[key], 2) for key in ("last", "last_ten")]
            lines.append([*name, "ours", f"{_number(ours['score'], 2)}{f' at {epochs}' if epochs else ''}", *last])
    return lines


def paper(figure: Mapping[str, Any]) -> str:
    """The paper's number as it was printed."""
    value = figure["paper"]
    if value is None:
        return _UNKNOWN
    if isinstance(value, list):
        return f"{value[0]:g} to {value[1]:g}"
    return f"{value:.{figure['decimals']}f}"


def conclusion(found: Mapping[str, Any]) -> str:
    """How many figures have which verdict, in one line."""
    words = [figure["verdict"] for figure in found["figures"]]
    counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    form = " by the scaled-down form, which repeats no number of the paper" if found["quick"] else ""
    return f"{len(words)} figures of {found['model_title']}{form}: {counts}"


def markdown(found: Mapping[str, Any], *, date: str) -> str:
    """The page.

    Args:
        found: the content of reproduction.json.
        date: of the table.
    """
    quick = ", the scaled-down form" if found["quick"] else ""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    parts = [
        f"# {found['title']}: the paper's {found['model_title']} and ours{quick}",
        f"{date}, {found['machine']['processor']}; {versions}.",
        f"Made by `{found['command']}`." if found["command"] else "",
        f"{conclusion(found)}.",
        f"Published: {found['published']}. Scores between 0 and 1 stand as percent.",
        f"Ours: base model {', '.join(found['base'])}; seeds {', '.join(map(str, found['seeds']))}."
        * bool(found["base"]),
        _table(HEAD, rows(found)),
        f"The verdicts follow one rule. {found['rule'][0].upper()}{found['rule'][1:]}",
        _list(f"What our runs have otherwise than the {_WHOSE[found['settings']]}:", found["differences"]),
        _list("Graded:", found["judged"]),
        _list("Not run, and why:", _missing(found)),
        _curves(found),
        _list("## Where the published numbers stand\n", _sources(found)),
        _list("## What could not be found out\n", found["unknown"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _curves(found: Mapping[str, Any]) -> str:
    lines = curve_rows(found)
    if not lines:
        return ""
    told = "The best epoch is chosen on the rows that are reported, which flatters it; the last epochs are not chosen."
    return f"## Best and last epochs\n\n{told}\n\n{_table(CURVE_HEAD, lines)}"


def _method(figure: Mapping[str, Any]) -> str:
    name = _title(figure["method"])
    return f"{name} minus {_title(figure['minus'])}" if figure["minus"] else name


def _title(method: str) -> str:
    name, *settings = method.split(":")
    title = METHODS[name].shown_title if name in METHODS else name
    return f"{title} ({', '.join(settings)})" if settings else title


def _interval(figure: Mapping[str, Any]) -> str:
    ours = figure["ours"]
    if not ours or not ours["interval"]:
        return _NONE
    low, high = ours["interval"]
    return f"{low:.2f} to {high:.2f}"


def _number(value: float | None, decimals: int) -> str:
    return _NONE if value is None else f"{value:.{decimals}f}"


def _missing(found: Mapping[str, Any]) -> list[str]:
    lines: dict[str, None] = {}
    for figure in found["figures"]:
        if figure["verdict"] == "not run" and figure["reasons"]:
            lines[f"{figure['task']}: {figure['reasons'][0]}"] = None
    return list(lines)


def _sources(found: Mapping[str, Any]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for figure in found["figures"]:
        groups.setdefault(figure["source"], []).append(f"{figure['task']} {_method(figure)}")
    return [f"{', '.join(dict.fromkeys(names))}: {source}" for source, names in groups.items()]


def _list(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, "", *(f"- {line}" for line in lines)]).replace("\n\n\n", "\n\n") if lines else ""


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    marks = ["|" + "|".join(" --- " for _ in head) + "|"]
    return "\n".join([_line(head), *marks, *map(_line, lines)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
