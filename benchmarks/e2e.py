"""A small Llama that has read children's stories alone is taught by KaSA to tell the facts of the E2E challenge.

python -m benchmarks.e2e MODEL_FOLDER E2E_FOLDER RUN_FOLDER [--page docs/results/e2e.md] [section.key=value ...]

MODEL_FOLDER is karpathy/tinyllamas stories260K in transformers' form, E2E_FOLDER holds train.txt, valid.txt and
test.txt. The recipe is recipes/e2e/stories260k.yaml. RUN_FOLDER becomes the run directory; one that is there is
resumed, or only scored where it is finished. The whole test set is scored twice with the same decoding: by the
untrained base, which is the run's model with its adapter switched off, and by the run.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.harness import machine
from kasatune.cli.catalogue import find_recipe
from kasatune.cli.display import make_display
from kasatune.cli.outcome import write_pages
from kasatune.reports import markdown, words
from kasatune.runs.directory import read_metrics, read_recipe, write_json
from kasatune.runs.prepare import prepare_saved
from kasatune.runs.quiet import quiet
from kasatune.runs.recipe import Recipe, load_recipe
from kasatune.runs.scoring import Scores
from kasatune.runs.train import train
from kasatune.tasks import TaskData, load_task
from kasatune.tuner.progress import progress_told_to

SHOWN = 8
TEST = "test.json"
HEAD = """# E2E with a small Llama

stories260K, a Llama of 260,032 parameters with a vocabulary of 512 pieces, has read children's stories alone. KaSA
teaches it to tell the facts of a restaurant, the task of the E2E challenge.
"""
COMMAND = """Made by:

```bash
python -m benchmarks.e2e path/to/stories260K-hf path/to/e2e runs/e2e-stories260k --page docs/results/e2e.md
```
"""


def trained(arguments: argparse.Namespace) -> Path:
    given = [f"model.name={arguments.model}", f"task.data={arguments.data}", f"output={arguments.run}"]
    recipe = load_recipe(find_recipe("e2e/stories260k"), [*given, *arguments.overrides], check_inputs=True)
    run = train(recipe, arguments.run, resume=arguments.run.is_dir(), display=make_display())
    write_pages(run)
    return run


def whole_test(run: Path) -> TaskData:
    task = read_recipe(run).task.model_copy(update={"max_eval": None})
    return load_task(task)


def scored(run: Path) -> dict[str, Any]:
    """The test set as the base and as the run writes it."""
    data, display = whole_test(run), make_display()
    with quiet(), progress_told_to(display.progress):
        prepared = prepare_saved(read_recipe(run), "generation", None, run)
        examples = prepared.encode(data, "test")
        found: dict[str, Any] = {"seconds": {}}
        for name, state in (("base", prepared.method.disabled(prepared.model)), ("run", nullcontext())):
            start = time.perf_counter()
            with state:
                scores: Scores = prepared.final_score(examples, data, "test")
            found[name] = {"metrics": scores.metrics, "texts": scores.predictions}
            found["seconds"][name] = round(time.perf_counter() - start, 1)
            display.message(f"{name}: {scores.metrics}")
    display.finish()
    return {**found, "inputs": scores.inputs, "references": scores.labels, "rows": len(examples)}


def facts(prompt: str) -> str:
    return prompt.removeprefix("### Context : ").partition("\n")[0]


def page(run: Path, found: dict[str, Any]) -> str:
    metrics = read_metrics(run)
    before, after = found["base"]["metrics"], found["run"]["metrics"]
    rows = [
        [words.metric_title(name), *(words.score(scores[name]) for scores in (before, after, metrics["metrics"]))]
        for name in after
    ]
    return "\n".join(
        [
            HEAD,
            markdown.table(["score", "base, test", "KaSA, test", "KaSA, validation"], rows, numbers=3),
            "",
            *(f"- {line}" for line in conditions(read_recipe(run), metrics, found)),
            "",
            COMMAND,
            *examples(found),
        ]
    )


def conditions(recipe: Recipe, metrics: dict[str, Any], found: dict[str, Any]) -> list[str]:
    task, training, method = recipe.task, recipe.training, recipe.method
    settings = {key: value for key, value in metrics["generation"].items() if key != "model_settings_not_used"}
    return [
        f"Scored are all {len(found['inputs'])} inputs of the test set with {found['rows']:,} references. The base is"
        " the same model with its adapter switched off, and writes with the same settings: "
        f"{', '.join(f'{name} {value}' for name, value in settings.items())}.",
        "Loss and perplexity are of the references' pieces, not of words: they compare with nothing outside this page.",
        f"The validation column is of the first {task.max_eval} rows of that set, which also chose the epoch.",
        "METEOR here matches words and stems alone and stands under a name of its own: published METEOR is higher, and"
        " not to be set beside it.",
        "The texts are in LoRA's form, punctuation set apart by blanks.",
        f"Trained were {metrics['trainable_parameters']:,} parameters ({method.target_modules}, r = {method.r}, alpha ="
        f" {method.alpha:g}, beta = {method.beta:g}, gamma = {method.gamma:g}) on the first {task.max_train:,} of"
        f" 42,061 rows, {training.epochs:g} epochs, batch {training.batch_size}, learning rate"
        f" {training.learning_rate:g}, {training.schedule} schedule, seed {training.seed}.",
        "One run: no spread is known.",
        f"Training took {words.duration(metrics['seconds']['train'])}, writing the test set"
        f" {words.duration(found['seconds']['run'])}, on a machine whose processors others used too.",
        f"{', '.join(f'{name} {value}' for name, value in machine().items())}; {datetime.now(UTC):%Y-%m-%d}.",
    ]


def examples(found: dict[str, Any]) -> list[str]:
    inputs = found["inputs"]
    every = max(1, len(inputs) // SHOWN)
    lines = ["## Texts", "", f"Every {every}th input of the test set; none was chosen."]
    for place in range(0, every * SHOWN, every):
        lines += [
            "",
            f"**{markdown.text(facts(inputs[place]))}**",
            "",
            f"- base: {markdown.text(found['base']['texts'][place] or '(nothing)')}",
            f"- KaSA: {markdown.text(found['run']['texts'][place] or '(nothing)')}",
            f"- a person: {markdown.text(found['references'][place][0])}",
        ]
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    run = trained(arguments)
    kept = run / TEST
    found = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else scored(run)
    write_json(kept, found)
    if arguments.page:
        arguments.page.write_text(page(run, found), encoding="utf-8")
        print(arguments.page)


if __name__ == "__main__":
    main()
