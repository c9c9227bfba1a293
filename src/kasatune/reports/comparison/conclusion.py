"""The answer of a comparison in one paragraph: what was shown, what was not, and what was not tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kasatune.reports import words

NO_DIFFERENCE = "no difference shown"


def conclusion(found: Mapping[str, Any]) -> str:
    """The paragraph that stands on top of every form of the report."""
    parts = [
        _unfinished(found),
        _differences(found),
        _ranks(found),
        _tasks_that_count(found),
        _at_the_edge(found),
        _not_tested(found),
    ]
    return " ".join(part for part in parts if part)


def begun(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tasks on which any run is finished that is reported."""
    return [task for task in found["tasks"] if any(entry["mean"] is not None for entry in task["results"])]


def title_of(found: Mapping[str, Any], method: str) -> str:
    """The shown name of a method of the comparison."""
    for task in found["tasks"]:
        for entry in task["results"]:
            if entry["method"] == method:
                return str(entry["title"])
    return method


def listed(names: Sequence[str]) -> str:
    """The names in words: a; a and b; a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _unfinished(found: Mapping[str, Any]) -> str:
    progress = found["progress"]
    failed = f" {progress['failed']} runs failed; they are named below." if progress["failed"] else ""
    if found["complete"]:
        return failed.strip()
    return (
        f"Not finished: {progress['there']} of {progress['planned']} runs are done, and what follows is about these "
        f"alone.{failed}"
    )


def _verdicts(found: Mapping[str, Any], verdict: str) -> dict[str, list[str]]:
    """Tasks by method, of the trained methods with this verdict."""
    by_method: dict[str, list[str]] = {}
    for task in found["tasks"]:
        for entry in task["results"]:
            difference = entry["difference"]
            if (
                not entry["fitted"]
                and difference
                and difference.get("verdict") == verdict
                and entry["mean"] is not None
            ):
                by_method.setdefault(entry["title"], []).append(task["name"])
    return by_method


def _grouped(by_method: Mapping[str, list[str]]) -> list[tuple[list[str], str]]:
    """(tasks, methods in words) of the methods that share their tasks; the most tasks first."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, tasks in by_method.items():
        groups.setdefault(tuple(tasks), []).append(name)
    ordered = sorted(groups.items(), key=lambda item: -len(item[0]))
    return [(list(tasks), listed(names)) for tasks, names in ordered]


def _on(found: Mapping[str, Any], tasks: Sequence[str]) -> str:
    every = len(tasks) == len(begun(found)) > 1
    number = "both" if len(tasks) == 2 else f"all {len(tasks)}"
    return f"{number} tasks" if every else listed(tasks)


def _differences(found: Mapping[str, Any]) -> str:
    reference = title_of(found, found["reference"])
    better, worse = _verdicts(found, "better"), _verdicts(found, "worse")
    same, untested = _verdicts(found, NO_DIFFERENCE), _verdicts(found, "not tested")
    if not better and not worse:
        if not same:
            return f"Nothing could be tested against {reference} yet."
        seeds = _seeds_compared(found)
        who = f"of {listed(list(same))}, none was" if len(same) > 1 else f"{listed(list(same))} was not"
        text = (
            f"No difference shown: {who} told apart from {reference} on any task with {seeds} "
            f"{'seed' if seeds == 1 else 'seeds'}. That is not a proof that they are equal."
        )
    else:
        sentences = [
            f"Shown to be {verdict} than {reference} on {_on(found, tasks)}: {name}."
            for verdict, group in (("better", better), ("worse", worse))
            for tasks, name in _grouped(group)
        ]
        sentences += [
            f"No difference shown between {reference} and {name} on {_on(found, tasks)}."
            for tasks, name in _grouped(same)
        ]
        text = " ".join(sentences)
    if untested:
        text += f" Not tested for want of seeds or runs: {listed(list(untested))}."
    return text


