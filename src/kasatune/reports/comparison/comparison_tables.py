"""Tables of a comparison as text cells, and as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any, NamedTuple

from kasatune.io.run_layout import ADAPTER, CHECKPOINT, NATIVE
from kasatune.reports import formatting
from kasatune.reports.comparison.conclusion import begun, conclusion_sentences, protocol_sentence, title_of
from kasatune.reports.markdown import code, text
from kasatune.reports.markdown import table as markdown_table
from kasatune.wording import counted

RETENTION = {
    "masked_lm_loss": "masked-LM loss on unrelated text",
    "causal_lm_loss": "LM loss on unrelated text",
    "feature_drift": "feature drift on unrelated text",
}
MAJORITY = "majority class"
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
        "p (Holm)",
        "95 % interval",
        "best epoch",
        "trained",
        "s/step",
    ]
    rows = [_row(comparison, entry) for entry in ordered(task)]
    rows.append([MAJORITY, formatting.score(task["majority"]), *[formatting.ABSENT] * 7])
    return Table(_caption(comparison, task), head, rows)


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
    """Wins, ties and losses against the reference, and the average rank; by wins minus losses, ties in given order."""
    reference = title_of(comparison, comparison["reference"])
    rows = [
        [
            title_of(comparison, row["method"]),
            str(row["wins"]),
            str(row["ties"]),
            str(row["losses"]),
            str(row["not_tested"]),
            formatting.ABSENT if row["average_rank"] is None else f"{row['average_rank']:.2f}",
            str(row["tasks"]),
        ]
        for row in sorted(comparison["overall"], key=lambda row: row["losses"] - row["wins"])
    ]
    head = ["method", "wins", "ties", "losses", "not tested", "average rank", "tasks"]
    return Table(
        f"Over all tasks, compared with {reference}; a tie is a task without a significant difference", head, rows
    )


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
    return sorted(task["results"], key=lambda entry: (entry["mean"] is None, -(entry["mean"] or 0.0)))


def counts_sentence(task: Mapping[str, Any]) -> str:
    """Whether the task can distinguish methods."""
    counts = task["counts"]
    if counts["counts"] is None:
        return "It is not yet known whether this task can distinguish methods."
    best = next(entry["title"] for entry in task["results"] if entry["method"] == counts["best"])
    parts = [
        f"{'beats' if interval[1] > 0 else 'does not beat'} {name} ({_signed_interval(interval)})"
        for name, interval in (
            ("the fitted head", counts["against_head"]),
            ("the majority class", counts["against_majority"]),
        )
    ]
    verdict = "This task distinguishes methods" if counts["counts"] else "This task does not distinguish methods"
    return f"{verdict}: the best method, {best}, {' and '.join(parts)}."


def as_markdown(comparison: Mapping[str, Any]) -> str:
    """The comparison as a Markdown page."""
    names = ", ".join(task["name"] for task in comparison["tasks"])
    result, *details = map(text, conclusion_sentences(comparison))
    parts = [f"# Comparison on {text(names)}", f"**{result}**"]
    parts += ["\n".join(f"- {detail}" for detail in details)] if details else []
    parts.append(text(protocol_sentence(comparison)))
    if len(comparison["tasks"]) > 1 and comparison["overall"]:
        parts += ["## Over all tasks", _markdown(overall_table(comparison))]
    for task in comparison["tasks"]:
        parts.append(f"## {text(task['name'])}")
        parts += (
            [text(counts_sentence(task)), _markdown(task_table(comparison, task))]
            if task in begun(comparison)
            else [NOTHING]
        )
        for table in (cost_table(task), search_table(task)):
            if table.rows:
                parts += [f"### {text(table.caption)}", _markdown(table, caption=False)]
    failed = failures(comparison)
    if failed:
        parts += ["## Failed runs", "\n".join(f"- {text(line)}" for line in failed)]
    machine = comparison["machine"]
    software = ", ".join(f"{name} {version}" for name, version in comparison["versions"].items())
    parts += [
        "## Command and environment",
        "\n".join(
            [
                f"- {code(comparison['command'])}" if comparison["command"] else "- started from Python",
                (
                    f"- {text(machine['processor'])}, {counted(machine['threads_per_run'], 'thread')} per run; "
                    f"{text(software)}"
                ),
                *(f"- {text(task['name'])}: {text(settings_sentence(task))}" for task in comparison["tasks"]),
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


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


def as_csv(comparison: Mapping[str, Any]) -> str:
    """One line per method and task, with unrounded numbers."""
    columns = (
        *("task", "metric", "method", "title", "seeds", "mean", "sd", "low", "high", "best_epoch_mean"),
        *("difference", "difference_low", "difference_high", "p", "p_holm", "verdict"),
        *("learning_rate", "beta", "gamma", "trained_parameters", "head_parameters", "file_bytes"),
        *("peak_memory_bytes", "seconds_attach", "seconds_per_step", "seconds_total"),
        *("retention", "retention_before", "retention_after"),
    )
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    for task in comparison["tasks"]:
        common = {"task": task["name"], "metric": task["primary"]}
        for entry in task["results"]:
            writer.writerow({**common, **_csv_values(entry)})
        writer.writerow({**common, "method": "majority", "title": MAJORITY, "mean": task["majority"]})
    return file.getvalue()


def as_latex(comparison: Mapping[str, Any]) -> str:
    """One table: methods down, tasks across, mean and standard deviation; for booktabs."""
    tasks = comparison["tasks"]
    lines = [
        "% written by kasatune compare; requires \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'r' * len(tasks)}r}}",
        "\\toprule",
        " & ".join(["Method", *(_latex(task["name"]) for task in tasks), "Trained"]) + r" \\",
        "\\midrule",
    ]
    for method in dict.fromkeys(entry["method"] for task in tasks for entry in task["results"]):
        entries = [next((e for e in task["results"] if e["method"] == method), None) for task in tasks]
        trained = next((e["costs"]["trained_parameters"] for e in entries if e and e["costs"]), None)
        cells = [_latex_score(entry) for entry in entries]
        lines.append(" & ".join([_latex(title_of(comparison, method)), *cells, formatting.count(trained)]) + r" \\")
    lines.append(" & ".join(["Majority class", *(_percent(task["majority"]) for task in tasks), "-"]) + r" \\")
    marks = (
        "$^{+}$ and $^{-}$: better and worse than "
        + _latex(title_of(comparison, comparison["reference"]))
        + " after Holm's correction."
    )
    lines += ["\\bottomrule", "\\end{tabular}", f"% {marks}"]
    return "\n".join(lines) + "\n"


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
    interval = entry["interval"]
    reference = entry["method"] == comparison["reference"]
    return [
        entry["title"],
        score,
        "reference" if reference else ("baseline" if entry["fitted"] else difference.get("verdict", formatting.ABSENT)),
        formatting.signed(difference["mean"]) if difference.get("mean") is not None else formatting.ABSENT,
        f"{difference['p_holm']:.3g}" if difference.get("p_holm") is not None else formatting.ABSENT,
        f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else formatting.ABSENT,
        formatting.score(entry["best_epoch_mean"]) if not entry["fitted"] else formatting.ABSENT,
        formatting.count(costs.get("trained_parameters")),
        seconds(costs.get("seconds_per_step")),
    ]


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


def _markdown(table: Table, *, caption: bool = True) -> str:
    head, *rows = [[text(cell) for cell in row] for row in (table.head, *table.rows)]
    body = markdown_table(head, rows, numbers=len(head) - 1)
    return f"{text(formatting.sentence(table.caption))}.\n\n{body}" if caption else body


def _csv_values(entry: Mapping[str, Any]) -> dict[str, Any]:
    difference, costs = entry["difference"] or {}, entry["costs"] or {}
    low, high = entry["interval"] or (None, None)
    difference_low, difference_high = difference.get("interval") or (None, None)
    retention = costs.get("retention") or {}
    chosen = (entry["search"] or {}).get("chosen") or {}
    return {
        "method": entry["method"],
        "title": entry["title"],
        "seeds": entry["n"],
        **{key: entry[key] for key in ("mean", "sd", "best_epoch_mean")},
        "low": low,
        "high": high,
        "difference": difference.get("mean"),
        "difference_low": difference_low,
        "difference_high": difference_high,
        **{key: difference.get(key) for key in ("p", "p_holm", "verdict")},
        **{key: chosen.get(key) for key in ("learning_rate", "beta", "gamma")},
        **{
            key: costs.get(key)
            for key in (
                *("trained_parameters", "head_parameters", "peak_memory_bytes"),
                *("seconds_attach", "seconds_per_step", "seconds_total"),
            )
        },
        "file_bytes": file_bytes(costs),
        "retention": retention.get("kind"),
        "retention_before": retention.get("before"),
        "retention_after": retention.get("after"),
    }


def _latex_score(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["mean"] is None:
        return "--"
    verdict = (entry["difference"] or {}).get("verdict")
    mark = "" if entry["fitted"] else {"better": "$^{+}$", "worse": "$^{-}$"}.get(str(verdict), "")
    spread = "" if entry["sd"] is None else f" {{\\scriptsize $\\pm$ {_percent(entry['sd'])}}}"
    return f"{_percent(entry['mean'])}{spread}{mark}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _latex(value: str) -> str:
    for mark in "\\&%$#_{}":
        value = value.replace(mark, "\\" + mark if mark != "\\" else r"\textbackslash ")
    return value
