"""Tables of a comparison as text cells; comparison_formats.py writes them as Markdown, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from kasatune.io.run_layout import ADAPTER, CHECKPOINT, NATIVE
from kasatune.reports import formatting
from kasatune.reports.comparison.conclusion import (
    title_of,
    verdict_text,
)
from kasatune.wording import counted

RETENTION = {
    "masked_lm_loss": "masked-LM loss on unrelated text",
    "causal_lm_loss": "LM loss on unrelated text",
    "feature_drift": "feature drift on unrelated text",
}
MAJORITY, BASE = "majority class", "untouched base"
NOTHING = "No reported run on this task is finished yet."


class Table(NamedTuple):
    """A table as text."""

    caption: str
    head: list[str]
    rows: list[list[str]]


def task_table(comparison: Mapping[str, Any], task: Mapping[str, Any]) -> Table:
    """Scores, differences to the reference and main costs of every method on a task."""
    against = f"minus {title_of(comparison, comparison['reference'])}"
    head = [
        "method",
        "mean \u00b1 sd",
        "verdict",
        against,
        "95 % interval of the difference",
        "p (Holm)",
        "interquartile mean",
        "95 % interval of the mean",
        "collapsed seeds",
        "best epoch",
        "trained",
    ]
    rows = [_row(comparison, entry) for entry in ordered(task)]
    name, score = _baseline_score(task)
    rows.append([name, score, *[formatting.ABSENT] * (len(head) - 2)])
    return _without_empty_columns(Table(_caption(comparison, task), head, rows))


def endpoint_table(comparison: Mapping[str, Any], task: Mapping[str, Any]) -> Table:
    """The further endpoints of every trained method on a task: forgetting, and scores of generated text."""
    names = dict.fromkeys(name for entry in task["results"] for name in entry.get("endpoints", {}))
    rows = []
    for name in names:
        for entry in ordered(task):
            endpoint = entry.get("endpoints", {}).get(name)
            if endpoint is None or entry["fitted"] or not endpoint["n"]:
                continue
            difference = endpoint["difference"] or {}
            reference = entry["method"] == comparison["reference"]
            rows.append(
                [
                    entry["title"],
                    formatting.metric_title(name),
                    _mean_sd(endpoint["mean"], endpoint["sd"]),
                    "reference" if reference else verdict_text(endpoint["difference"]),
                    *_difference_cells(difference),
                    _interval(endpoint["interval"]),
                ]
            )
    margins = comparison.get("margins", {})
    stated = ", ".join(f"{formatting.metric_title(name)} {margins[name]:g}" for name in names if name in margins)
    head = ["method", "score", "mean \u00b1 sd", "verdict", f"minus {title_of(comparison, comparison['reference'])}"]
    head += ["95 % interval of the difference", "p (Holm)", "95 % interval of the mean"]
    return Table(f"Further endpoints{f'; margins: {stated}' if stated else ''}", head, rows)


def cost_table(task: Mapping[str, Any]) -> Table:
    """The costs of every method on a task."""
    kind = next((e["costs"]["retention"]["kind"] for e in task["results"] if e["costs"].get("retention")), None)
    head = ["method", "trained", "head", "file", "peak memory", "attach", "s/step", "a run"]
    head += [RETENTION[kind]] if kind else []
    rows = []
    for entry in ordered(task):
        costs = entry["costs"]
        if costs:
            rows.append(
                [
                    entry["title"],
                    formatting.count(costs["trained_parameters"]),
                    formatting.count(costs["head_parameters"]),
                    formatting.size(file_bytes(costs)),
                    formatting.size(costs["peak_memory_bytes"]),
                    formatting.duration(costs["seconds_attach"]),
                    seconds(costs["seconds_per_step"]),
                    formatting.duration(costs["seconds_total"]),
                    *([_retention(costs["retention"])] if kind else []),
                ]
            )
    return Table("What a run costs: medians over the seeds", head, rows)


def overall_table(comparison: Mapping[str, Any]) -> Table:
    """Verdicts against the reference over the tasks; methods by wins minus losses, equal ones in the given order."""
    reference = title_of(comparison, comparison["reference"])
    rows = [
        [
            title_of(comparison, row["method"]),
            str(row["wins"]),
            *_ties(row),
            str(row["not_tested"]),
            str(row["tasks"]),
        ]
        for row in sorted(comparison["overall"], key=lambda row: row["losses"] - row["wins"])
    ]
    head = ["method", "better", "equivalent", "worse", "undecided", "not tested", "tasks"]
    return Table(f"Over all tasks, compared with {reference}, in the main score", head, rows)


def search_table(task: Mapping[str, Any]) -> Table:
    """The trials of every method on a task, and the chosen settings."""
    rows = []
    for entry in ordered(task):
        search = entry["search"]
        if not search or not search["trials"]:
            continue
        for trial in search["trials"]:
            chosen = trial["settings"] == search["chosen"]
            note = "chosen" if chosen else ("failed" if trial["error"] else "")
            note += ", at the edge" if chosen and search["at_the_edge"] else ""
            settings = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in trial["settings"].items())
            rows.append(
                [entry["title"], settings, note, formatting.score(trial["score"]), formatting.score(trial["loss"])]
            )
    return Table(
        f"Hyperparameter search: {formatting.metric_title(task['primary'])} on held-out training rows",
        ["method", "settings", "", "score", "loss"],
        rows,
    )


def failures(comparison: Mapping[str, Any]) -> list[str]:
    """One line for each run that failed."""
    lines = []
    for task in comparison["tasks"]:
        for entry in task["results"]:
            for run in entry["runs"]:
                if run["error"]:
                    lines.append(f"{entry['title']} on {task['name']}, seed {run['seed']}: {run['error']}")
            for trial in (entry["search"] or {}).get("trials", ()):
                if trial["error"]:
                    rate = trial["settings"].get("learning_rate")
                    lines.append(f"{entry['title']} on {task['name']}, search, learning rate {rate}: {trial['error']}")
    return lines


def ordered(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The methods of a task by mean score, best first; those without a score last."""
    sign = 1 if lower_is_better(task) else -1
    return sorted(task["results"], key=lambda entry: (entry["mean"] is None, sign * (entry["mean"] or 0.0)))


