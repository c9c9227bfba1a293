"""`kasatune.*`: every public name is there, is imported lazily, and is not hidden by a module of the same name."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types

import pytest

import kasatune

SECONDS = 0.2
FUNCTIONS = {
    *(
        "calibrate",
        "compare",
        "evaluate",
        "export_adapter",
        "load_adapter",
        "load_recipe",
        "predict",
        "protect",
        "regularization",
    ),
    *("shrink_adapter", "tail_svd", "train"),
}
CLASSES = {"KasaConfig", "KasatuneError", "TailSVD"}


def test_the_public_names_are_these():
    assert set(kasatune.__all__) == FUNCTIONS | CLASSES | {"__version__"}
    assert dir(kasatune) == sorted(kasatune.__all__)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_each_function_is_a_function_of_its_name_with_documentation(name):
    function = getattr(kasatune, name)
    assert isinstance(function, types.FunctionType)
    assert function.__name__ == name
    assert function.__doc__
    # Importing the module that holds it must not put the module in the place of the function.
    importlib.import_module(function.__module__)
    assert getattr(kasatune, name) is function


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_each_class_is_a_class_with_documentation(name):
    assert isinstance(getattr(kasatune, name), type)
    assert getattr(kasatune, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'kasatune' has no attribute 'fine_tune'"):
        kasatune.fine_tune  # noqa: B018


def test_importing_costs_little_and_imports_nothing_heavy():
    code = (
        "import sys, time; start = time.process_time(); import kasatune; spent = time.process_time() - start;"
        "print(spent, *sorted({'torch', 'peft', 'transformers', 'pydantic', 'numpy'} & set(sys.modules)))"
    )
    best = float("inf")
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds, *heavy = done.stdout.split()
        assert heavy == []
        best = min(best, float(seconds))
    assert best < SECONDS
