"""The tasks that kasatune knows, as plain data: importing this table imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

TaskKind = Literal["classification", "regression", "generation"]
EngineName = Literal["trainer", "sft"]


@dataclass(frozen=True)
class TaskInfo:
    """One task.

    Attributes:
        name: what a recipe writes as `task.name`.
        title: what it is, in a few words.
        kind: what the model gives: a label, a number or text.
        metrics: names of the scores, in the order in which tables show them.
        primary: the score that selects the best epoch; one of `metrics`, or "loss" where text is generated, which
            happens once, after training.
        paper_metric: the score that the KaSA paper reports for this task; None where the paper does not use it.
        source: where the rows come from.
        decoding: defaults of the recipe's section `generation`, where they differ from the section's own.
        engine: what trains a run on this task: "trainer" (transformers' Trainer) or "sft" (TRL's SFTTrainer).
    """

    name: str
    title: str
    kind: TaskKind
    metrics: tuple[str, ...]
    primary: str
    paper_metric: str | None
    source: str
    decoding: Mapping[str, Any] = field(default_factory=dict)
    engine: EngineName = "trainer"

    @property
    def headline(self) -> str:
        """The score that reports show first: the one that selects, or the paper's where that is the loss."""
        return self.paper_metric or self.metrics[0] if self.kind == "generation" else self.primary


_GLUE = "the hub (nyu-mll/glue), or a folder of the GLUE release as `data`"
_OWN = "your files, as `train` and `validation`: CSV, TSV, JSON, JSONL or Parquet"
_ACCURACY = ("accuracy",)
_ACCURACY_F1 = ("accuracy", "f1")
_TEXT_SCORES = ("bleu", "nist", "meteor_exact_stem", "rouge_l", "cider")
# The beam search of microsoft/LoRA, examples/NLG; its README decodes all three tasks with it.
_BEAM_SEARCH = {"max_new_tokens": 64, "num_beams": 10, "length_penalty": 0.8, "no_repeat_ngram_size": 4}

# The search of LLM-Adapters' commonsense_evaluate.py; its temperature and top-p are without effect there.
_FOUR_BEAMS = {"max_new_tokens": 32, "num_beams": 4}
_ANSWERS = ("accuracy", "unparsed", "acc", "acc_norm")
_LLM_ADAPTERS = "LLM-Adapters' repository at a fixed commit, or a folder with its files as `data`"
_COMMONSENSE = tuple(
    TaskInfo(name, title, "generation", _ANSWERS, "loss", "accuracy", _LLM_ADAPTERS, _FOUR_BEAMS)
    for name, title in {
        "commonsense": "eight tasks of commonsense reasoning as one",
        "commonsense/boolq": "yes or no to a question",
        "commonsense/piqa": "the better of two ways to a goal",
        "commonsense/social_i_qa": "what people feel and do, three answers",
        "commonsense/hellaswag": "how a sentence goes on, four endings",
        "commonsense/winogrande": "whom a blank stands for, two names",
        "commonsense/arc-easy": "science questions, the easy part",
        "commonsense/arc-challenge": "science questions, the hard part",
        "commonsense/openbookqa": "elementary science, four answers",
    }.items()
)

_ROWS = (
    TaskInfo(
        "demo",
        "which library a documentation string belongs to",
        "classification",
        _ACCURACY_F1,
        "accuracy",
        None,
        "documentation strings of installed packages; nothing is downloaded",
    ),
    TaskInfo(
        "glue/cola",
        "grammatical acceptability",
        "classification",
        ("matthews_correlation", "accuracy"),
        "matthews_correlation",
        "matthews_correlation",
        _GLUE,
    ),
    TaskInfo("glue/sst2", "sentiment of film reviews", "classification", _ACCURACY, "accuracy", "accuracy", _GLUE),
    TaskInfo(
        "glue/mrpc", "paraphrase of news sentences", "classification", _ACCURACY_F1, "accuracy", "accuracy", _GLUE
    ),
    TaskInfo(
        "glue/stsb",
        "similarity of two sentences, 0 to 5",
        "regression",
        ("pearson", "spearman"),
        "pearson",
        "pearson",
        _GLUE,
    ),
    TaskInfo("glue/qqp", "duplicate questions", "classification", _ACCURACY_F1, "accuracy", None, _GLUE),
    TaskInfo("glue/mnli", "entailment, three classes", "classification", _ACCURACY, "accuracy", None, _GLUE),
    TaskInfo(
        "glue/qnli", "whether a sentence answers a question", "classification", _ACCURACY, "accuracy", "accuracy", _GLUE
    ),
    TaskInfo("glue/rte", "entailment, two classes", "classification", _ACCURACY, "accuracy", "accuracy", _GLUE),
    TaskInfo("glue/wnli", "entailment by coreference", "classification", _ACCURACY, "accuracy", None, _GLUE),
    TaskInfo(
        "classification",
        "your own labelled text",
        "classification",
        ("accuracy", "f1", "matthews_correlation"),
        "accuracy",
        None,
        _OWN,
    ),
    TaskInfo("regression", "your own text with a number", "regression", ("pearson", "spearman"), "pearson", None, _OWN),
    TaskInfo(
        "e2e",
        "facts about a restaurant, told in a sentence",
        "generation",
        _TEXT_SCORES,
        "loss",
        "bleu",
        "the hub (tuetschek/e2e_nlg), or a folder with LoRA's or the challenge's files as `data`",
        _BEAM_SEARCH,
    ),
    TaskInfo(
        "webnlg",
        "facts of a knowledge base, told in sentences",
        "generation",
        _TEXT_SCORES,
        "loss",
        None,
        "the hub (GEM/web_nlg), or a folder with the challenge's files as `data`",
        _BEAM_SEARCH,
    ),
    TaskInfo(
        "dart",
        "rows of tables, told in sentences",
        "generation",
        _TEXT_SCORES,
        "loss",
        None,
        "the hub (GEM/dart), or a folder with the release's files as `data`",
        _BEAM_SEARCH,
    ),
    *_COMMONSENSE,
    TaskInfo("text-generation", "your own prompts and completions", "generation", _TEXT_SCORES, "loss", None, _OWN),
    TaskInfo(
        "instruction",
        "instructions and answers: Alpaca rows or chat messages",
        "generation",
        ("loss", "perplexity"),
        "loss",
        None,
        f"{_OWN}; or hub:NAME:SPLIT",
        {"max_new_tokens": 256},
        engine="sft",
    ),
)

TASKS: Mapping[str, TaskInfo] = MappingProxyType({info.name: info for info in _ROWS})
