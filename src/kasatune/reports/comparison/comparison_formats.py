"""A comparison as text in three formats: a Markdown page, CSV with unrounded numbers, and a LaTeX table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from kasatune.reports import formatting
from kasatune.reports.comparison.comparison_tables import (
    BASE,
    MAJORITY,
    NOTHING,
    Table,
    baseline,
    cost_table,
    counts_sentence,
    endpoint_table,
    failures,
    file_bytes,
    overall_table,
    search_table,
    settings_sentence,
    task_table,
)
from kasatune.reports.comparison.conclusion import (
    analysis_sentence,
    begun,
    conclusion_sentences,
    protocol_sentence,
    title_of,
    verdict_text,
)
from kasatune.reports.markdown import code, text
from kasatune.reports.markdown import table as markdown_table
from kasatune.wording import counted


def as_markdown(comparison: Mapping[str, Any]) -> str:
    """The comparison as a Markdown page."""
    names = ", ".join(task["name"] for task in comparison["tasks"])
    result, *details = map(text, conclusion_sentences(comparison))
    parts = [f"# Comparison on {text(names)}", f"**{result}**"]
    parts += ["\n".join(f"- {detail}" for detail in details)] if details else []
    parts.append(text(protocol_sentence(comparison)))
    if analysis := analysis_sentence(comparison):
        parts.append(text(analysis))
    if len(comparison["tasks"]) > 1 and comparison["overall"]:
        parts += ["## Over all tasks", _markdown(overall_table(comparison))]
    for task in comparison["tasks"]:
        parts.append(f"## {text(task['name'])}")
        parts += (
            [text(counts_sentence(task)), _markdown(task_table(comparison, task))]
            if task in begun(comparison)
            else [NOTHING]
        )
        for table in (endpoint_table(comparison, task), cost_table(task), search_table(task)):
            if table.rows:
                parts += [f"### {text(table.caption)}", _markdown(table, caption=False)]
        if task.get("texts"):
            parts += ["### Texts side by side", *_markdown_texts(comparison, task)]
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


def as_csv(comparison: Mapping[str, Any]) -> str:
    """One line per method and task, with unrounded numbers."""
    columns = (
        *("task", "metric", "method", "title", "seeds", "mean", "sd", "iqm", "low", "high", "best_epoch_mean"),
        *("difference", "difference_low", "difference_high", "p", "p_holm"),
        *("margin", "p_equivalent", "p_not_inferior", "family", "verdict"),
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
            for name, endpoint in entry.get("endpoints", {}).items():
                writer.writerow({**common, "metric": name, **_endpoint_csv(entry, endpoint)})
        name, score = baseline(task)
        writer.writerow({**common, "method": "majority" if name == MAJORITY else "base", "title": name, "mean": score})
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
        cells = [_latex_score(task, entry) for task, entry in zip(tasks, entries, strict=True)]
        lines.append(" & ".join([_latex(title_of(comparison, method)), *cells, formatting.count(trained)]) + r" \\")
    lines.append(" & ".join(["Baseline", *(_latex_number(task, baseline(task)[1]) for task in tasks), "-"]) + r" \\")
    marks = (
        "$^{+}$ and $^{-}$: better and worse than "
        + _latex(title_of(comparison, comparison["reference"]))
        + " after Holm's correction."
    )
    lines += ["\\bottomrule", "\\end{tabular}", f"% {marks}"]
    return "\n".join(lines) + "\n"


def _endpoint_csv(entry: Mapping[str, Any], endpoint: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "method": entry["method"],
        "title": entry["title"],
        "seeds": endpoint["n"],
        **{key: endpoint[key] for key in ("mean", "sd", "iqm")},
        **_bounds("", endpoint["interval"]),
        **_difference_csv(endpoint["difference"] or {}),
    }


def _bounds(prefix: str, interval: list[float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{prefix}low": low, f"{prefix}high": high}


def _difference_csv(difference: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "difference": difference.get("mean"),
        **_bounds("difference_", difference.get("interval")),
        **{key: difference.get(key) for key in ("p", "p_holm", "margin", "p_equivalent", "p_not_inferior", "family")},
        "verdict": verdict_text(difference) if difference else None,
    }


def _markdown_texts(comparison: Mapping[str, Any], task: Mapping[str, Any]) -> list[str]:
    parts = []
    for sample in task["texts"]:
        lines = [f"- reference: {text(reference)}" for reference in sample["references"][:3]]
        lines += [f"- {BASE}: {text(sample['base'])}"] if sample["base"] is not None else []
        lines += [f"- {text(title_of(comparison, name))}: {text(words)}" for name, words in sample["texts"].items()]
        parts.append(code(sample["prompt"].replace("\n", " ")) + "\n\n" + "\n".join(lines))
    return parts


def _markdown(table: Table, *, caption: bool = True) -> str:
    head, *rows = [[text(cell) for cell in row] for row in (table.head, *table.rows)]
    body = markdown_table(head, rows, numbers=len(head) - 1)
    return f"{text(formatting.sentence(table.caption))}.\n\n{body}" if caption else body


def _csv_values(entry: Mapping[str, Any]) -> dict[str, Any]:
    difference, costs = entry["difference"] or {}, entry["costs"] or {}
    retention = costs.get("retention") or {}
    chosen = (entry["search"] or {}).get("chosen") or {}
    return {
        "method": entry["method"],
        "title": entry["title"],
        "seeds": entry["n"],
        **{key: entry.get(key) for key in ("mean", "sd", "iqm", "best_epoch_mean")},
        **_bounds("", entry["interval"]),
        **_difference_csv(difference),
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


def _latex_score(task: Mapping[str, Any], entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["mean"] is None:
        return "--"
    verdict = (entry["difference"] or {}).get("verdict")
    mark = "" if entry["fitted"] else {"better": "$^{+}$", "worse": "$^{-}$"}.get(str(verdict), "")
    spread = "" if entry["sd"] is None else f" {{\\scriptsize $\\pm$ {_latex_number(task, entry['sd'])}}}"
    return f"{_latex_number(task, entry['mean'])}{spread}{mark}"


def _latex_number(task: Mapping[str, Any], value: float | None) -> str:
    """A score as a percentage, a loss as it is."""
    if value is None:
        return "--"
    return _percent(value) if formatting.metric_range(task["primary"]) else f"{value:.4f}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _latex(value: str) -> str:
    for mark in "\\&%$#_{}":
        value = value.replace(mark, "\\" + mark if mark != "\\" else r"\textbackslash ")
    return value
