"""Texts side by side: what the base and every method wrote for the same prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kasatune.data.tasks.mixture_parts import in_turn
from kasatune.experiments.compare.base_run import BaseOnTask
from kasatune.experiments.compare.method_result import MethodResult
from kasatune.experiments.compare.run_store import FinishedRun
from kasatune.io.run_layout import PREDICTIONS

SAMPLES = 5


def text_samples(group: Sequence[MethodResult], base: BaseOnTask) -> list[dict[str, Any]]:
    """The texts for the first prompts of the task, each method's with its first seed."""
    written = {result.method.variant.text: _texts(result.done[0][1]) for result in group if result.done}
    own = _texts(base.result) if base.result is not None else {}
    prompts = next((texts for texts in written.values() if texts), own)
    return [
        {
            "prompt": prompt,
            "references": references,
            "base": own[prompt][1] if prompt in own else None,
            "texts": {method: texts[prompt][1] for method, texts in written.items() if prompt in texts},
        }
        for prompt, (references, _) in list(prompts.items())[:SAMPLES]
    ]


def _texts(run: FinishedRun) -> dict[str, tuple[list[str], str]]:
    """(references, text) of every prompt that a run answered, of a mixture one of each part in turn."""
    try:
        answers = json.loads((run.folder / PREDICTIONS).read_text(encoding="utf-8"))
        rows = list(zip(answers["inputs"], answers["labels"], answers["predictions"], strict=True))
        order = in_turn(answers.get("parts") or [""] * len(rows))
        return {prompt: (references, text) for prompt, references, text in (rows[index] for index in order)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
