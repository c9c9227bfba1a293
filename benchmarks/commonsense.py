"""Commonsense tasks with a small Llama before and after KaSA, by LLM-Adapters' and lm-eval's protocols.

python -m benchmarks.commonsense --model MODEL_FOLDER --data LLM_ADAPTERS_FOLDER [--runs DIR] [--tasks LIST]

LLM_ADAPTERS_FOLDER holds a folder with train.json and test.json for each task. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.harness import machine
from kasatune.data.tasks import load_task
from kasatune.data.tasks.commonsense_prompts import extract, read_instruction
from kasatune.evaluation.multiple_choice import are_correct
from kasatune.evaluation.task_model import TaskModel, deterministic
from kasatune.io.atomic import write_json
from kasatune.metrics.bootstrap import bootstrap_interval
from kasatune.recipes.schema import Recipe
from kasatune.runs.metrics import read_metrics
from kasatune.training.train import train

PAGE = Path(__file__).parents[1] / "docs" / "results" / "commonsense.md"
TASKS = {"boolq": "BoolQ", "openbookqa": "OpenBookQA", "social_i_qa": "SIQA", "winogrande": "WinoGrande"}
PROTOCOLS = {"accuracy": "written", "acc": "acc", "acc_norm": "acc_norm"}
TITLE = """# Commonsense reasoning with a small Llama, by two protocols

{date}, {processor}, {threads} thread; torch {torch}, transformers {transformers}, peft {peft}, kasatune {kasatune}.

Made by `{command}`.

The base is stories260K, a Llama of 260,032 parameters that was trained on children's stories. It is far too small to
know what these questions ask for: **the scores after training are near chance, and nothing here says how well KaSA
reasons**. What the page shows is that training and both protocols work from end to end: before training the model
writes no answer, afterwards it writes one for nearly every question; what cannot be read as an answer is counted. After
the answer the model writes on to the limit of new tokens: with its frozen output layer it hardly learns to end a text.

KaSA: {settings}.
Each task is trained on its own rows and scored on the first {test} of its test rows. `accuracy` is
LLM-Adapters' protocol (its prompt and answer parsing, verbatim, four beams, 32 new tokens); `acc` and `acc_norm`
are lm-eval's (log-likelihood of each choice, the second per letter, questions in lm-eval's own words; BoolQ without its
passage, which LLM-Adapters' files lack). `chance` is the share of the commonest answer among the scored rows. The
intervals are 95 %, bootstrap over the rows.
"""


def recipe(task: str, given: argparse.Namespace, method: str) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name": str(given.model)},
            "task": {
                "name": f"commonsense/{task}",
                "data": str(given.data),
                "max_length": 448,
                "max_train": given.rows,
                "max_eval": given.test,
            },
            "method": {
                "name": method,
                "r": 8,
                "alpha": 16,
                "target_modules": ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"],
            },
            "training": {
                "epochs": 3,
                "batch_size": 16,
                "eval_batch_size": 25,
                "learning_rate": 5e-3,
                "device": "cpu",
            },
            "output": str(given.runs / task),
        }
    )


def score(prepared: Any, given: argparse.Namespace, what: Recipe) -> dict[str, Any]:
    """Test scores with the answer to every row."""
    data = load_task(what.task)
    found = prepared.final_score(prepared.encode(data, "test"), data, "test")
    return {
        "metrics": found.metrics,
        "inputs": found.inputs,
        "labels": found.labels,
        "predictions": found.predictions,
        "answers": found.scores,
    }


def measured(task: str, given: argparse.Namespace) -> dict[str, Any]:
    """The scores before and after, from the files of an earlier call where they are there."""
    kept = given.runs / f"{task}.json"
    if not kept.is_file():
        what = recipe(task, given, "kasa")
        data = load_task(what.task)
        with deterministic():
            # LoRA begins as the untouched base, KaSA without its smallest singular values
            before = score(TaskModel.for_training(recipe(task, given, "lora"), data), given, what)
            train(what, given.runs / task, resume=True)
            after = score(TaskModel.for_saved_run(what, None, given.runs / task), given, what)
        metrics = read_metrics(given.runs / task)
        write_json(
            kept, {"before": before, "after": after, "seconds": metrics["seconds"], "train": len(data.splits["train"])}
        )
    return json.loads(kept.read_text(encoding="utf-8"))


def chance(found: dict[str, Any]) -> float:
    labels = [extract(prompt, one) for prompt, own in zip(found["inputs"], found["labels"], strict=True) for one in own]
    return max(labels.count(one) for one in set(labels)) / len(labels)


def lines(task: str, found: dict[str, Any]) -> list[str]:
    rows = []
    for state in ("before", "after"):
        one = found[state]
        cells = []
        for key in PROTOCOLS.values():
            values = [float(value) for value in are_correct(one["inputs"], one["labels"], one["answers"], key)]
            interval = bootstrap_interval(values)
            cells.append(f"{interval.estimate:.3f} ({interval.low:.3f} to {interval.high:.3f})")
        number = sum(len(own) for own in one["labels"])
        silent = round(one["metrics"]["unparsed"] * number)
        shown = [
            TASKS[task],
            state,
            *cells,
            f"{chance(one):.3f}",
            f"{silent} of {number}",
            f"{one['metrics']['loss']:.3f}",
        ]
        rows.append("| " + " | ".join(shown) + " |")
    return rows


def examples(task: str, found: dict[str, Any]) -> str:
    after, before = found["after"], found["before"]
    question = read_instruction(after["inputs"][0].split("### Instruction:")[1].split("### Response:")[0].strip())
    assert question is not None
    choices = " / ".join(question.options or question.answers)
    first, then = (" ".join(one["predictions"][0].split()) for one in (before, after))
    return (
        f"- {TASKS[task]}: *{question.text}* ({choices})  \n"
        f"  before: `{first}`  \n  after: `{then}`; right: `{after['labels'][0][0]}`"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/commonsense"))
    parser.add_argument("--rows", type=int, default=1000, help="training rows of each task")
    parser.add_argument("--test", type=int, default=200, help="test rows of each task")
    parser.add_argument("--tasks", default=",".join(TASKS))
    given = parser.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    table, shown, seconds, trained = [], [], 0.0, []
    for task in given.tasks.split(","):
        found = measured(task, given)
        table += lines(task, found)
        shown.append(examples(task, found))
        seconds += found["seconds"]["train"]
        trained.append(found["train"])
        print(*table[-2:], sep="\n", flush=True)
    what = recipe("boolq", given, "kasa")
    settings = (
        f"r = {what.method.r}, alpha = {what.method.alpha}, on q, k, v, up and down, {what.training.epochs} epochs of "
        f"{min(trained):,} rows, batch {what.training.batch_size}, learning rate {what.training.learning_rate:g}, seed "
        f"{what.training.seed}"
    )
    command = "python -m benchmarks.commonsense " + shlex.join(sys.argv[1:])
    head = TITLE.format(
        date=datetime.now(UTC).date().isoformat(), command=command, settings=settings, test=given.test, **machine()
    )
    names = "| task | training | accuracy (written) | acc | acc_norm | chance | without an answer | loss |"
    parts = [
        head,
        "\n".join([names, "|" + " --- |" * 8, *table]),
        f"Training took {seconds:.0f} seconds for these tasks together, on a busy machine.",
        "## The first test row of each task\n\n" + "\n".join(shown),
    ]
    PAGE.write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
