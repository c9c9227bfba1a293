"""Results of a SimRAG run: exact match and F1 of base, stage I and stage II with intervals, and what the filter did."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kasatune.evaluation.answer_scores import ANSWER_SCORES
from kasatune.io.run_layout import PREDICTIONS
from kasatune.metrics.answer_match import normalize_answer
from kasatune.metrics.bootstrap import bootstrap_interval, paired_bootstrap
from kasatune.simrag.recipe import STAGE_ONE, STAGE_TWO
from kasatune.simrag.round_trip import Judged
from kasatune.simrag.stages import closed_book_file

BASE = "base"
SYSTEMS = (BASE, STAGE_ONE, STAGE_TWO)
_EXAMPLES_PER_REASON = 5
_EXAMPLE_ANSWERS = 30

Answers = Mapping[str, Any]


def base_file(out: Path) -> Path:
    """The file with the scores of the untouched base with passages."""
    return out / f"{BASE}.json"


def compared(out: Path) -> dict[str, Any]:
    """The scores of the three systems on the same questions, with and without passages, and their differences.

    Every interval is a 95 % bootstrap over the questions; differences are paired.
    """
    files = {
        "passages": {BASE: base_file(out), **{stage: out / stage / PREDICTIONS for stage in (STAGE_ONE, STAGE_TWO)}},
        "closed_book": {system: closed_book_file(out, system) for system in SYSTEMS},
    }
    result: dict[str, Any] = {}
    for context, paths in files.items():
        rows = {system: _rows(_read(path)) for system, path in paths.items()}
        result[context] = {
            "scores": {
                system: {name: list(bootstrap_interval(values)) for name, values in own.items()}
                for system, own in rows.items()
            },
            "differences": [
                {
                    "system": after,
                    "minus": before,
                    **{name: list(paired_bootstrap(rows[after][name], rows[before][name])) for name in ANSWER_SCORES},
                }
                for before, after in ((BASE, STAGE_ONE), (STAGE_ONE, STAGE_TWO), (BASE, STAGE_TWO))
            ],
        }
    base = _read(files["passages"][BASE])
    retrieved = [float(row["retrieved"]) for row in base["scores"]]
    result["retrieval_recall"] = list(bootstrap_interval(retrieved))
    result["constant_answer"] = _constant(base)
    result["answers"] = _examples({system: _read(path) for system, path in files["passages"].items()})
    return result


def filter_record(judged: Sequence[Judged], rate: float, shuffled_rate: float, trained: int) -> dict[str, Any]:
    """What the filter kept and threw away, by reason and kind, with examples of each.

    Args:
        judged: every candidate.
        rate: share of the questions that were asked whose answer was retrieved.
        shuffled_rate: the same share for the corpus with its words shuffled.
        trained: pairs that stage II trains on.
    """
    kept = [item for item in judged if item.reason is None]
    reasons = Counter(item.reason for item in judged if item.reason is not None)
    kinds = sorted({item.candidate.kind for item in judged})
    return {
        "candidates": len(judged),
        "kept": len(kept),
        "trained": trained,
        "retrieval_rate": rate,
        "shuffled_retrieval_rate": shuffled_rate,
        "left_out": dict(reasons.most_common()),
        "by_kind": {
            kind: {
                "candidates": sum(item.candidate.kind == kind for item in judged),
                "kept": sum(item.candidate.kind == kind for item in kept),
            }
            for kind in kinds
        },
        "examples": [
            {"reason": reason, "pairs": [pair_record(item) for item in own[:_EXAMPLES_PER_REASON]]}
            for reason in (None, *reasons)
            if (own := [item for item in judged if item.reason == reason])
        ],
    }


def pair_record(item: Judged) -> dict[str, Any]:
    """A candidate with the decision of the filter, as one row of pairs.jsonl."""
    candidate = item.candidate
    return {
        "key": candidate.key,
        "document": candidate.chunk.document,
        "chunk": candidate.chunk.name,
        "kind": candidate.kind,
        "question": candidate.question,
        "answer": candidate.answer,
        "kept": item.reason is None,
        "reason": item.reason,
        "passages": [passage.name for passage in item.passages],
    }


def _read(path: Path) -> Answers:
    return json.loads(path.read_text(encoding="utf-8"))


def _rows(answers: Answers) -> dict[str, list[float]]:
    return {name: [float(row[name]) for row in answers["scores"]] for name in ANSWER_SCORES}


def _constant(answers: Answers) -> dict[str, Any]:
    """The scores of always giving the most frequent right answer, which uses no model and no question."""
    counts = Counter(normalize_answer(own[0]) for own in answers["labels"])
    constant = counts.most_common(1)[0][0]
    return {
        "answer": constant,
        **{
            name: float(np.mean([score(constant, own) for own in answers["labels"]]))
            for name, score in ANSWER_SCORES.items()
        },
    }


def _examples(answers: Mapping[str, Answers]) -> list[dict[str, Any]]:
    """The first questions with the right answers and those of each system."""
    base = answers[BASE]
    return [
        {
            "question": base["inputs"][number].rpartition("Question: ")[2],
            "right": base["labels"][number],
            "retrieved": bool(base["scores"][number]["retrieved"]),
            **{system: own["predictions"][number] for system, own in answers.items()},
        }
        for number in range(min(_EXAMPLE_ANSWERS, len(base["inputs"])))
    ]
