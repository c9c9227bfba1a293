"""What a judge's grades come to, with what could not be counted beside what was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kasatune.evaluation.judge.pairwise import Match
from kasatune.evaluation.judge.single_answer import Grade
from kasatune.metrics import bootstrap_interval


def summarize_grades(grades: Sequence[Grade]) -> dict[str, Any]:
    """Means over the grades that could be counted, in all, by turn and by category.

    Returns:
        "mean" and "interval" (95 %, bootstrap over the questions; None without grades), "by_turn", "by_category",
        "graded" and "failed" (numbers), "failures" (question, turn and reason of each).
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
    """Win rate = (wins + ties / 2) / pairs, over the pairs that could be counted.

    Returns:
        "win_rate" (None without pairs), "wins", "losses", "ties" of the first model; "swayed", those of the ties
        where the order changed the verdict; "graded" and "failed" (numbers), "failures".
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
    return [{"question_id": one.question_id, "turn": one.turn, "reason": one.failure} for one in items if one.failure]


def _groups(grades: Sequence[Grade], by: str) -> dict[Any, list[Grade]]:
    found: dict[Any, list[Grade]] = {}
    for grade in grades:
        found.setdefault(getattr(grade, by), []).append(grade)
    return found


def _mean(grades: Sequence[Grade]) -> float:
    values = [grade.value for grade in grades if grade.value is not None]
    return sum(values) / len(values)
