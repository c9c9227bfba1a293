"""Write the data card of a synthesis: what the rows are, how they were made, and their limitations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kasatune.synthesis.recipe import SynthesisRecipe
from kasatune.synthesis.teacher_prompts import SUBJECTS, Row
from kasatune.wording import counted

_MAX_SHOWN_LENGTH = 600


def data_card(recipe: SynthesisRecipe, report: Mapping[str, Any], first: Row) -> str:
    """Markdown with the front matter of the hub's data cards.

    Args:
        recipe: recipe of the synthesis.
        report: content of synthesis.json.
        first: the row to show as an example.
    """
    teacher, data = recipe.teacher, recipe.data
    short = "" if report["rows"] >= data.count else f" ({data.count:,} were requested)"
    rows = counted(report["rows"], "row")
    left_out = "".join(f"- {number:,} {reason}\n" for reason, number in report["left_out"].items()) or "- nothing\n"
    shown = json.dumps({"instruction": _cut(first.instruction), "output": _cut(first.output)}, ensure_ascii=False)
    return f"""---
tags: [synthetic, instruction]
---

# {data.subject} rows written by {teacher.model}

{rows}{short}, each an instruction and an output, made on {report["made"]} by `kasatune synthesize`.
Kind of task: {data.describe or SUBJECTS[data.subject]}.

**Nobody has read these rows.** A model wrote them: outputs may be wrong, biased or copied from its training data.
Whether they may be used to train another model depends on the terms of the teacher and of the seeds.

## How they were made

- teacher: `{teacher.model}`{f" at {teacher.url}" if teacher.url else ""}, temperature {teacher.temperature:g}, \
at most {counted(teacher.max_tokens, "token")} a reply
- seeds: `{recipe.seeds.file}` (SHA-256 `{report["seeds_sha256"]}`), {recipe.seeds.shown} shown in each request, drawn \
with the seed {data.seed}
- {counted(report["requests"], "request")} for {counted(data.per_request, "row")} each; {_tokens(report["cost"])}
- a row was left out when its instruction, in lower case and without punctuation, was that of a seed or an earlier row,
  or when its ROUGE-L F1 with one of them was {recipe.filter.similarity:g} or more

Left out:

{left_out}
`recipe.yaml` is the recipe; `replies.jsonl` holds every request and reply.
SHA-256 of `train.jsonl`: `{report["sha256"]}`.

## A row

```json
{shown}
```

## Train on them

```yaml
task: {{name: instruction, train: train.jsonl, validation: 0.05}}
```
"""


def _tokens(cost: Mapping[str, Any]) -> str:
    words = (
        f"{counted(cost['prompt_tokens'], 'prompt token')} and {counted(cost['completion_tokens'], 'completion token')}"
    )
    if cost["uncounted"]:
        words += f", without {counted(cost['uncounted'], 'reply')} whose tokens the server did not count"
    return words if cost["money"] is None else f"{words}, {cost['money']:.2f} in total at the given prices"


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_LENGTH else f"{text[:_MAX_SHOWN_LENGTH]} ..."
