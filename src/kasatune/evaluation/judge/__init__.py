"""Grade answers with a judge model: MT-Bench's two turns, pairs in both orders, or 0 to 10 for one answer."""

from __future__ import annotations

from kasatune.evaluation.judge.mt_bench_files import Conversation, Question, read_conversations, read_questions
from kasatune.evaluation.judge.pairwise import Match, compare_conversations
from kasatune.evaluation.judge.prompt_templates import Prompts, load_prompts, own_prompts
from kasatune.evaluation.judge.score_summary import summarize_grades, summarize_matches
from kasatune.evaluation.judge.single_answer import Grade, grade_answers, grade_conversations

__all__ = [
    "Conversation",
    "Grade",
    "Match",
    "Prompts",
    "Question",
    "compare_conversations",
    "grade_answers",
    "grade_conversations",
    "load_prompts",
    "own_prompts",
    "read_conversations",
    "read_questions",
    "summarize_grades",
    "summarize_matches",
]
