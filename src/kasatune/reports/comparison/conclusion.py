"""The conclusion of a comparison in words: significant differences, ties, and what was not tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kasatune.reports import formatting
from kasatune.wording import agree, counted

NO_DIFFERENCE = "no difference shown"


def conclusion(comparison: Mapping[str, Any]) -> str:
    """The conclusion as one paragraph."""
    return " ".join(conclusion_sentences(comparison))


def conclusion_sentences(comparison: Mapping[str, Any]) -> list[str]:
    """The conclusion in parts of one or a few sentences; the first part states the result."""
    parts = [
        _unfinished(comparison),
        *_differences(comparison),
        _ranks(comparison),
        _tasks_that_count(comparison),
        _at_the_edge(comparison),
        _not_tested(comparison),
    ]
    return [part for part in parts if part]


def begun(comparison: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tasks that have at least one finished reported run."""
    return [task for task in comparison["tasks"] if any(entry["mean"] is not None for entry in task["results"])]


def title_of(comparison: Mapping[str, Any], method: str) -> str:
    """The title of a method of the comparison."""
    for task in comparison["tasks"]:
        for entry in task["results"]:
            if entry["method"] == method:
                return str(entry["title"])
    return method


def listed(names: Sequence[str]) -> str:
    """The names as text: a; a and b; a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _unfinished(comparison: Mapping[str, Any]) -> str:
    progress = comparison["progress"]
    failed = f" {counted(progress['failed'], 'run')} failed; they are listed below." if progress["failed"] else ""
    if comparison["complete"]:
        return failed.strip()
    return (
        f"Not finished: {progress['there']} of {counted(progress['planned'], 'run')} "
        f"{agree(progress['there'], 'is', 'are')} done, and the results below cover only "
        f"these runs.{failed}"
    )


def _verdicts(comparison: Mapping[str, Any], verdict: str) -> dict[str, list[str]]:
    """The tasks on which each trained method has this verdict."""
    by_method: dict[str, list[str]] = {}
    for task in comparison["tasks"]:
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
    """(tasks, methods as text), for methods with the same tasks; most tasks first."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, tasks in by_method.items():
        groups.setdefault(tuple(tasks), []).append(name)
    ordered = sorted(groups.items(), key=lambda item: -len(item[0]))
    return [(list(tasks), listed(names)) for tasks, names in ordered]


def _on(comparison: Mapping[str, Any], tasks: Sequence[str]) -> str:
    every = len(tasks) == len(begun(comparison)) > 1
    number = "both" if len(tasks) == 2 else f"all {len(tasks)}"
    return f"{number} tasks" if every else listed(tasks)


def _differences(comparison: Mapping[str, Any]) -> list[str]:
    reference = title_of(comparison, comparison["reference"])
    better, worse = _verdicts(comparison, "better"), _verdicts(comparison, "worse")
    same, untested = _verdicts(comparison, NO_DIFFERENCE), _verdicts(comparison, "not tested")
    if not better and not worse:
        if not same:
            return [f"No difference to {reference} could be tested yet."]
        seeds = _seeds_compared(comparison)
        many = "seed" if seeds == 1 else "seeds"
        names = f"none of {listed(list(same))} differs" if len(same) > 1 else f"{listed(list(same))} does not differ"
        sentences = [
            f"No significant difference: with {seeds} {many}, {names} significantly from {reference} on any task.",
            "This does not prove that they are equal.",
        ]
    else:
        sentences = [] if better else [f"No method is significantly better than {reference} on any task."]
        sentences += [
            f"Significantly {verdict} than {reference} on {_on(comparison, tasks)}: {name}."
            for verdict, group in (("better", better), ("worse", worse))
            for tasks, name in _grouped(group)
        ]
        sentences += [
            f"No significant difference between {reference} and {name} on {_on(comparison, tasks)}."
            for tasks, name in _grouped(same)
        ]
    if untested:
        sentences.append(f"Not tested, because seeds or runs are missing: {listed(list(untested))}.")
    return sentences


def _seeds_compared(comparison: Mapping[str, Any]) -> int:
    """The largest number of paired seeds of any difference."""
    differences = [
        entry["difference"] for task in comparison["tasks"] for entry in task["results"] if not entry["fitted"]
    ]
    return max((difference["seeds"] for difference in differences if difference), default=0)


