"""The tasks that kasatune knows, as plain data: importing this table imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

TaskKind = Literal["classification", "regression", "generation"]


@dataclass(frozen=True)
class TaskInfo:
    """One task.

    Attributes:
        name: what a recipe writes as `task.name`.
        title: what it is, in a few words.
        kind: what the model gives: a label, a number or text.
        metrics: names of the scores, in the order in which tables show them.
        primary: the score that selects the best epoch; one of `metrics`.
        paper_metric: the score that the KaSA paper reports for this task; None where the paper does not use it.
        source: where the rows come from.
    """

    name: str
    title: str
    kind: TaskKind
    metrics: tuple[str, ...]
    primary: str
    paper_metric: str | None
    source: str


_GLUE = "the hub (nyu-mll/glue), or a folder of the GLUE release as `data`"
_OWN = "your files, as `train` and `validation`: CSV, TSV, JSON, JSONL or Parquet"
_ACCURACY = ("accuracy",)
_ACCURACY_F1 = ("accuracy", "f1")

_ROWS = (
    TaskInfo(
        "demo",
        "which library a documentation string belongs to",
        "classification",
        _ACCURACY_F1,
        "accuracy",
        None,
        "documentation strings of installed packages; nothing is downloaded",
    ),
    TaskInfo(
        "glue/cola",
        "grammatical acceptability",
        "classification",
        ("matthews_correlation", "accuracy"),
        "matthews_correlation",
        "matthews_correlation",
        _GLUE,
    ),
    TaskInfo("glue/sst2", "sentiment of film reviews", "classification", _ACCURACY, "accuracy", "accuracy", _GLUE),
    TaskInfo(
        "glue/mrpc", "paraphrase of news sentences", "classification", _ACCURACY_F1, "accuracy", "accuracy", _GLUE
    ),
    TaskInfo(
        "glue/stsb",
        "similarity of two sentences, 0 to 5",
        "regression",
        ("pearson", "spearman"),
        "pearson",
        "pearson",
        _GLUE,
    ),
    TaskInfo("glue/qqp", "duplicate questions", "classification", _ACCURACY_F1, "accuracy", None, _GLUE),
    TaskInfo("glue/mnli", "entailment, three classes", "classification", _ACCURACY, "accuracy", None, _GLUE),
    TaskInfo(
        "glue/qnli", "whether a sentence answers a question", "classification", _ACCURACY, "accuracy", "accuracy", _GLUE
    ),
    TaskInfo("glue/rte", "entailment, two classes", "classification", _ACCURACY, "accuracy", "accuracy", _GLUE),
    TaskInfo("glue/wnli", "entailment by coreference", "classification", _ACCURACY, "accuracy", None, _GLUE),
    TaskInfo(
        "classification",
        "your own labelled text",
        "classification",
        ("accuracy", "f1", "matthews_correlation"),
        "accuracy",
        None,
        _OWN,
    ),
    TaskInfo("regression", "your own text with a number", "regression", ("pearson", "spearman"), "pearson", None, _OWN),
)

TASKS: Mapping[str, TaskInfo] = MappingProxyType({info.name: info for info in _ROWS})
