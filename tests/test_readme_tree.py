from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_file_tree_of_the_readme_is_that_of_the_package():
    spec = importlib.util.spec_from_file_location("readme_tree", ROOT / "docs" / "readme_tree.py")
    readme_tree = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme_tree)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_tree.with_tree(readme) == readme, "README.md's file tree is out of date: run `make tree`"
