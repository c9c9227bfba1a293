"""Write docs/methods.md: every method of the table, with the equation and the choices from its class's docstring.

Run by `make tree`; tests/test_methods_page.py compares the page with what this script writes.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from kasatune.methods.table import METHODS, MethodInfo, Option

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "methods.md"

_HEAD = """# Methods

The methods that `method: {name: ...}` of a recipe can name. Every method trains through the same code path, with the
same data order, head, precision and evaluation; KaSA has no privileged path. All methods train a newly initialized
head, which is counted separately.

The equations come from the modules' docstrings: `W` is a frozen weight (out, in), `x` its input, `drop` the dropout of
`method.dropout`, `s` the scaling. Numbers of trained parameters that contain `in` and `out` are summed over the adapted
layers; `d` is the model's width, `f` the width of its feed-forward part, `L` the number of blocks. What a source leaves
open and what was chosen instead is listed with each method and collected in [Deviations](deviations.md). A method
marked "reconstructed" was rebuilt from a source that leaves out something essential: its numbers are not its authors'.

To choose one: start with `akasa` for a language model. On SmolLM2-135M-Instruct and 320 rows of E2E it learnt the task
as well as LoRA did, and its loss on unrelated text was 0.132 nats smaller ([measured](results/forgetting-smollm2.md)).
Among [eleven methods on an encoder](results/compare-minilm/README.md) none was shown to be better than LoRA: compare a
few on your own rows with [`kasatune compare`](compare.md).

Unless stated otherwise, training starts from a model that computes what the base computes, switching the method off
restores the base's outputs bit for bit, and the result can be merged into the base's weights. `tests/methods` and
`tests/contract` check this. `make tree` writes this page from the table of methods and the docstrings.

"""


def page(rows: Iterable[MethodInfo]) -> str:
    """The complete page.

    Raises:
        SystemExit: the class of a method's METHOD object has no docstring.
    """
    rows = list(rows)
    lines = ["| name | method | paper | computed by | trained parameters |", "|---|---|---|---|---|"]
    for info in rows:
        cells = (
            f"[`{info.name}`](#{info.name})",
            info.shown_title,
            "\N{EN DASH}" if info.paper == "none" else info.paper,
            info.implemented_by,
            info.parameters,
        )
        lines.append(f"| {' | '.join(cells)} |")
    sections = ("\n".join(_section(info)) for info in rows)
    return _HEAD + "\n".join(lines) + "\n\n" + "\n\n".join(sections) + "\n"


def _section(info: MethodInfo) -> Iterator[str]:
    equation, *rest = _docstring(info).split("\n\n")
    yield f"## {info.name}\n"
    source = "" if info.paper == "none" else f", {info.paper}"
    yield f"{info.shown_title}{source}: trains {info.trains}.\n"
    yield f"```\n{equation}\n```\n"
    for paragraph in rest:
        if not paragraph.startswith(("Args:", "Attributes:")):
            yield f"{paragraph}\n"
    keys = ", ".join(f"`{key}`" for key in info.uses)
    yield f"- reads of `method`: {keys or 'nothing'}"
    if info.aliases:
        yield f"- also called: {', '.join(f'`{alias}`' for alias in info.aliases)}"
    yield f"- bases: {info.bases}"
    exceptions = (
        ("start", info.start),
        ("switching off", info.disable),
        ("merging", info.merge),
        ("not for `preference`", info.no_preference),
        ("not for `reward`", info.no_reward),
    )
    for label, exception in exceptions:
        if exception:
            yield f"- {label}: {exception}"
    for option in info.options:
        yield f"- `options.{option.name}`: {option.about}; {option.limits}, {_shown_default(option)} by default"


def _shown_default(option: Option) -> str:
    if option.default is None:
        return "null"
    if isinstance(option.default, bool):
        return str(option.default).lower()
    return f'"{option.default}"' if isinstance(option.default, str) else f"{option.default:g}"


def _docstring(info: MethodInfo) -> str:
    """The docstring of the class whose object is the module's METHOD; the module is read, not imported."""
    spec = importlib.util.find_spec(info.module)
    if spec is None or spec.origin is None:
        raise SystemExit(f"method {info.name}: there is no module {info.module}; correct `module` in its row")
    source = Path(spec.origin).read_text(encoding="utf-8")
    instance = re.search(r"^METHOD = (\w+)\(", source, re.MULTILINE)
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    text = ast.get_docstring(classes[instance.group(1)]) if instance and instance.group(1) in classes else None
    if not text:
        raise SystemExit(f"{spec.origin}: the class of METHOD has no docstring; write one, with the equation first")
    return text


if __name__ == "__main__":
    own = [info for info in METHODS.values() if info.module.startswith("kasatune.")]
    PAGE.write_text(page(own), encoding="utf-8")
