"""Recipes of the tasks preference and reward on toy pairs of answers that a small model can learn to tell apart."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from kasatune.recipes.schema import Recipe
from tests.text_toys import WORDS


def pairs(number: int, seed: int) -> list[dict[str, str]]:
    """The chosen answer repeats a word of the prompt, the rejected one is always the same."""
    draw = random.Random(seed)
    rows = []
    for _ in range(number):
        words = draw.sample(WORDS[:-2], 3)
        rows.append({"prompt": f"say {' '.join(words)}", "chosen": words[-1], "rejected": "pub cafe"})
    return rows


def pair_recipe(
    model: Path | str,
    folder: Path,
    *,
    task: str = "preference",
    method: dict[str, Any] | None = None,
    preference: dict[str, Any] | None = None,
    quantization: str = "none",
    number: int = 16,
    **training: Any,
) -> Recipe:
    """A recipe whose rows are written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.json").write_text(json.dumps(pairs(number, 1)))
    (folder / "validation.json").write_text(json.dumps(pairs(10, 2)))
    return Recipe.model_validate(
        {
            "model": {"name": str(model), "quantization": quantization},
            "task": {
                "name": task,
                "train": str(folder / "train.json"),
                "validation": str(folder / "validation.json"),
                "max_length": 40,
            },
            "method": {"name": "kasa", "r": 2, "alpha": 4, **(method or {})},
            "training": {
                "epochs": 1,
                "batch_size": 8,
                "eval_batch_size": 4,
                "learning_rate": 1e-2,
                "warmup_ratio": 0.0,
                "device": "cpu",
                **training,
            },
            **({"generation": {"max_new_tokens": 5}} if task == "preference" else {}),
            **({"preference": preference} if preference else {}),
            "output": "unused",
        }
    )
