"""The nine tasks of GLUE, from the hub or from a folder of the release.

Source: Wang et al., GLUE, ICLR 2019 (arXiv 1804.07461). The test sets have no labels and are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kasatune.data.readers.hub import HubData, read_hub
from kasatune.data.tasks.dataset import Rows, TaskData, TaskSettings, make_task_data
from kasatune.data.tasks.table import TaskInfo

HUB_NAME = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueTask:
    """Where a task of GLUE keeps its columns.

    Attributes:
        folder: its folder in the release.
        columns: of the text or texts, in the release's header.
        label: column of the label, in the release's header.
        label_names: as GLUE names them; None for STS-B.
        words: what the release's label column holds, by label number; None where it holds the numbers themselves.
        hub_columns: of the text or texts on the hub.
        validation: development files of the release, by split.
    """

    folder: str
    columns: tuple[str, ...]
    label: str
    label_names: tuple[str, ...] | None
    hub_columns: tuple[str, ...]
    words: tuple[str, ...] | None = None
    validation: tuple[tuple[str, str], ...] = (("validation", "dev.tsv"),)


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_THREE = ("entailment", "neutral", "contradiction")

GLUE: Mapping[str, GlueTask] = {
    "glue/cola": GlueTask("CoLA", ("sentence",), "label", ("unacceptable", "acceptable"), ("sentence",)),
    "glue/sst2": GlueTask("SST-2", ("sentence",), "label", ("negative", "positive"), ("sentence",)),
    "glue/mrpc": GlueTask("MRPC", ("#1 String", "#2 String"), "Quality", ("not_equivalent", "equivalent"), _PAIR),
    "glue/stsb": GlueTask("STS-B", _PAIR, "score", None, _PAIR),
    "glue/qqp": GlueTask(
        "QQP",
        ("question1", "question2"),
        "is_duplicate",
        ("not_duplicate", "duplicate"),
        ("question1", "question2"),
    ),
    "glue/mnli": GlueTask(
        "MNLI",
        _PAIR,
        "gold_label",
        _THREE,
        ("premise", "hypothesis"),
        words=_THREE,
        validation=(("validation", "dev_matched.tsv"), ("validation_mismatched", "dev_mismatched.tsv")),
    ),
    "glue/qnli": GlueTask(
        "QNLI", ("question", "sentence"), "label", _ENTAILMENT, ("question", "sentence"), words=_ENTAILMENT
    ),
    "glue/rte": GlueTask("RTE", _PAIR, "label", _ENTAILMENT, _PAIR, words=_ENTAILMENT),
    "glue/wnli": GlueTask("WNLI", _PAIR, "label", ("not_entailment", "entailment"), _PAIR),
}


def load_glue(info: TaskInfo, settings: TaskSettings) -> TaskData:
    """A task of GLUE: from the folder `settings.data`, or from the hub where that is None.

    Raises:
        DataError: the folder or a file in it is not as the release has it.
        WorkError: the hub cannot be reached, or has the data in another form.
    """
    if settings.data is None:
        found = read_hub(
            HUB_NAME,
            info.name.partition("/")[2],
            revision=settings.revision,
            instead="give a folder of the GLUE release as task.data",
        )
        splits, notes, source, commit = _hub_splits(info.name, found), found.notes, found.source, found.commit
    else:
        from kasatune.data.tasks.glue_files import read_release

        splits, notes = read_release(info.name, Path(settings.data), train=True)
        source, commit = settings.data, None
    return make_task_data(
        info,
        splits,
        label_names=GLUE[info.name].label_names,
        source=source,
        notes=notes,
        max_train=settings.max_train,
        max_eval=settings.max_eval,
        pins={"revision": commit},
    )


def _hub_splits(name: str, found: HubData) -> dict[str, Rows]:
    validation = [split for split in found.tables if split.startswith("validation")]
    wanted = {"train": "train"}
    wanted |= {("validation" if split == "validation_matched" else split): split for split in validation}
    return {split: _hub_rows(GLUE[name], found.tables[theirs]) for split, theirs in wanted.items()}


def _hub_rows(task: GlueTask, table: Any) -> Rows:
    texts = [list(table[column]) for column in task.hub_columns]
    return Rows(texts[0], texts[1] if len(texts) == 2 else None, list(table["label"]))
