from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_layout_page_lists_the_files_of_the_package():
    spec = importlib.util.spec_from_file_location("write_layout_page", ROOT / "scripts" / "write_layout_page.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.page() == script.PAGE.read_text(encoding="utf-8"), "docs/layout.md is out of date: run `make tree`"
