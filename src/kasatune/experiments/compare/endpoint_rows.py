"""Endpoints of a run row by row, from predictions.json: the values whose mean over the rows is the run's score."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from kasatune.data.tasks.table import TASKS
from kasatune.data.tasks.task_info import TaskInfo
from kasatune.evaluation.answer_scores import ANSWER_SCORES
from kasatune.evaluation.multiple_choice import are_correct
from kasatune.experiments.compare.forgetting import FORGETTING, read_retention
from kasatune.io.run_layout import PREDICTIONS
from kasatune.metrics.generation import rouge_l_segments, sentence_bleu_segments
from kasatune.metrics.row_values import ratio_values, row_values

Floats = npt.NDArray[np.float64]

_CHOICES = {"accuracy": "written", "acc": "acc", "acc_norm": "acc_norm"}
_LEAST_PROBABILITY = 1e-30  # probabilities are stored in float32


def endpoint_names(task: str, primary: str, parts: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """The scores of a task that a comparison analyses, the main score first and forgetting last.

    Args:
        task: name of the task.
        primary: its main score.
        parts: of a mixture, the task of each part; a score of a part is "PART/SCORE".
    """
    names = [primary, *_text_scores(TASKS[task])]
    for part, own in parts.items():
        names += [f"{part}/{name}" for name in ("loss", *_text_scores(TASKS[own]))]
    return [*dict.fromkeys(names), FORGETTING]


def _text_scores(info: TaskInfo) -> list[str]:
    """The scores of generated text whose values are known row by row."""
    if info.kind != "generation":
        return []
    names = ["rouge_l", "sentence_bleu"] if "rouge_l" in info.metrics else []
    return names + [name for name in ("accuracy", "acc_norm", "exact_match", "f1") if name in info.metrics]


def run_rows(folder: Path, task: str, metric: str) -> Floats | None:
    """The values of the rows of a run whose mean is its score `metric`; None if its files do not tell.

    Rows of text with one prompt count as one unit, because they are one input with several references.
    """
    if metric == FORGETTING:
        retention = read_retention(folder)
        return None if retention is None else retention.rise
    answers = _answers(folder)
    if answers is None:
        return None
    try:
        if "/" in metric:
            task, metric, answers = _of_part(answers, metric)
        if TASKS[task].rows == "pairs":
            return _pair_rows(metric, answers)
        values = _text_rows(TASKS[task], metric, answers) if TASKS[task].kind == "generation" else None
        if values is None and TASKS[task].kind != "generation":
            values = _labelled_rows(TASKS[task], metric, answers)
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    return values if values is not None and len(values) > 1 and np.isfinite(values).all() else None


def constant_rows(metric: str, labels: Sequence[Any], answer: Any) -> Floats | None:
    """The values of the rows for one constant answer, the baseline that uses no input."""
    return row_values(metric, labels, [answer] * len(labels))


@lru_cache(maxsize=64)
def _read(path: Path, changed: int) -> Mapping[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _answers(folder: Path) -> Mapping[str, Any] | None:
    path = folder / PREDICTIONS
    return _read(path, path.stat().st_mtime_ns) if path.is_file() else None


def _labelled_rows(info: TaskInfo, metric: str, answers: Mapping[str, Any]) -> Floats | None:
    labels, predicted = answers["labels"], answers["predictions"]
    if metric != "loss":
        return row_values(metric, labels, predicted)
    if info.kind == "regression":
        return np.square(np.asarray(predicted, dtype=np.float64) - np.asarray(labels, dtype=np.float64))
    probabilities = [row[label] for row, label in zip(answers["scores"], labels, strict=True)]
    return -np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), _LEAST_PROBABILITY))


def _of_part(answers: Mapping[str, Any], metric: str) -> tuple[str, str, Mapping[str, Any]]:
    """The task of a part, the score without the part's name, and the part's answers, for a metric "PART/SCORE"."""
    part, _, score = metric.rpartition("/")
    result = dict(answers)
    chosen = [index for index, name in enumerate(answers["parts"]) if name == part]
    for key in ("inputs", "labels", "predictions", "scores"):
        result[key] = [answers[key][index] for index in chosen]
    losses = answers["losses"]
    rows = [index for index, name in enumerate(losses["part"]) if name == part]
    result["losses"] = {key: [values[index] for index in rows] for key, values in losses.items()}
    return answers["tasks"][part], score, result


def _pair_rows(metric: str, answers: Mapping[str, Any]) -> Floats | None:
    if metric == "loss":
        return np.asarray(answers["losses"]["sum"], dtype=np.float64)
    chosen, rejected = np.asarray(answers["scores"], dtype=np.float64).T
    values = {"margin": chosen - rejected, "accuracy": (np.sign(chosen - rejected) + 1) / 2}
    return values.get(metric)


def _text_rows(info: TaskInfo, metric: str, answers: Mapping[str, Any]) -> Floats | None:
    if metric == "loss":
        losses = answers["losses"]
        sums, tokens = np.asarray(losses["sum"], dtype=np.float64), np.asarray(losses["tokens"], dtype=np.float64)
        prompts = losses.get("prompt", range(len(sums)))  # a search trial does not group its rows
        units = np.unique(np.asarray(prompts), return_inverse=True)[1]
        return ratio_values(np.bincount(units, weights=sums), np.bincount(units, weights=tokens))
    texts, references = answers["predictions"], answers["labels"]
    if not texts or "inputs" not in answers:
        return None
    if metric == "rouge_l":
        return np.asarray(rouge_l_segments(texts, references))
    if metric == "sentence_bleu":
        return np.asarray(sentence_bleu_segments(texts, references))
    if metric in ANSWER_SCORES and metric in info.metrics:
        score = ANSWER_SCORES[metric]
        return np.asarray([score(text, own) for text, own in zip(texts, references, strict=True)])
    if metric in _CHOICES and "acc" in info.metrics:
        right = are_correct(answers["inputs"], references, answers["scores"], _CHOICES[metric])
        return np.asarray(right, dtype=np.float64)
    return None
