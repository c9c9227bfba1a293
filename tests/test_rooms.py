"""The layout of src/kasatune: sizes of the rooms, layers, no circular imports, and what a start imports."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "kasatune"
LARGEST_SHARE = 0.15


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def test_no_room_holds_more_than_its_share_of_the_lines():
    lines = Counter()
    for path in PACKAGE.rglob("*.py"):
        lines[path.relative_to(PACKAGE).parts[0]] += len(path.read_text(encoding="utf-8").splitlines())
    room, most = lines.most_common(1)[0]
    assert most <= LARGEST_SHARE * lines.total(), f"{room}: {most} of {lines.total()} lines"


def test_the_layers_of_the_import_contract_name_every_room():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = [c for c in project["tool"]["importlinter"]["contracts"] if c["type"] == "layers"]
    named = {room.strip() for layer in contract["layers"] for room in layer.split("|")}
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert named == rooms - {"__init__"}


def test_every_room_that_pyright_leaves_out_is_checked_strictly():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = (ROOT / "pyright-strict.json").read_text(encoding="utf-8").splitlines()
    strict = json.loads("\n".join(line for line in lines if not line.lstrip().startswith("//")))
    assert strict["include"] == project["tool"]["pyright"]["ignore"]
    assert all((ROOT / room).is_dir() for room in strict["include"])


def test_imports_have_no_circle():
    """Also none that is broken by an import inside a function; imports for type checkers alone do not count."""
    graph = imports()
    done: set[str] = set()
    for start in graph:
        circle = _circle(graph, start, done, [])
        assert not circle, " -> ".join(circle)


def test_no_file_imports_pandas():
    for name, path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not [one for one in imported if one.partition(".")[0] == "pandas"], name


@pytest.mark.parametrize(
    ("code", "most"),
    [
        ("import kasatune", 0.2),
        ("from kasatune.__main__ import run; import sys; sys.argv[1:] = ['--help']; run()", 0.5),
    ],
    ids=["import kasatune", "kasatune --help"],
)
def test_a_start_takes_little_processor_time(code, most):
    """CPU seconds beyond those of a bare interpreter; the best of three, since other work disturbs a measurement."""
    bare = min(_cpu_seconds("pass") for _ in range(3))
    taken = []
    for _ in range(3):
        taken.append(_cpu_seconds(code) - bare)
        if taken[-1] <= most:
            return
    pytest.fail(f"{min(taken):.2f} s of processor time, at most {most} s")


def _cpu_seconds(code: str) -> float:
    wrapped = (
        "import contextlib, io, sys, time\n"
        f"with contextlib.redirect_stdout(io.StringIO()):\n    exec({code!r})\n"
        "print(time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", wrapped], capture_output=True, text=True, check=True)
    return float(done.stdout)


@cache
def imports() -> dict[str, list[str]]:
    """The modules of kasatune that each one imports, anywhere in the file but under `if TYPE_CHECKING`."""
    paths = dict(modules())
    graph: dict[str, list[str]] = {}
    for name, path in paths.items():
        targets: set[str] = set()
        for node in _run_time_nodes(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                # `from package import module` imports both; the package itself is a target only if it is not a parent.
                below = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= (below & paths.keys()) or {node.module}
        graph[name] = sorted(targets & paths.keys() - {name})
    return graph


def _run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from _run_time_nodes(other)
            continue
        yield child
        yield from _run_time_nodes(child)


def _circle(graph: dict[str, list[str]], name: str, done: set[str], path: list[str]) -> list[str]:
    if name in path:
        return [*path[path.index(name) :], name]
    if name in done:
        return []
    for target in graph[name]:
        circle = _circle(graph, target, done, [*path, name])
        if circle:
            return circle
    done.add(name)
    return []
