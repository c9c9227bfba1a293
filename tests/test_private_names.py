"""Every private name of another library that src uses has a row in test_upstream_contract.py."""

from __future__ import annotations

import ast
from functools import cache

from tests.test_upstream_contract import ROWS, SOURCES


def test_every_private_name_of_others_has_a_row():
    known = {(row.name, file) for row in ROWS for file in row.used_in}
    assert {(name, file) for name, file in private_names() if (name, file) not in known} == set()


def test_every_private_method_that_is_overridden_has_a_row():
    from kasatune.kasa.layer import KasaLayer
    from kasatune.kasa.model import KasaModel
    from kasatune.methods.bottleneck.layer import BottleneckLayer
    from kasatune.methods.bottleneck.model import BottleneckModel
    from kasatune.training.engines.trainer import MeanLossTrainer

    overridden = set()
    for kind in (KasaLayer, KasaModel, BottleneckLayer, BottleneckModel, MeanLossTrainer):
        foreign = {name for base in kind.__mro__ if not _is_ours(base) for name in vars(base)}
        own = {name for base in kind.__mro__ if _is_ours(base) for name in vars(base)}
        overridden |= {name for name in own & foreign if name.startswith("_") and not name.startswith("__")}
    assert overridden - {"_abc_impl"} <= {row.name for row in ROWS}


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("kasatune")


STANDARD = {"_asdict", "_fields", "_replace", "_exit", "_getframe"}  # of the standard library, and documented


@cache
def private_names() -> frozenset[tuple[str, str]]:
    """(name, file) of attributes with a leading underscore that no file of src defines, and of private imports."""
    modules = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES.rglob("*.py")}
    nodes = [(path.relative_to(SOURCES).as_posix(), node) for path, tree in modules.items() for node in ast.walk(tree)]
    own = set().union(*(_defined(node) for _, node in nodes))
    found = set()
    for file, node in nodes:
        names = []
        if isinstance(node, ast.Attribute):
            names = [node.attr] if node.attr not in own else []
        elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("kasatune"):
            names = [alias.name for alias in node.names]
            names += [node.module] if any(_is_private(part) for part in node.module.split(".")) else []
        private = {name for name in names if any(_is_private(part) for part in name.split("."))}
        found |= {(name, file) for name in private - STANDARD}
    return frozenset(found)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith(("__", "_kasa_"))


def _defined(node: ast.AST) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return {node.id}
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return {node.attr} if isinstance(node.value, ast.Name) and node.value.id == "self" else set()
    return set()