def lower_is_better(task: Mapping[str, Any]) -> bool:
    """Whether smaller values of a task's main score are better."""
    return task["primary"] in ("loss", "mse", "perplexity")


def counts_sentence(task: Mapping[str, Any]) -> str:
    """Whether the task can distinguish methods."""
    counts = task["counts"]
    if counts["counts"] is None:
        return "It is not yet known whether this task can distinguish methods."
    best = next(entry["title"] for entry in task["results"] if entry["method"] == counts["best"])
    lower = lower_is_better(task)
    parts = [
        f"{'beats' if (interval[2] < 0 if lower else interval[1] > 0) else 'does not beat'} {name} "
        f"({_signed_interval(interval)})"
        for name, interval in (
            ("the fitted head", counts["against_head"]),
            ("the majority class", counts["against_majority"]),
            ("the untouched base", counts.get("against_base")),
        )
        if interval is not None
    ]
    verdict = "This task distinguishes methods" if counts["counts"] else "This task does not distinguish methods"
    return f"{verdict}: the best method, {best}, {' and '.join(parts)}."


def settings_sentence(task: Mapping[str, Any]) -> str:
    """The settings that all methods share on a task."""
    training, method = task["training"], task["shared_method_settings"]
    length = counted(training["max_steps"], "step") if training["max_steps"] else counted(training["epochs"], "epoch")
    targets = method["target_modules"]
    return (
        f"{task['model']}, {task['rows']['train']:,} training and "
        f"{counted(task['rows']['validation'], 'validation row')}, "
        f"{length}, batches of {training['batch_size']}, schedule {training['schedule']}, {training['precision']}, at "
        f"most {counted(task['max_length'], 'token')}; r {method['r']}, alpha {method['alpha']:g}, targets "
        f"{targets if isinstance(targets, str) else ', '.join(targets)}; rows from {task['data_source']}, SHA-256 "
        f"{task['data_sha256'][:16]}"
    )


def file_bytes(costs: Mapping[str, Any]) -> int | None:
    """Size of the weights needed to load a run: the method's native format, without other exports."""
    sizes = costs.get("file_bytes") or {}
    return next((sizes[name] for name in (NATIVE, ADAPTER, CHECKPOINT) if name in sizes), None)