def _ranks(comparison: Mapping[str, Any]) -> str:
    """The best average rank; "" without a significant win, because ranks of ties depend on the seeds alone."""
    most = max((row["tasks"] for row in comparison["overall"]), default=0)
    ranked = sorted(
        (row for row in comparison["overall"] if row["tasks"] == most and row["average_rank"] is not None),
        key=lambda row: row["average_rank"],
    )
    if most < 2 or len(ranked) < 2 or not any(row["wins"] for row in ranked):
        return ""
    first = ranked[0]
    ties = [row for row in ranked if row["average_rank"] == first["average_rank"]]
    names = listed([title_of(comparison, row["method"]) for row in ties])
    return (
        f"{names} {'have' if len(ties) > 1 else 'has'} the best average rank over {counted(most, 'task')}, "
        f"{first['average_rank']:.2f}; ranks are not tested for significance."
    )


def _tasks_that_count(comparison: Mapping[str, Any]) -> str:
    no = [task["name"] for task in comparison["tasks"] if task["counts"]["counts"] is False]
    if not no:
        return ""
    plural = len(no) > 1
    return (
        f"{listed(no)} {'do' if plural else 'does'} not distinguish methods: even the best method does not "
        "significantly beat both the fitted head and the majority class."
    )


def _at_the_edge(comparison: Mapping[str, Any]) -> str:
    """The methods whose best learning rate is at the edge of the searched range."""
    by_method: dict[str, list[str]] = {}
    for task in comparison["tasks"]:
        for entry in task["results"]:
            if entry["search"] and entry["search"]["at_the_edge"]:
                by_method.setdefault(entry["title"], []).append(task["name"])
    if not by_method:
        return ""
    places = listed([f"{names} on {_on(comparison, tasks)}" for tasks, names in _grouped(by_method)])
    return f"A better learning rate may lie outside the searched range, since the best was at its edge: {places}."


def _not_tested(comparison: Mapping[str, Any]) -> str:
    tasks = begun(comparison)
    if not tasks:
        return ""
    models = list(dict.fromkeys(task["model"] for task in tasks))
    rows = [task["rows"]["train"] for task in tasks]
    amount = f"{min(rows):,}" if min(rows) == max(rows) else f"{min(rows):,} to {max(rows):,}"
    ranks = sorted({task["shared_method_settings"]["r"] for task in tasks})
    search = comparison["search"]
    how = (
        f"more than {counted(search['trials'], 'search trial')} per method"
        if search["applies"]
        else "a hyperparameter search"
    )
    without = [entry["title"] for entry in tasks[0]["results"] if not _has_runs(tasks, entry["method"])]
    methods = f"{listed(without)} (no finished run), " if without else ""
    seeds = sorted({run["seed"] for task in tasks for entry in task["results"] for run in entry["runs"]})
    return (
        f"Not tested: {methods}models other than {listed(models)}, tasks other than "
        f"{listed([task['name'] for task in tasks])}, more training rows than {amount}, ranks other than "
        f"{listed([str(rank) for rank in ranks])}, {how}, seeds other than {listed([str(seed) for seed in seeds])}."
    )


def _has_runs(tasks: Sequence[Mapping[str, Any]], method: str) -> bool:
    return any(entry["mean"] is not None for task in tasks for entry in task["results"] if entry["method"] == method)


def protocol_sentence(comparison: Mapping[str, Any]) -> str:
    """How the reported scores were obtained."""
    search = comparison["search"]
    if comparison["protocol"] == "paper":
        return (
            "Protocol of the paper: the best epoch and the searched settings were both chosen on the rows that are "
            "reported, so every score is biased upwards."
        )
    searched = (
        f"Settings were searched with {counted(search['trials'], 'trial')} per method ({search['kind']}), "
        "scored on a held-out "
        "fifth of the training rows"
        if search["applies"]
        else "All settings are those of the recipe; nothing was searched"
    )
    seeds = len(comparison["seeds"])
    return formatting.sentence(
        f"{searched}. Then each method was trained on all training rows with {seeds} new "
        f"{'seed' if seeds == 1 else 'seeds'}, and its state after the last epoch was scored on the validation rows, "
        "on which nothing was chosen."
    )
