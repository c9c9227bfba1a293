from __future__ import annotations

import importlib.util
from pathlib import Path

from kasatune.methods.table import METHODS

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_of_methods_is_that_of_the_table():
    spec = importlib.util.spec_from_file_location("methods_page", ROOT / "docs" / "methods_page.py")
    methods_page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(methods_page)
    written = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert methods_page.page() == written, "docs/methods.md is out of date: run `make tree`"
    assert all(f"\n## {name}\n" in written for name in METHODS)
