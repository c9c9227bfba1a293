"""E2E with KaSA on stories260K, a small Llama pretrained on children's stories: scores before and after.

python -m benchmarks.e2e MODEL_FOLDER E2E_FOLDER RUN_FOLDER [--page docs/results/e2e.md] [section.key=value ...]

MODEL_FOLDER is karpathy/tinyllamas stories260K in transformers' form, E2E_FOLDER holds train.txt, valid.txt and
test.txt. The recipe is `e2e/stories260k`. RUN_FOLDER becomes the run directory; an existing run is
resumed, or only scored if it is finished. Next to it, RUN_FOLDER-model is a copy of the model whose end-of-text token
is <s>, which it has read between stories, instead of </s>, which it has never read. The complete test set is scored
twice with the same decoding: by the untrained base, which is the run's model with its adapter switched off, and by the
run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.harness import machine
from kasatune.cli.progress_bar import make_progress
from kasatune.cli.run_summary import write_pages
from kasatune.data.tasks import load_task
from kasatune.data.tasks.dataset import TaskData
from kasatune.evaluation.scoring import Scores
from kasatune.evaluation.task_model import TaskModel
from kasatune.io.atomic import write_json
from kasatune.io.library_noise import quiet
from kasatune.io.progress import progress_listener
from kasatune.io.run_layout import PREDICTIONS
from kasatune.recipes.catalogue import find_recipe
from kasatune.recipes.schema import load_recipe
from kasatune.reports import formatting as words
from kasatune.reports import markdown
from kasatune.runs.directory import read_recipe
from kasatune.runs.metrics import read_metrics
from kasatune.training.train import train

SHOWN = 8
TEST = "test.json"


@dataclass(frozen=True)
class Subject:
    """What a page is about.

    Attributes:
        recipe: the built-in recipe of its run.
        head: the page's beginning.
        repetition: why no limit is set on it.
        conditions: further sentences under the table.
        command: makes the page.
        every: one in how many inputs of the test set is scored.
    """

    recipe: str
    head: str
    repetition: str
    conditions: tuple[str, ...]
    command: str
    every: int = 1


STORIES = Subject(
    "e2e/stories260k",
    """# E2E with a small Llama

