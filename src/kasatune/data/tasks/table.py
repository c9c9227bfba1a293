"""The table of tasks: one row each, by name, as plain data. Importing it imports nothing heavy.

A task is one module with the functions `load` and `load_evaluation` (see `task_info.TaskModule`) and one row. Another
package adds its tasks by an entry point that names the row:

    [project.entry-points."kasatune.tasks"]
    my-task = "my_package.row:INFO"          # INFO = TaskInfo(name="my-task", module="my_package.my_task", ...)

or at run time by `register_task(INFO)`, which worker processes of a comparison do not see. The task can then be named
in recipes, is listed by `kasatune list tasks`, and can be trained, scored and compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kasatune.data.tasks.commonsense_prompts import EVALUATION_PROMPT
from kasatune.data.tasks.task_info import TaskInfo
from kasatune.errors import InputError
from kasatune.io.entry_points import load_rows

__all__ = ["ENTRY_POINTS", "TASKS", "TaskInfo", "register_installed_tasks", "register_task"]

ENTRY_POINTS = "kasatune.tasks"

_ACCURACY = ("accuracy",)
_ACCURACY_F1 = ("accuracy", "f1")
_CORRELATIONS = ("pearson", "spearman")
_ENTAILMENT = ("entailment", "not_entailment")

_DEMO = TaskInfo(
    "demo",
    "which library a documentation string belongs to",
    "classification",
    _ACCURACY_F1,
    "accuracy",
    None,
    "documentation strings of installed packages; nothing is downloaded",
    "kasatune.data.tasks.demo",
    keys=(),
)


def _glue(
    name: str,
    title: str,
    labels: tuple[str, ...] | None,
    metrics: tuple[str, ...] = _ACCURACY,
    *,
    in_paper: bool = False,
) -> TaskInfo:
    return TaskInfo(
        f"glue/{name}",
        title,
        "regression" if labels is None else "classification",
        metrics,
        metrics[0],
        metrics[0] if in_paper else None,
        "the hub (nyu-mll/glue), or a folder of the GLUE release as `data`",
        "kasatune.data.tasks.glue",
        label_names=labels,
    )


_GLUE = (
    _glue(
        "cola",
        "grammatical acceptability",
        ("unacceptable", "acceptable"),
        ("matthews_correlation", "accuracy"),
        in_paper=True,
    ),
    _glue("sst2", "sentiment of film reviews", ("negative", "positive"), in_paper=True),
    _glue("mrpc", "paraphrase of news sentences", ("not_equivalent", "equivalent"), _ACCURACY_F1, in_paper=True),
    _glue("stsb", "similarity of two sentences, 0 to 5", None, _CORRELATIONS, in_paper=True),
    _glue("qqp", "duplicate questions", ("not_duplicate", "duplicate"), _ACCURACY_F1),
    _glue("mnli", "entailment, three classes", ("entailment", "neutral", "contradiction")),
    _glue("qnli", "whether a sentence answers a question", _ENTAILMENT, in_paper=True),
    _glue("rte", "entailment, two classes", _ENTAILMENT, in_paper=True),
    _glue("wnli", "entailment by coreference", ("not_entailment", "entailment")),
)

_OWN_FILES = "your files, as `train` and `validation`: CSV, TSV, JSON, JSONL or Parquet"
_LABELLED = "kasatune.data.tasks.labelled_text"
_CLASSIFICATION = TaskInfo(
    "classification",
    "your own labelled text",
    "classification",
    ("accuracy", "f1", "matthews_correlation"),
    "accuracy",
    None,
    _OWN_FILES,
    _LABELLED,
    keys=("train", "validation", "text", "label"),
)
_REGRESSION = TaskInfo(
    "regression",
    "your own text with a number",
    "regression",
    _CORRELATIONS,
    "pearson",
    None,
    _OWN_FILES,
    _LABELLED,
    keys=("train", "validation", "text", "label"),
)

_TEXT_SCORES = ("bleu", "nist", "rouge_l", "cider")
_BY_REFERENCES = "kasatune.evaluation.text_scores:score_by_references"
_CONTEXT_PROMPT = "### Context : {}\n### Completion : "
"""The KaSA authors' prompt for E2E, verbatim (README of juyongjiang/KaSA), with its trailing space."""

# The beam search of microsoft/LoRA, examples/NLG; its README decodes all three tasks with it.
_BEAM_SEARCH = {"max_new_tokens": 64, "num_beams": 10, "length_penalty": 0.8, "no_repeat_ngram_size": 4}


def _data_to_text(name: str, title: str, source: str, paper_metric: str | None = None) -> TaskInfo:
    return TaskInfo(
        name,
        title,
        "generation",
        _TEXT_SCORES,
        "loss",
        paper_metric,
        source,
        "kasatune.data.tasks.data_to_text",
        rows="completion",
        prompt=_CONTEXT_PROMPT,
        scorer=_BY_REFERENCES,
        decoding=_BEAM_SEARCH,
    )


_DATA_TO_TEXT = (
    _data_to_text(
        "e2e",
        "facts about a restaurant, stated in a sentence",
        "the hub (tuetschek/e2e_nlg), or a folder with LoRA's or the challenge's files as `data`",
        "bleu",
    ),
    _data_to_text(
        "webnlg",
        "facts of a knowledge base, stated in sentences",
        "the hub (GEM/web_nlg), or a folder with the challenge's files as `data`",
    ),
    _data_to_text(
        "dart",
        "rows of tables, stated in sentences",
        "the hub (GEM/dart), or a folder with the release's files as `data`",
    ),
)

