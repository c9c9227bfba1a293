"""Instruction following: four base models on four synthetic data sets and MT-Bench, graded by GPT models."""

from __future__ import annotations

from collections.abc import Mapping

from kasatune.experiments.reproduce.published.schema import Experiment, Figure, Judged, PaperModel

MT_BENCH = "mt-bench"
# LlamaDuo's data set for each task; the MT-Bench runs train on Alpaca, which the recipes name.
_SETS = {"classification": "classification", "summarization": "summarize", "coding": "coding", "closed_qa": "closed_qa"}
_FOUND = "the table of synthetic tasks, as quoted by reviews of the paper"
_LOST = "the cell was not found"
_LOSS = "nothing was published: the loss on the validation rows"
_SETTINGS = "no setting of the published runs is known; the recipe's are kasatune's choice"
_GRADED = "the rows that were graded and the judge's prompt are not known"
_FULL = "the recipe is KaSA's with the method replaced; its learning rate is far above what full fine-tuning takes"


def _model(name: str, title: str, full: Mapping[str, float], kasa: Mapping[str, float]) -> PaperModel:
    figures = [
        Figure(
            task,
            "judge",
            method,
            cells.get(task),
            _FOUND if task in cells else _LOST,
            decimals=2,
            caveats=(_SETTINGS, _GRADED) if method == "kasa" else (_SETTINGS, _GRADED, _FULL),
        )
        for task in _SETS
        for method, cells in (("kasa", kasa), ("full", full))
    ]
    figures.append(Figure(MT_BENCH, "mt_bench", "kasa", None, "the scores of MT-Bench were not found", decimals=2))
    figures += [Figure(task, "loss", "kasa", None, _LOSS) for task in (*_SETS, MT_BENCH)]
    return PaperModel(name, title, dict.fromkeys((*_SETS, MT_BENCH), f"instruct/{name}"), tuple(figures))


INSTRUCT = Experiment(
    name="instruct",
    title="Instruction following, scores of 0 to 10",
    models=(
        _model("llama3-8b", "LLaMA3-8B", {"closed_qa": 8.90}, {"closed_qa": 6.81}),
        _model(
            "mistral-7b",
            "Mistral-7B",
            {"classification": 6.73, "summarization": 7.18, "coding": 7.53, "closed_qa": 8.75},
            {"classification": 5.72, "summarization": 6.82, "coding": 6.74, "closed_qa": 7.75},
        ),
        _model("gemma-7b", "Gemma-7B", {"closed_qa": 8.88}, {"closed_qa": 8.69}),
        _model(
            "llama2-13b",
            "LLaMA2-13B",
            {"summarization": 7.93, "closed_qa": 8.97},
            {"summarization": 7.92, "closed_qa": 7.12},
        ),
    ),
    methods=("kasa",),
    shown=("full",),
    settings="recipe",
    of_task={
        task: {"task.train": f"hub:llama-duo/synth_{name}_dataset_dedup:train_sft_gpt4o"}
        for task, name in _SETS.items()
    },
    files={**{task: task for task in _SETS}, MT_BENCH: "alpaca"},
    judged={
        **{task: Judged("judge", "score", "gpt-4o") for task in _SETS},
        MT_BENCH: Judged("mt_bench", MT_BENCH, "gpt-4"),
    },
    quick={
        "model.dtype": "float32",
        "task.validation": "0.1",
        "task.max_train": "300",
        "task.max_eval": "20",
        "task.max_length": "448",
        "method.r": "8",
        "method.alpha": "16",
        "method.dropout": "0",
        "training.batch_size": "4",
        "training.gradient_accumulation": "1",
        "training.eval_batch_size": "16",
        "training.learning_rate": "5.0e-3",
        "training.precision": "float32",
        "training.gradient_checkpointing": "false",
        "training.packing": "true",
        "generation.max_new_tokens": "32",
    },
    published="answers graded from 0 to 10 by GPT-4o (synthetic tasks) and from 1 to 10 by GPT-4 (MT-Bench)",
    unknown=(
        "every training setting of these runs",
        "the scores of LoRA, PiSSA and MiLoRA, all scores of MT-Bench, and the test behind the p-values",
        "the public data sets (llama-duo/synth_*_dataset_dedup) are not of the 128K rows that the paper names",
        "which rows were graded; here one in a hundred of the training rows is held out",
    ),
)
