from __future__ import annotations

import subprocess
import sys

import pytest

from kasatune import methods
from kasatune.errors import InputError
from kasatune.methods.shared.method import Method


def test_importing_the_table_imports_no_large_library():
    script = (
        "import sys, kasatune.methods; print(sorted({'torch', 'transformers', 'peft', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", list(methods.METHODS))
def test_every_row_names_its_method_module(name):
    method = methods.load(name)
    assert isinstance(method, Method)
    assert method.info is methods.METHODS[name]
    assert method.info.name == name


def test_an_unknown_method_lists_the_existing_ones():
    with pytest.raises(InputError, match=r"'loras' does not exist.*lora"):
        methods.load("loras")


@pytest.mark.parametrize("info", methods.METHODS.values(), ids=lambda info: info.name)
def test_the_words_of_a_row_agree_with_its_facts(info):
    assert info.needs_float_base == ("not quantized" in info.bases)
    assert info.kinds == ("classification", "regression", "generation") or info.unable
    assert set(info.searched) <= set(info.uses)
