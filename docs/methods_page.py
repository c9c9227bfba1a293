"""Write docs/methods.md: every method of the table, with its equation and choices from its own docstring.

Run by `make tree`; a test holds docs/methods.md against it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from kasatune.methods.info import MethodInfo, Option
from kasatune.methods.table import METHODS

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "methods.md"

_LORA = "r (in + out)"
_ADAPTER = "(2 d r + r + d)"
# in and out are those of an adapted layer, over which the number is summed; d is the model's width, f that of its
# feed-forward part, L its number of blocks. The contract's tests count the same on small models.
PARAMETERS = {
    **dict.fromkeys(("lora", "rslora", "lora-plus", "pissa", "milora", "corda", "olora", "dylora", "clora"), _LORA),
    **dict.fromkeys(("kasa", "peft-kasa"), f"{_LORA} + r"),
    "dora": f"{_LORA} + out",
    "adalora": "r0 (in + out + 1), r0 = 1.5 r",
    "sara": "k (in + out + 1), k from the weight",
    "lora-mini": "2 r `inner`",
    "lora-xs": "r^2",
    "vera": "out + r",
    "miss": "r out",
    "ist": "as the method `over`",
    "ia3": "L (2 d + f), whole model",
    "prefix-tuning": "2 n L d, whole model",
    "ln-tuning": "2 d a LayerNorm, d an RMSNorm",
    "full": "all",
    "top-layers": "all of n blocks",
    "bitfit": "all biases",
    "head": "none outside the head",
    "houlsby": f"2 L {_ADAPTER}, whole model",
    **dict.fromkeys(("pfeiffer", "adapterdrop"), f"L {_ADAPTER}, whole model"),
    "lin": f"L {_ADAPTER} + 2 L d, whole model",
    "series-adapter": "2 L d r, whole model",
    "parallel-adapter": "2 L r (d + f), whole model",
}

_HEAD = """# Methods

What `method: {name: ...}` of a recipe can name. Every method trains through the same path, with the same data order,
head, precision and evaluation; KaSA has no other. A newly made head is trained by all of them, and counted apart.

The equations are those of the modules' docstrings, where `W` is a frozen weight (out, in), `x` its input, `drop` the
dropout of `method.dropout`, and `s` the scaling. Trained parameters are summed over the adapted layers where they are
given by `in` and `out`; `d` is the model's width, `f` that of its feed-forward part, `L` its number of blocks. What a
source leaves open, and what was chosen, is said with each method and gathered in [Deviations](deviations.md). A method
marked "reconstructed" was rebuilt from a source that leaves out something essential: its numbers are not its authors'.

Unless said otherwise, training begins as the base model, switching the method off gives the base's outputs bit for
bit, and the result can be merged into the base's weights. `tests/methods` and `tests/contract` hold the methods to it.
This page is written by `make tree` from the table of methods and the docstrings.

"""


def page() -> str:
    """The whole page.

    Raises:
        SystemExit: a method has no formula here, or its class no docstring.
    """
    missing = sorted(set(METHODS) ^ set(PARAMETERS))
    if missing:
        raise SystemExit(f"docs/methods_page.py: PARAMETERS and the table of methods differ in {', '.join(missing)}")
    lines = ["| name | method | paper | computed by | trained parameters |", "|---|---|---|---|---|"]
    for info in METHODS.values():
        link = f"[`{info.name}`](#{info.name})"
        row = (
            link,
            info.shown_title,
            "\N{EN DASH}" if info.paper == "none" else info.paper,
            info.implemented_by,
            PARAMETERS[info.name],
        )
        lines.append(f"| {' | '.join(row)} |")
    sections = ("\n".join(_section(info)) for info in METHODS.values())
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
    keys = [f"`{key}`" for key in info.uses]
    yield f"- reads of `method`: {', '.join(keys) if keys else 'nothing'}"
    yield f"- bases: {info.bases}"
    for about, exception in (("start", info.start), ("off", info.disable), ("merging", info.merge)):
        if exception:
            yield f"- {about}: {exception}"
    for option in info.options:
        yield f"- `options.{option.name}`: {option.about}; {option.limits}, {_shown(option)} by default"


def _shown(option: Option) -> str:
    if option.default is None:
        return "null"
    if isinstance(option.default, bool):
        return str(option.default).lower()
    return f'"{option.default}"' if isinstance(option.default, str) else f"{option.default:g}"


def _docstring(info: MethodInfo) -> str:
    """Of the class whose object is the module's METHOD."""
    path = ROOT / "src" / Path(*info.module.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    made = re.search(r"^METHOD = (\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    found = [n for n in tree.body if isinstance(n, ast.ClassDef) and made is not None and n.name == made.group(1)]
    text = ast.get_docstring(found[0]) if found else None
    if not text:
        raise SystemExit(f"{path.relative_to(ROOT)}: the class of METHOD has no docstring; write one")
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
