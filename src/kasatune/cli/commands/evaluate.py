from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kasatune.cli import judge_options as judging
from kasatune.cli.arguments import Json, MixturePart, MovedBase, RunDirectory
from kasatune.cli.console import print_json, results_only
from kasatune.errors import InputError


def command(
    run_dir: RunDirectory,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="The split to score; default: that of metrics.json.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="Where the data is now; default: the path in the recipe.")
    ] = None,
    part: MixturePart = None,
    base: MovedBase = None,
    scores: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Further scores of generated text, such as meteor_exact_stem (needs kasatune[meteor]).",
            show_default=False,
        ),
    ] = None,
    harness: Annotated[
        str | None,
        typer.Option(metavar="TASK,...", help="Score the model on these lm-eval tasks instead.", show_default=False),
    ] = None,
    harness_path: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A directory with your own task files for --harness.", show_default=False),
    ] = None,
    harness_limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Maximum rows per task of --harness.", show_default=False)
    ] = None,
    judge: judging.Judge = None,
    judge_url: judging.JudgeUrl = None,
    questions: judging.Questions = None,
    judge_prompts: judging.JudgePrompts = None,
    against: judging.Against = None,
    judge_rate: judging.JudgeRate = None,
    judge_workers: judging.JudgeWorkers = 1,
    judge_prices: judging.JudgePrices = None,
    json: Json = False,
) -> None:
    """Score a run again from its saved files, or grade its answers with a judge model.

    Example: kasatune evaluate runs/rte-kasa --split validation

    With --harness, EleutherAI's lm-evaluation-harness scores the run's language model on its tasks, through the
    LoRA adapter that the run wrote; this needs `kasatune[harness]`.

    With --judge, a run of the task `instruction` generates answers and the judge grades them: the validation rows from
    0 to 10, or the questions of a file by MT-Bench's protocol. Replies are cached; no question is asked twice.
    """
    from kasatune.cli.run_summary import show_scores
    from kasatune.runs.directory import read_recipe
    from kasatune.runs.metrics import read_metrics

    read_recipe(run_dir)
    read_metrics(run_dir)
    if harness is None and (harness_path or harness_limit):
        raise InputError("--harness-path and --harness-limit need --harness TASK,...: name the tasks")
    if harness is not None and (split or data or scores):
        raise InputError("--split, --data and --scores are for the run's own task; omit them with --harness")
    if judge is not None:
        judging.judge(
            run_dir,
            judge,
            url=judge_url,
            questions=questions,
            prompts=judge_prompts,
            against=against,
            rate=judge_rate,
            workers=judge_workers,
            prices=judge_prices,
            split=split,
            base=base,
            json=json,
        )
        return
    judging.refuse_without_judge(
        judge_url=judge_url,
        questions=questions,
        judge_prompts=judge_prompts,
        against=against,
        judge_rate=judge_rate,
        judge_prices=judge_prices,
    )
    with results_only():
        if harness is not None:
            from kasatune.evaluation.lm_eval import harness as run_harness

            names = [name.strip() for name in harness.split(",") if name.strip()]
            metrics = run_harness(run_dir, names, path=harness_path, limit=harness_limit, base=base)
        else:
            metrics = _evaluate(run_dir, split, data, scores, base, part)
    if json:
        print_json(metrics)
    else:
        show_scores(metrics)


def _evaluate(
    run_dir: Path, split: str | None, data: str | None, scores: str | None, base: str | None, part: str | None
) -> dict[str, Any]:
    from kasatune.cli.fast_import import large_libraries
    from kasatune.cli.progress_bar import make_progress

    with large_libraries():
        from kasatune.evaluation.evaluate import evaluate
        from kasatune.io.progress import progress_listener

    display = make_progress()
    with progress_listener(display.progress):
        extra = [name.strip() for name in (scores or "").split(",") if name.strip()]
        metrics = evaluate(run_dir, split=split, data=data, extra_scores=extra, base=base, part=part)
    display.finish()
    return metrics