def _seeds_compared(found: Mapping[str, Any]) -> int:
    """The largest number of seeds that a difference was taken over."""
    differences = [entry["difference"] for task in found["tasks"] for entry in task["results"] if not entry["fitted"]]
    return max((one["seeds"] for one in differences if one), default=0)


def _ranks(found: Mapping[str, Any]) -> str:
    most = max((row["tasks"] for row in found["overall"]), default=0)
    ranked = sorted(
        (row for row in found["overall"] if row["tasks"] == most and row["average_rank"] is not None),
        key=lambda row: row["average_rank"],
    )
    if most < 2 or len(ranked) < 2:
        return ""
    first = ranked[0]
    ties = [row for row in ranked if row["average_rank"] == first["average_rank"]]
    names = listed([title_of(found, row["method"]) for row in ties])
    return (
        f"The best average rank over {most} tasks, {first['average_rank']:.2f}, is that of {names}; a rank is no test."
    )


def _tasks_that_count(found: Mapping[str, Any]) -> str:
    no = [task["name"] for task in found["tasks"] if task["counts"]["counts"] is False]
    if not no:
        return ""
    plural = len(no) > 1
    return (
        f"{listed(no)} {'do' if plural else 'does'} not count: even the best method did not beat both the fitted head "
        f"and the majority class there by an interval that excludes zero."
    )


def _at_the_edge(found: Mapping[str, Any]) -> str:
    """The methods whose search may have ended too early."""
    by_method: dict[str, list[str]] = {}
    for task in found["tasks"]:
        for entry in task["results"]:
            if entry["search"] and entry["search"]["at_the_edge"]:
                by_method.setdefault(entry["title"], []).append(task["name"])
    if not by_method:
        return ""
    places = listed([f"{names} on {_on(found, tasks)}" for tasks, names in _grouped(by_method)])
    return (
        f"The best learning rate was the smallest or the largest that was tried, so a better one may exist: {places}."
    )


def _not_tested(found: Mapping[str, Any]) -> str:
    tasks = begun(found)
    if not tasks:
        return ""
    models = list(dict.fromkeys(task["model"] for task in tasks))
    rows = [task["rows"]["train"] for task in tasks]
    amount = f"{min(rows):,}" if min(rows) == max(rows) else f"{min(rows):,} to {max(rows):,}"
    ranks = sorted({task["shared_method_settings"]["r"] for task in tasks})
    search = found["search"]
    how = f"more than {search['trials']} search trials a method" if search["applies"] else "any search of settings"
    without = [entry["title"] for entry in tasks[0]["results"] if not _has_runs(tasks, entry["method"])]
    methods = f"{listed(without)} (no run is finished), " if without else ""
    seeds = sorted({run["seed"] for task in tasks for entry in task["results"] for run in entry["runs"]})
    return (
        f"Not tested: {methods}models other than {listed(models)}, tasks other than "
        f"{listed([task['name'] for task in tasks])}, more training rows than {amount}, ranks other than "
        f"{listed([str(rank) for rank in ranks])}, {how}, seeds other than {listed([str(seed) for seed in seeds])}."
    )


def _has_runs(tasks: Sequence[Mapping[str, Any]], method: str) -> bool:
    return any(entry["mean"] is not None for task in tasks for entry in task["results"] if entry["method"] == method)


def protocol_sentence(found: Mapping[str, Any]) -> str:
    """How the reported score was come by."""
    search = found["search"]
    if found["protocol"] == "paper":
        return (
            "Protocol of the paper: the best epoch and the searched settings were both chosen on the rows that are "
            "reported, which flatters every score."
        )
    searched = (
        f"Settings were searched with {search['trials']} trials a method ({search['kind']}) on a fifth of the training "
        "rows, kept back for that"
        if search["applies"]
        else "Settings are the recipe's; nothing was searched"
    )
    seeds = len(found["seeds"])
    return words.sentence(
        f"{searched}; then {seeds} fresh {'seed' if seeds == 1 else 'seeds'} trained on all training rows, and the "
        "state after the last epoch was scored on the validation rows, on which nothing was chosen."
    )
