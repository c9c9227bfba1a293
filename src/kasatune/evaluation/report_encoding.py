"""Report how the rows of a run were tokenized: cut rows, and a chat template that is not the model's own."""

from __future__ import annotations

from collections.abc import Mapping

from kasatune.data.tasks.mixture_parts import reads_chats
from kasatune.data.tokenize import Examples
from kasatune.data.tokenize_pairs import CHOSEN
from kasatune.evaluation.generate import end_tokens
from kasatune.evaluation.task_model import TaskModel
from kasatune.io.progress import ProgressReporter
from kasatune.wording import agree, counted


def count_cut(task_model: TaskModel, examples: Examples) -> dict[str, int]:
    """How many rows were cut to `task.max_length`.

    Returns:
        `rows`; `cut`, those that were cut; `without_end`, those of them that lost the end-of-turn token of their
        answer, only of tasks that generate text.
    """
    counts = {"rows": len(examples), "cut": len(examples.truncated)}
    if task_model.kind == "generation":
        ends = set(end_tokens(task_model.base.model, task_model.base.tokenizer, task_model.end_of_turn))
        rows = [examples[index] for index in examples.truncated]
        counts["without_end"] = sum(ends.isdisjoint(row["labels"] if "labels" in row else row[CHOSEN]) for row in rows)
    return counts


def report_cut(progress: ProgressReporter, split: str, counts: Mapping[str, int], max_length: int) -> None:
    """Report the counts of `count_cut`, if any row of a split was cut."""
    cut, endless = counts["cut"], counts.get("without_end", 0)
    if not cut:
        return
    message = (
        f"{split}: {cut} of {counted(counts['rows'], 'row')} {agree(cut, 'is', 'are')} longer than "
        f"{counted(max_length, 'token')} and {agree(cut, 'was', 'were')} cut"
    )
    if endless == counts["rows"]:
        message += "; no row has its end-of-turn token left, so the model cannot learn where to stop"
    elif endless:
        message += f"; {endless} lost {agree(endless, 'its', 'their')} end-of-turn token"
    progress.message(message)


def report_chat_template(progress: ProgressReporter, task_model: TaskModel) -> None:
    """Report a chat template that is not the model's own, and one that writes no end-of-turn token."""
    end, tokenizer = task_model.answer_end, task_model.base.tokenizer
    if task_model.template_note:
        progress.message(task_model.template_note)
    if end is None and reads_chats(task_model.recipe.task):
        progress.message(
            "warning: the chat template writes the same for every answer, so no end of turn is learnt, and texts end "
            f"at the EOS token {tokenizer.eos_token!r} alone; name another template as task.template"
        )
    elif end is not None and end.token is None:
        progress.message(
            f"the chat template ends an answer with {end.text!r}, which is no end-of-turn token; the EOS token"
            f" {tokenizer.eos_token!r} is learnt in its place after the last answer of each row"
        )
