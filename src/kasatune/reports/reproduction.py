"""A table of the paper compared with our scores: rows for a terminal, and a page in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kasatune import wording
from kasatune.methods.table import METHODS
from kasatune.reports.formatting import metric_title

HEAD = ("task", "score", "method", "paper", "authors' log", "ours", "95 % interval", "verdict")
CURVE_HEAD = ("task", "method", "", "best epoch", "last epoch", "mean of the last ten")
_UNKNOWN = "unknown"
_COMPARED_WITH = {"published": "published runs", "recipe": "recipes, whose settings are a choice"}
_NONE = "-"


def rows(results: Mapping[str, Any]) -> list[list[str]]:
    """One row per figure, with the columns of `HEAD`.

    Args:
        results: the content of reproduction.json.
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
        for figure in results["figures"]
    ]


def curve_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Best and last epochs of the authors' logs and of our runs, alternating, with the columns of `CURVE_HEAD`."""
    lines = []
    for figure in results["figures"]:
        log, ours = figure["log"], figure["ours"]
        if not log or figure["minus"]:
            continue
        name = [figure["task"], _method(figure)]
        at = f" at {log['epoch']}" if log["epoch"] is not None else ""
        last = [_number(log[key], 2) for key in ("last", "last_ten")]
        lines.append([*name, "log", f"{_number(log['best'], 2)}{at}", *last])
        if ours:
            epochs = "/".join(wording.epoch(epoch) for epoch in ours["epochs"])
            last = [_number(ours[key], 2) for key in ("last", "last_ten")]
            lines.append([*name, "ours", f"{_number(ours['score'], 2)}{f' at {epochs}' if epochs else ''}", *last])
    return lines


def paper(figure: Mapping[str, Any]) -> str:
    """The paper's number as printed."""
    value = figure["paper"]
    if value is None:
        return _UNKNOWN
    if isinstance(value, list):
        return f"{value[0]:g} to {value[1]:g}"
    return f"{value:.{figure['decimals']}f}"


def conclusion(results: Mapping[str, Any]) -> str:
    """The number of figures with each verdict, in one line."""
    verdicts = [figure["verdict"] for figure in results["figures"]]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    form = " in the scaled-down form, which reproduces no number of the paper" if results["quick"] else ""
    return f"{wording.counted(len(verdicts), 'figure')} of {results['model_title']}{form}: {counts}"


def markdown(results: Mapping[str, Any]) -> str:
    """The page reproduction.md.

    Args:
        results: the content of reproduction.json.
    """
    quick = ", the scaled-down form" if results["quick"] else ""
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    date = f"{results['date']}, " if results["date"] else ""
    parts = [
        f"# {results['title']}: the paper's {results['model_title']} and ours{quick}",
        f"{date}{results['machine']['processor']}; {versions}.",
        f"Made by `{results['command']}`." if results["command"] else "",
        f"**{conclusion(results)}.**",
        f"Published: {results['published']}. Scores between 0 and 1 are given in percent.",
        f"Ours: base model {', '.join(results['base'])}; seeds {', '.join(map(str, results['seeds']))}."
        * bool(results["base"]),
        _table(HEAD, rows(results)),
        f"Verdicts: {results['rule']}",
        _list(
            f"Settings of our runs that differ from the {_COMPARED_WITH[results['settings']]}:", results["differences"]
        ),
        _list("Graded answers:", results["judged"]),
        _list("Not run:", _missing(results)),
        _curves(results),
        _list("## Sources of the published numbers\n", _sources(results)),
        _list("## Unknown\n", results["unknown"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _curves(results: Mapping[str, Any]) -> str:
    lines = curve_rows(results)
    if not lines:
        return ""
    note = "The best epoch is selected on the reported rows, which biases its score upwards; the last epochs are not."
    return f"## Best and last epochs\n\n{note}\n\n{_table(CURVE_HEAD, lines)}"


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


def _missing(results: Mapping[str, Any]) -> list[str]:
    lines: dict[str, None] = {}
    for figure in results["figures"]:
        if figure["verdict"] == "not run" and figure["reasons"]:
            lines[f"{figure['task']}: {figure['reasons'][0]}"] = None
    return list(lines)


def _sources(results: Mapping[str, Any]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for figure in results["figures"]:
        groups.setdefault(figure["source"], []).append(f"{figure['task']} {_method(figure)}")
    return [f"{', '.join(dict.fromkeys(names))}: {source}" for source, names in groups.items()]


def _list(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, "", *(f"- {line}" for line in lines)]).replace("\n\n\n", "\n\n") if lines else ""


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    marks = ["|" + "|".join(" --- " for _ in head) + "|"]
    return "\n".join([_line(head), *marks, *map(_line, lines)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
