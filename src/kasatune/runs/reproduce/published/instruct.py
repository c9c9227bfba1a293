"""Instruction following: four base models on four synthetic data sets and MT-Bench, graded by GPT models."""

from __future__ import annotations

from collections.abc import Mapping

from kasatune.runs.reproduce.figures import Experiment, Figure, PaperModel

_SETS = ("classification", "summarization", "coding", "closed_qa")
_FOUND = "the table of synthetic tasks, as quoted by reviews of the paper"
_LOST = "the cell was not found"


def _model(name: str, title: str, full: Mapping[str, float], kasa: Mapping[str, float]) -> PaperModel:
    figures = [
        Figure(one, "judge", method, cells.get(one), _FOUND if one in cells else _LOST, decimals=2)
        for one in _SETS
        for method, cells in (("kasa", kasa), ("full", full))
    ]
    figures.append(Figure("mt-bench", "judge", "kasa", None, "the scores of MT-Bench were not found", decimals=2))
    return PaperModel(name, title, {}, tuple(figures))


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
    methods=("kasa", "full"),
    quick={},
    published="answers graded from 0 to 10 by GPT-4o (synthetic tasks) and GPT-4 (MT-Bench)",
    unknown=(
        "every training setting of these runs",
        "the scores of LoRA, PiSSA and MiLoRA, all scores of MT-Bench, and the test behind the p-values",
        "the public data sets (llama-duo/synth_*_dataset_dedup) are not of the 128K rows that the paper names",
    ),
    not_run=(
        "grading needs the judges of the paper, and no setting of the training was published: there is nothing that a "
        "run could repeat"
    ),
)
