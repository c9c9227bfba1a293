"""The table of tasks is consistent, and importing it is cheap."""

import subprocess
import sys

import pytest

from kasatune.data.tasks.table import TASKS


def test_names_and_scores_are_consistent():
    for name, info in TASKS.items():
        assert info.name == name
        assert info.primary in info.metrics or (info.primary, info.kind) == ("loss", "generation")
        assert info.headline in info.metrics
        assert info.paper_metric is None or info.paper_metric in info.metrics
    assert [name for name in TASKS if name.startswith("glue/")] == [
        f"glue/{name}" for name in ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
    ]


def test_scores_of_the_paper():
    expected = {
        "glue/sst2": "accuracy",
        "glue/mrpc": "accuracy",
        "glue/cola": "matthews_correlation",
        "glue/qnli": "accuracy",
        "glue/rte": "accuracy",
        "glue/stsb": "pearson",
        "e2e": "bleu",
    }
    found = {name: info.paper_metric for name, info in TASKS.items() if info.paper_metric}
    commonsense = {name for name in TASKS if name.split("/")[0] == "commonsense"}
    assert found == expected | dict.fromkeys(commonsense, "accuracy")
    assert len(commonsense) == 9


def test_importing_the_package_imports_nothing_heavy():
    heavy = ("torch", "transformers", "peft", "pandas", "sklearn", "datasets", "pyarrow", "numpy")
    code = f"import sys, kasatune.data.tasks; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_table_is_read_only():
    with pytest.raises(TypeError):
        TASKS["other"] = None