def seconds(value: float | None) -> str:
    """Seconds with three significant digits."""
    return formatting.ABSENT if value is None else f"{value:.3g}"


def _row(comparison: Mapping[str, Any], entry: Mapping[str, Any]) -> list[str]:
    difference, costs = entry["difference"] or {}, entry["costs"] or {}
    missing = (
        ""
        if entry["n"] == len(comparison["seeds"]) or not entry["n"]
        else f" ({entry['n']} of {counted(len(comparison['seeds']), 'seed')})"
    )
    if entry["mean"] is None:
        score = formatting.ABSENT
    else:
        score = (
            formatting.score(entry["mean"]) + ("" if entry["sd"] is None else f" \u00b1 {entry['sd']:.4f}") + missing
        )
    reference = entry["method"] == comparison["reference"]
    return [
        entry["title"],
        score,
        "reference" if reference else ("baseline" if entry["fitted"] else verdict_text(entry["difference"])),
        *_difference_cells(difference),
        formatting.score(entry.get("iqm")),
        _interval(entry["interval"]),
        _collapsed(entry.get("collapsed")),
        formatting.score(entry["best_epoch_mean"]) if not entry["fitted"] else formatting.ABSENT,
        formatting.count(costs.get("trained_parameters")),
    ]


def _difference_cells(difference: Mapping[str, Any]) -> list[str]:
    """Mean, interval and p of a difference; the p of a primary one is not corrected and marked."""
    mean, interval, p = difference.get("mean"), difference.get("interval"), difference.get("p_holm")
    mark = " (primary)" if difference.get("family") == "primary" else ""
    return [
        formatting.ABSENT if mean is None else formatting.signed(mean),
        " to ".join(map(formatting.signed, interval)) if interval else formatting.ABSENT,
        formatting.ABSENT if p is None else f"{p:.3g}{mark}",
    ]


def _interval(interval: list[float] | None) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else formatting.ABSENT


def _mean_sd(mean: float | None, sd: float | None) -> str:
    return formatting.score(mean) + ("" if sd is None else f" \u00b1 {sd:.4f}")


def _collapsed(collapsed: Mapping[str, Any] | None) -> str:
    return formatting.ABSENT if collapsed is None else f"{collapsed['count']} of {collapsed['seeds']}"


def _ties(row: Mapping[str, Any]) -> list[str]:
    """Equivalent, worse and undecided; schema version 2 has no equivalence and counts undecided tasks as ties."""
    undecided = row.get("undecided")
    if undecided is None:
        return [formatting.ABSENT, str(row["losses"]), str(row["ties"])]
    return [str(row["ties"]), str(row["losses"]), str(undecided)]


def baseline(task: Mapping[str, Any]) -> tuple[str, float | None]:
    """Name and main score of the baseline that uses no training."""
    if task["majority"] is not None:
        return MAJORITY, task["majority"]
    base = task.get("base")
    return BASE, None if base is None else base["metrics"].get(task["primary"])


def _baseline_score(task: Mapping[str, Any]) -> tuple[str, str]:
    name, score = baseline(task)
    return name, formatting.score(score)


def _without_empty_columns(table: Table) -> Table:
    """The table without the columns that no row has a value for; files of earlier versions lack some."""
    kept = [
        place
        for place in range(len(table.head))
        if place < 3 or any(row[place] != formatting.ABSENT for row in table.rows)
    ]
    rows = [[row[place] for place in kept] for row in table.rows]
    return Table(table.caption, [table.head[place] for place in kept], rows)


def _caption(comparison: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    label = "" if comparison["protocol"] == "clean" else ", best epoch chosen on these rows (protocol of the paper)"
    return (
        f"{formatting.metric_title(task['primary'])} on {counted(task['rows']['validation'], 'validation row')}{label}"
    )


def _retention(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return formatting.ABSENT
    if value["kind"] == "feature_drift":
        return f"{value['after']:.4f}"
    return f"{value['before']:.4f} to {value['after']:.4f}"


def _signed_interval(interval: list[float]) -> str:
    estimate, low, high = map(formatting.signed, interval)
    return f"{estimate}, 95 % interval {low} to {high}"
