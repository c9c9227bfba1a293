"""Commonsense reasoning: LLaMA2-7B and LLaMA3-8B on eight tasks, and the authors' logs of the evaluation."""

from __future__ import annotations

from kasatune.experiments.reproduce.published.schema import AVERAGE, Experiment, Figure, Log, PaperModel

TASKS = ("boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "arc-easy", "arc-challenge", "openbookqa")
_UNKNOWN = "beta and gamma of the published run are not known; the recipe has kasatune's defaults"
_COPIED = "a number of the MiLoRA paper, by its own recipe"
_GOAT = "the paper's table as reprinted in the GOAT paper"
_MILORA = "the paper's table, taken from the MiLoRA paper"
_RANKED = "nothing was published: the paper scores what the model writes"


def _model(
    name: str,
    title: str,
    cells: tuple[float | None, ...],
    average: float,
    source: str,
    logs: tuple[float | None, ...],
    lora: tuple[float | None, ...],
    lora_average: float,
) -> PaperModel:
    figures = []
    for task, cell, log, other in zip(TASKS, cells, logs, lora, strict=True):
        cell_source = source if cell is not None else "the cell was not found"
        author_log = None if log is None else Log(log)
        figures += [
            Figure(task, "accuracy", "kasa", cell, cell_source, log=author_log, caveats=(_UNKNOWN,)),
            Figure(task, "accuracy", "lora", other, _MILORA, caveats=(_COPIED,)),
            Figure(task, "acc", "kasa", None, _RANKED),
            Figure(task, "acc", "lora", None, _RANKED),
        ]
    figures += [
        Figure(AVERAGE, "accuracy", "kasa", average, f"{source}; reviews of the paper", caveats=(_UNKNOWN,)),
        Figure(AVERAGE, "accuracy", "lora", lora_average, _MILORA, caveats=(_COPIED,)),
    ]
    return PaperModel(name, title, {"commonsense": f"commonsense/{name}"}, tuple(figures))


COMMONSENSE = Experiment(
    name="commonsense",
    title="Commonsense reasoning, eight tasks",
    models=(
        _model(
            "llama2-7b",
            "LLaMA2-7B",
            (73.6, 84.4, 80.2, 91.5, 84.5, 84.7, 72.1, 81.2),
            81.5,
            _GOAT,
            (73.64, 84.39, 80.25, None, 84.53, 84.68, 72.10, 81.20),
            (69.8, 79.9, 79.5, 83.6, 82.6, 79.8, 64.7, 81.0),
            77.6,
        ),
        _model(
            "llama3-8b",
            "LLaMA3-8B",
            (None,) * 8,
            84.6,
            "the paper's table, of which only the average was found",
            (73.58, 88.14, 80.40, None, 85.48, 89.73, 79.44, 85.60),
            (70.8, 85.2, 79.9, 91.7, 84.3, 84.2, 71.2, 79.0),
            80.8,
        ),
    ),
    methods=("kasa",),
    scored={task: ("commonsense", task) for task in TASKS},
    quick={
        "model.dtype": "float32",
        "task.max_train": "2000",
        "task.max_eval": "100",
        "task.max_length": "448",
        "method.r": "8",
        "method.alpha": "16",
        "method.dropout": "0",
        "training.epochs": "2",
        "training.gradient_accumulation": "1",
        "training.learning_rate": "5.0e-3",
        "training.precision": "float32",
    },
    published="one run for each model; the answers are read from generated text, four beams, one example at a time",
    unknown=(
        "beta and gamma of these runs, and whether the penalty was on",
        "the code of these runs: an unpublished fork of LLM-Adapters with sigma",
        "the logs of HellaSwag; for LLaMA3-8B, the paper's cells",
    ),
)
