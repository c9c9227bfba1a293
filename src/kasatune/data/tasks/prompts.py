"""What a model that writes text is given to read: the prompt of each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from kasatune.data.tasks.commonsense_prompts import evaluation_prompt

DATA_TO_TEXT = "### Context : {}\n### Completion : "
"""The prompt of the KaSA authors for E2E, to the letter (the README of juyongjiang/KaSA); the blank at its end too."""

PROMPTS: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {**dict.fromkeys(("e2e", "webnlg", "dart"), DATA_TO_TEXT.format), "commonsense": evaluation_prompt}
)


def render(task: str, text: str) -> str:
    """The prompt for `text` in the task's template; `text` itself where the task has none."""
    return PROMPTS.get(task.partition("/")[0], str)(text)