stories260K, a Llama of 260,032 parameters with a vocabulary of 512 pieces, has read children's stories alone. KaSA
teaches it to tell the facts of a restaurant, the task of the E2E challenge. The same with
[GPT-2's architecture](e2e-gpt2.md).
""",
    "the limit of the LoRA paper's code, 4 tokens, is about a word here",
    (
        "A text ends with <s>, which the model has read between stories; its </s> was never trained, and adapters of"
        " the layers cannot teach a row of the frozen embedding.",
    ),
    "python -m benchmarks.e2e path/to/stories260K-hf path/to/e2e runs/e2e-stories260k --page docs/results/e2e.md",
)


def ending_with_its_own_mark(model: Path, copy: Path) -> Path:
    """The model with <s> as its end-of-text token.

    It has read <s> between stories, and never the </s> of its vocabulary: that row of its embedding, which is its head
    too, is untrained, and an adapter of the layers between cannot teach it.
    """
    shutil.copytree(model, copy, dirs_exist_ok=True)
    for name, key, value in (
        ("tokenizer_config.json", "eos_token", "<s>"),
        ("config.json", "eos_token_id", 1),
        ("generation_config.json", "eos_token_id", 1),
    ):
        settings = json.loads((copy / name).read_text(encoding="utf-8"))
        write_json(copy / name, settings | {key: value})
    return copy


def shown(
    subject: Subject, model: Path, data: Path, run: Path, overrides: Sequence[str], page_file: Path | None
) -> None:
    """Train what is not trained yet, score what is not scored yet, and write the page."""
    given = [f"model.name={model}", f"task.data={data}", f"output={run}"]
    recipe = load_recipe(find_recipe(subject.recipe), [*given, *overrides], check_inputs=True)
    train(recipe, run, resume=run.is_dir(), display=make_progress())
    write_pages(run)
    kept = run / TEST
    found = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else scored(run, subject.every)
    write_json(kept, found)
    if page_file:
        page_file.write_text(page(subject, run, found), encoding="utf-8")
        print(page_file)


def whole_test(run: Path) -> TaskData:
    task = read_recipe(run).task.model_copy(update={"max_eval": None})
    return load_task(task)


def thinned(data: TaskData, every: int) -> TaskData:
    """The task with every `every`th input of its test set, with all of their references."""
    rows = data.splits["test"]
    inputs = set(list(dict.fromkeys(rows.first))[::every])
    kept = rows.pick([place for place, prompt in enumerate(rows.first) if prompt in inputs])
    return replace(data, splits={**data.splits, "test": kept})


def scored(run: Path, every: int) -> dict[str, Any]:
    """The test set, or every `every`th input of it, as the base and as the run writes it."""
    data, display = thinned(whole_test(run), every), make_progress()
    with quiet(), progress_listener(display.progress):
        prepared = TaskModel.for_saved_run(read_recipe(run), None, run)
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
    return {**found, "every": every, "inputs": scores.inputs, "references": scores.labels, "rows": len(examples)}


def facts(prompt: str) -> str:
    return prompt.removeprefix("### Context : ").partition("\n")[0]


def page(subject: Subject, run: Path, found: dict[str, Any]) -> str:
    metrics = read_metrics(run)
    before, after = found["base"]["metrics"], found["run"]["metrics"]
    rows = [
        [words.metric_title(name), *(words.score(scores[name]) for scores in (before, after, metrics["metrics"]))]
        for name in after
    ]
    return "\n".join(
        [
            subject.head,
            markdown.table(["score", "base, test", "KaSA, test", "KaSA, validation"], rows, numbers=3),
            "",
            *(
                textwrap.fill(line, 118, initial_indent="- ", subsequent_indent="  ", break_long_words=False)
                for line in conditions(subject, run, metrics, found)
            ),
            "",
            f"Made by:\n\n```bash\n{subject.command}\n```\n",
            *examples(found),
        ]
    )


def repeating(texts: list[str]) -> float:
    """The share of texts in which some four words in a row come twice."""
    runs = [[tuple(words[at : at + 4]) for at in range(len(words) - 3)] for words in (text.split() for text in texts)]
    return sum(len(set(one)) < len(one) for one in runs) / len(texts)


def conditions(subject: Subject, run: Path, metrics: dict[str, Any], found: dict[str, Any]) -> list[str]:
    recipe = read_recipe(run)
    task, training, method = recipe.task, recipe.training, recipe.method
    validated = len(json.loads((run / PREDICTIONS).read_text(encoding="utf-8"))["inputs"])
    people = [references[0] for references in found["references"]]
    settings = {key: value for key, value in metrics["generation"].items() if key != "model_settings_not_used"}
    return [
        f"Scored are {_which(found)} of the test set with {found['rows']:,} references. The base is"
        " the same model with its adapter switched off, and writes with the same settings: "
        f"{', '.join(f'{name} {value}' for name, value in settings.items())}.",
        "Loss and perplexity are of the references' pieces, not of words: they compare with nothing outside this page.",
        f"The validation column is of the {validated} inputs in the first {task.max_eval} rows of that set, which also"
        " chose the epoch.",
        "Four words in a row come twice in"
        f" {repeating(found['base']['texts']):.0%} of the base's texts, {repeating(found['run']['texts']):.0%} of"
        f" KaSA's and {repeating(people):.0%} of people's: no limit was set on repetition, because"
        f" {subject.repetition}.",
        "METEOR here matches only words and stems and is reported under another name: published METEOR is higher, and"
        " not comparable with it.",
        "The texts are in LoRA's form, punctuation set apart by blanks.",
        f"Trained were {metrics['trainable_parameters']:,} parameters ({method.target_modules}, r = {method.r}, alpha ="
        f" {method.alpha:g}, beta = {method.beta:g}, gamma = {method.gamma:g}) on the first {task.max_train:,} of"
        f" 42,061 rows, {training.epochs:g} epochs, batch {training.batch_size}, learning rate"
        f" {training.learning_rate:g}, {training.schedule} schedule, seed {training.seed}.",
        *subject.conditions,
        "One run: no spread is known.",
        f"Training took {words.duration(metrics['seconds']['train'])}, writing the test set"
        f" {words.duration(found['seconds']['run'])}, on a machine whose processors others used too.",
        f"{', '.join(f'{name} {value}' for name, value in machine().items())}; {datetime.now(UTC):%Y-%m-%d}.",
    ]


def _which(found: dict[str, Any]) -> str:
    number, every = len(found["inputs"]), found.get("every", 1)
    return f"all {number} inputs" if every == 1 else f"{number} inputs, one in {every},"


def examples(found: dict[str, Any]) -> list[str]:
    inputs = found["inputs"]
    every = max(1, len(inputs) // SHOWN)
    lines = ["## Texts", "", f"Every {every}th of the inputs that were scored; none was chosen."]
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
    model = ending_with_its_own_mark(arguments.model, arguments.run.with_name(f"{arguments.run.name}-model"))
    shown(STORIES, model, arguments.data, arguments.run, arguments.overrides, arguments.page)


if __name__ == "__main__":
    main()
