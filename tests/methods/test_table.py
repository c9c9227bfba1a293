from __future__ import annotations

import subprocess
import sys

import pytest

from kasatune import methods
from kasatune.errors import InputError
from kasatune.methods.shared.method import Method


def test_the_table_is_light():
    script = (
        "import sys, kasatune.methods; print(sorted({'torch', 'transformers', 'peft', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", list(methods.METHODS))
def test_every_row_leads_to_its_method(name):
    method = methods.load(name)
    assert isinstance(method, Method)
    assert method.info is methods.METHODS[name]
    assert method.info.name == name


def test_an_unknown_method_is_answered_with_those_that_exist():
    with pytest.raises(InputError, match=r"'loras' does not exist.*lora"):
        methods.load("loras")
