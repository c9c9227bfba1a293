"""A small random BERT, small data that it can learn, and recipes that join them."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel, BertTokenizer

from kasatune.recipes.schema import Recipe

GOOD = ("good", "fine", "nice", "great")
BAD = ("bad", "poor", "awful", "sad")


def make_bert(folder: Path, **changes: Any) -> Path:
    """A random BERT without a head, saved with its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    options = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    torch.manual_seed(7)
    BertModel(BertConfig(**{**options, **changes})).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def rows(number: int, labels: int, seed: int) -> list[tuple[str, Any]]:
    """Texts whose label is the share of good words in them: a number where `labels` is 0, else one of `labels`."""
    draw = random.Random(seed)
    found = []
    for _ in range(number):
        words = [draw.choice(GOOD + BAD) for _ in range(draw.randint(2, 9))]
        share = sum(word in GOOD for word in words) / len(words)
        label: Any = share if labels == 0 else f"label{min(int(share * labels), labels - 1)}"
        found.append((" ".join(words), label))
    return found


def write_csv(path: Path, lines: list[tuple[str, Any]]) -> Path:
    """A file with the columns text and label."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(lines)
    return path


def make_recipe(
    model: Path | str,
    folder: Path,
    *,
    labels: int = 2,
    train: int = 24,
    validation: int = 13,
    method: dict[str, Any] | None = None,
    model_options: dict[str, Any] | None = None,
    task: dict[str, Any] | None = None,
    **training: Any,
) -> Recipe:
    """A recipe on toy data written to `folder`; `labels` 0 is a regression."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "train": str(write_csv(folder / "train.csv", rows(train, labels, seed=1))),
        "validation": str(write_csv(folder / "validation.csv", rows(validation, labels, seed=2))),
    }
    return Recipe.model_validate(
        {
            "model": {"name": str(model), **(model_options or {})},
            "task": {
                "name": "classification" if labels else "regression",
                **data,
                "text": "text",
                "label": "label",
                "max_length": 32,
                **(task or {}),
            },
            "method": {"name": "kasa", "r": 2, "alpha": 4, **(method or {})},
            "training": {
                "epochs": 2,
                "batch_size": 8,
                "eval_batch_size": 4,
                "learning_rate": 1e-2,
                "device": "cpu",
                **training,
            },
            "output": "unused",
        }
    )


class Recorder:
    """A display that remembers what it was told."""

    def __init__(self) -> None:
        self.total = 0
        self.steps: list[int] = []
        self.progressed: list[tuple[str, int, int]] = []
        self.messages: list[str] = []
        self.finished = 0

    def start(self, total_steps: int, title: str) -> None:
        self.total = total_steps

    def step(self, step: int, epoch: float, loss: float | None, learning_rate: float | None) -> None:
        self.steps.append(step)

    def evaluated(self, epoch: float, metrics: Any) -> None:
        pass

    def progress(self, what: str, done: int, total: int) -> None:
        self.progressed.append((what, done, total))

    def message(self, text: str) -> None:
        self.messages.append(text)

    def finish(self) -> None:
        self.finished += 1


class At(Recorder):
    """Does something at one step."""

    def __init__(self, step: int, action: Any) -> None:
        super().__init__()
        self._step, self._action = step, action

    def step(self, step: int, epoch: float, loss: float | None, learning_rate: float | None) -> None:
        super().step(step, epoch, loss, learning_rate)
        if step == self._step:
            self._action()