# The search of LLM-Adapters' commonsense_evaluate.py; its temperature and top-p have no effect there.
_FOUR_BEAMS = {"max_new_tokens": 32, "num_beams": 4}
_COMMONSENSE = tuple(
    TaskInfo(
        name,
        title,
        "generation",
        ("accuracy", "unparsed", "acc", "acc_norm"),
        "loss",
        "accuracy",
        "LLM-Adapters' repository at a fixed commit, or a folder with its files as `data`",
        "kasatune.data.tasks.commonsense",
        rows="completion",
        prompt=EVALUATION_PROMPT,
        scorer="kasatune.evaluation.multiple_choice:score_choices",
        decoding=_FOUR_BEAMS,
    )
    for name, title in {
        "commonsense": "eight tasks of commonsense reasoning as one",
        "commonsense/boolq": "yes or no to a question",
        "commonsense/piqa": "the better of two ways to a goal",
        "commonsense/social_i_qa": "what people feel and do, three answers",
        "commonsense/hellaswag": "how a sentence continues, four endings",
        "commonsense/winogrande": "which of two names fills a blank",
        "commonsense/arc-easy": "science questions, the easy part",
        "commonsense/arc-challenge": "science questions, the hard part",
        "commonsense/openbookqa": "elementary science, four answers",
    }.items()
)

_TEXT_GENERATION = TaskInfo(
    "text-generation",
    "your own prompts and completions",
    "generation",
    _TEXT_SCORES,
    "loss",
    None,
    _OWN_FILES,
    "kasatune.data.tasks.text_generation",
    keys=("train", "validation", "prompt", "completion"),
    rows="completion",
    scorer=_BY_REFERENCES,
)
_INSTRUCTION = TaskInfo(
    "instruction",
    "instructions and answers: Alpaca rows or chat messages",
    "generation",
    ("loss", "perplexity"),
    "loss",
    None,
    f"{_OWN_FILES}; or hub:NAME:SPLIT",
    "kasatune.data.tasks.instruction",
    keys=("train", "validation"),
    hub_names=True,
    rows="chat",
    decoding={"max_new_tokens": 256},
    engine="sft",
)
_FUNCTION_SUMMARY = TaskInfo(
    "function-summary",
    "one sentence about a Python function, from its signature",
    "generation",
    ("rouge_l", "bleu"),
    "loss",
    None,
    "functions of installed packages; nothing is downloaded",
    "kasatune.data.tasks.function_summary",
    keys=(),
    rows="chat",
    scorer=_BY_REFERENCES,
    decoding={"max_new_tokens": 40},
)
_RAG_QA = TaskInfo(
    "rag-qa",
    "short answers to questions about your documents, with retrieved passages",
    "generation",
    ("exact_match", "f1", "retrieval_recall"),
    "loss",
    None,
    "your questions, as `train` and `validation`, and your documents, as `corpus`",
    "kasatune.data.tasks.rag_qa",
    keys=("train", "validation", "corpus"),
    rows="chat",
    prompter="kasatune.data.tasks.rag_qa:open_prompter",
    scorer="kasatune.evaluation.answer_scores:score_short_answers",
    decoding={"max_new_tokens": 24},
)
_PREFERENCE = TaskInfo(
    "preference",
    "your own pairs of a chosen and a rejected answer (DPO)",
    "generation",
    ("accuracy", "margin", "loss"),
    "loss",
    None,
    f"{_OWN_FILES}; or hub:NAME:SPLIT",
    "kasatune.data.tasks.preference",
    keys=("train", "validation"),
    hub_names=True,
    rows="pairs",
    decoding={"max_new_tokens": 256},
    engine="preference",
)
_REWARD = TaskInfo(
    "reward",
    "a reward for an answer, learned from your own pairs of a chosen and a rejected one",
    "regression",
    ("accuracy", "margin", "loss"),
    "accuracy",
    None,
    f"{_OWN_FILES}; or hub:NAME:SPLIT",
    "kasatune.data.tasks.preference",
    keys=("train", "validation"),
    hub_names=True,
    rows="pairs",
    engine="reward",
)

_MIXTURE = TaskInfo(
    "mixture",
    "several tasks that write text, drawn by weight",
    "generation",
    ("loss", "perplexity"),
    "loss",
    None,
    "those of its parts, listed as `parts`",
    "kasatune.data.tasks.mixture",
    keys=("parts",),
    rows="mixture",
)

_ROWS = (
    _DEMO,
    *_GLUE,
    _CLASSIFICATION,
    _REGRESSION,
    *_DATA_TO_TEXT,
    *_COMMONSENSE,
    _TEXT_GENERATION,
    _INSTRUCTION,
    _FUNCTION_SUMMARY,
    _RAG_QA,
    _MIXTURE,
    _PREFERENCE,
    _REWARD,
)

_tasks: dict[str, TaskInfo] = {row.name: row for row in _ROWS}
TASKS: Mapping[str, TaskInfo] = MappingProxyType(_tasks)
"""The tasks by name; `register_task` adds one."""


def register_task(info: TaskInfo) -> None:
    """Add a task to the table; adding an equal row again changes nothing.

    Raises:
        InputError: another task has this name.
    """
    other = TASKS.get(info.name)
    if other is not None and other != info:
        raise InputError(f"task {info.name!r} of {info.module}: the name belongs to {other.module}; rename the task")
    _tasks[info.name] = info


def register_installed_tasks() -> None:
    """Add the tasks that installed packages declare as entry points of the group `kasatune.tasks`.

    Raises:
        InputError: an entry point cannot be imported or is not a `TaskInfo`, or a name is taken.
    """
    for info in load_rows(ENTRY_POINTS, TaskInfo):
        register_task(info)


register_installed_tasks()
