"""Summarize a judge's grades: means with an interval or win rates, and the replies without a valid grade."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kasatune.evaluation.judge.pairwise import Match
from kasatune.evaluation.judge.single_answer import Grade
from kasatune.metrics import bootstrap_interval


def summarize_grades(grades: Sequence[Grade]) -> dict[str, Any]:
    """Means over the valid grades: overall, by turn and by category.

    Returns:
        "mean" and "interval" (95 %, bootstrap over the questions; None without grades), "by_turn", "by_category",
        "graded" and "failed" (counts), "failures" (question, turn and reason of each).
    """
    counted = [grade for grade in grades if grade.value is not None]
    values = [_mean(group) for group in _groups(counted, "question_id").values()]
    interval = bootstrap_interval(values) if values else None
    return {
        "mean": _mean(counted) if counted else None,
        "interval": None if interval is None else [interval.low, interval.high],
        "by_turn": {str(turn): _mean(group) for turn, group in sorted(_groups(counted, "turn").items())},
        "by_category": {name: _mean(group) for name, group in _groups(counted, "category").items()},
        "graded": len(counted),
        "failed": len(grades) - len(counted),
        "failures": _failures(grades),
    }


def summarize_matches(matches: Sequence[Match]) -> dict[str, Any]:
    """Win rate = (wins + ties / 2) / pairs, over the pairs with valid verdicts.

    Returns:
        "win_rate" (None without pairs), "wins", "losses" and "ties" of the first model; "swayed", the number of ties
        in which the order changed the verdict; "graded" and "failed" (counts), "failures".
    """
    counted = [match for match in matches if match.winner is not None]
    wins = sum(match.winner == "first" for match in counted)
    losses = sum(match.winner == "second" for match in counted)
    ties = len(counted) - wins - losses
    return {
        "win_rate": (wins + ties / 2) / len(counted) if counted else None,
        "wins": wins,
        "losses": losses,
        "ties": ties,
        "swayed": sum(match.swayed for match in counted),
        "graded": len(counted),
        "failed": len(matches) - len(counted),
        "failures": _failures(matches),
    }


def _failures(items: Iterable[Grade | Match]) -> list[dict[str, Any]]:
    return [
        {"question_id": item.question_id, "turn": item.turn, "reason": item.failure} for item in items if item.failure
    ]


def _groups(grades: Sequence[Grade], by: str) -> dict[Any, list[Grade]]:
    groups: dict[Any, list[Grade]] = {}
    for grade in grades:
        groups.setdefault(getattr(grade, by), []).append(grade)
    return groups


def _mean(grades: Sequence[Grade]) -> float:
    values = [grade.value for grade in grades if grade.value is not None]
    return sum(values) / len(values)
