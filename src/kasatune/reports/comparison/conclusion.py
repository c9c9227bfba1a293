"""The conclusion of a comparison in words: the primary endpoint, verdicts on the methods, and what was not tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kasatune.reports import formatting
from kasatune.wording import agree, counted


def conclusion(comparison: Mapping[str, Any]) -> str:
    """The conclusion as one paragraph."""
    return " ".join(conclusion_sentences(comparison))


def conclusion_sentences(comparison: Mapping[str, Any]) -> list[str]:
    """The conclusion in parts of one or a few sentences; the first part states the result."""
    parts = [
        _unfinished(comparison),
        primary_sentence(comparison),
        registration_sentence(comparison),
        *_differences(comparison),
        _further_endpoints(comparison),
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


def verdict_text(difference: Mapping[str, Any] | None) -> str:
    """The verdicts of a difference as text, such as "better and equivalent"; "-" without a difference.

    Files of schema version 2 call an undecided difference `no difference shown`.
    """
    if not difference:
        return formatting.ABSENT
    words = difference.get("verdicts") or [difference["verdict"]]
    return listed([_UNDECIDED if word == _NO_DIFFERENCE else word for word in words])


def _by_verdict(comparison: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """For each verdict, the tasks on which each trained method has it."""
    groups: dict[str, dict[str, list[str]]] = {}
    for task in comparison["tasks"]:
        for entry in task["results"]:
            difference = entry["difference"]
            if not entry["fitted"] and difference and entry["mean"] is not None:
                by_method = groups.setdefault(verdict_text(difference), {})
                by_method.setdefault(entry["title"], []).append(task["name"])
    return groups


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


def primary_sentence(comparison: Mapping[str, Any]) -> str:
    """The result of the primary endpoint; "" without one."""
    primary = comparison.get("primary")
    if not primary:
        return ""
    score = formatting.metric_title(primary["metric"])
    method, reference = (title_of(comparison, primary[key]) for key in ("method", "reference"))
    subject = f"{method} against {reference} in {score} on {primary['task']}"
    difference = primary["difference"]
    if not difference or difference["mean"] is None or difference["interval"] is None:
        return f"The primary endpoint, {subject}, could not be tested yet."
    low, high = difference["interval"]
    margin = "" if difference["margin"] is None else f", margin {difference['margin']:g}"
    return (
        f"Primary endpoint, {subject}: {verdict_text(difference)} ({formatting.signed(difference['mean'])}, 95 % "
        f"interval {formatting.signed(low)} to {formatting.signed(high)}, p {difference['p']:.3g}{margin})."
    )


def registration_sentence(comparison: Mapping[str, Any]) -> str:
    """Whether the plan was registered before the first run; "" if no file was named."""
    registration = comparison.get("registration")
    if not registration:
        return ""
    name = f"{registration['file']} (SHA-256 {registration['sha256'][:12]})"
    if registration["commit"] is None:
        return f"The plan in {name} is not committed, so nothing shows that it was written before the first run."
    commit = f"committed as {registration['commit'][:12]} at {registration['committed_at']}"
    if registration["before_first_run"] is False:
        return f"The plan in {name} was {commit}, after the first run had finished: it was not registered."
    return f"Configuration, endpoint, margins and analysis were registered in {name}, {commit}, before the first run."


def _differences(comparison: Mapping[str, Any]) -> list[str]:
    reference = title_of(comparison, comparison["reference"])
    groups = _by_verdict(comparison)
    untested = groups.pop("not tested", {})
    undecided = groups.get(_UNDECIDED, {})
    if not groups:
        return [f"No difference to {reference} could be tested yet."]
    if set(groups) == {_UNDECIDED}:
        seeds = _seeds_compared(comparison)
        many = "seed shows" if seeds == 1 else "seeds show"
        sentences = [
            f"Undecided: {seeds} {many} neither a difference from {reference} nor equivalence to it, on any task, for "
            f"{listed(list(undecided))}."
        ]
    else:
        won = any(verdict.startswith("better") for verdict in groups)
        sentences = [] if won else [f"No method is shown to be better than {reference} on any task."]
        sentences += [
            _SENTENCES[verdict].format(reference, _on(comparison, tasks), name)
            for verdict in _SENTENCES
            for tasks, name in _grouped(groups.get(verdict, {}))
        ]
    if untested:
        sentences.append(f"Not tested, because seeds or runs are missing: {listed(list(untested))}.")
    return sentences


_UNDECIDED, _NO_DIFFERENCE = "undecided", "no difference shown"
_SENTENCES = {
    "better": "Better than {0} on {1}: {2}.",
    "better and equivalent": "Better than {0} on {1}, by less than the margin: {2}.",
    "worse": "Worse than {0} on {1}: {2}.",
    "worse and not inferior": "Worse than {0} on {1}, by less than the margin: {2}.",
    "worse and equivalent": "Worse than {0} on {1}, by less than the margin: {2}.",
    "equivalent": "Equivalent to {0} on {1}, within the margin: {2}.",
    "not inferior": "Not inferior to {0} on {1} by the margin or more: {2}.",
    _UNDECIDED: "Undecided on {1}, neither a difference from {0} nor equivalence is shown: {2}.",
}


def _seeds_compared(comparison: Mapping[str, Any]) -> int:
    """The largest number of paired seeds of any difference."""
    differences = [
        entry["difference"] for task in comparison["tasks"] for entry in task["results"] if not entry["fitted"]
    ]
    return max((difference["seeds"] for difference in differences if difference), default=0)


def _further_endpoints(comparison: Mapping[str, Any]) -> str:
    """What is shown of the further endpoints, such as forgetting; "" if nothing is."""
    shown = []
    for task in comparison["tasks"]:
        for entry in task["results"]:
            for metric, endpoint in entry.get("endpoints", {}).items():
                words = verdict_text(endpoint["difference"])
                if not entry["fitted"] and words not in (formatting.ABSENT, "not tested", _UNDECIDED):
                    shown.append(f"{entry['title']} in {formatting.metric_title(metric)} on {task['name']}: {words}")
    reference = title_of(comparison, comparison["reference"])
    return f"Further endpoints, compared with {reference}: {'; '.join(shown)}." if shown else ""


def _tasks_that_count(comparison: Mapping[str, Any]) -> str:
    no = [task["name"] for task in comparison["tasks"] if task["counts"]["counts"] is False]
    if not no:
        return ""
    plural = len(no) > 1
    return (
        f"{listed(no)} {'do' if plural else 'does'} not distinguish methods: even the best method is not "
        "shown to beat the baselines."
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
        f"Settings were searched with {counted(search['trials'], 'trial')} per method "
        f"({search['kind']}{_search_seeds(search)}), "
        f"scored on a held-out fifth of the training rows{_extended(comparison)}"
        if search["applies"]
        else "All settings are those of the recipe; nothing was searched"
    )
    seeds = len(comparison["seeds"])
    return formatting.sentence(
        f"{searched}. Then each method was trained on all training rows with {seeds} new "
        f"{'seed' if seeds == 1 else 'seeds'}, and its state after the last epoch was scored on the validation rows, "
        "on which nothing was chosen."
    )


def analysis_sentence(comparison: Mapping[str, Any]) -> str:
    """How the differences were tested; for files of schema version 2 the rule of that version."""
    if "analysis" in comparison:
        return f"{comparison['analysis']}." if comparison["analysis"] else ""
    return (
        "These differences were tested before margins existed: by a paired t-test over the seeds with Holm's "
        "correction and an interval over resampled seeds and rows; intervals of means are bootstraps over the seeds, "
        "too narrow for so few. Equivalence was not tested, so what is not better or worse is undecided."
    )


def _search_seeds(search: Mapping[str, Any]) -> str:
    seeds = search.get("seeds", 1)
    return "" if seeds == 1 else f", each the mean of {counted(seeds, 'seed')}"


def _extended(comparison: Mapping[str, Any]) -> str:
    """The further trials of methods whose best learning rate was at an edge."""
    by_method: dict[str, int] = {}
    for task in comparison["tasks"]:
        for entry in task["results"]:
            further = len((entry["search"] or {}).get("trials", ())) - comparison["search"]["trials"]
            if further > 0:
                by_method[entry["title"]] = by_method.get(entry["title"], 0) + further
    if not by_method:
        return ""
    return "; beyond the edge of the rates, further trials of " + listed(
        [f"{name} ({number})" for name, number in by_method.items()]
    )
