"""Read and write the YAML of recipes: bounded input, and output that every YAML reader reads the same way.

The reader differs from PyYAML's safe loader in what often surprises users: `1e-4` is a number, `no` and `2024-01-01`
are text, a duplicate key is an error, and aliases are refused, so that a short file cannot expand into a long one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from kasatune.errors import RecipeError

MAX_BYTES = 65_536
MAX_DEPTH = 12
MAX_DIGITS = 30

_INTEGER = re.compile(r"^[-+]?[0-9][0-9_]*$")
_FLOAT = re.compile(
    r"^[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
)


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that is not allowed in a recipe."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2 scalars and limited depth; refuses aliases and duplicate keys."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way of declaring them

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """PyYAML's node; refuses an alias, and a node that is nested too deeply."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _Refused(
                problem=f"alias *{event.anchor} is not allowed in a recipe; write the value out",
                problem_mark=event.start_mark,
            )
        if self._depth >= MAX_DEPTH:
            raise _Refused(
                problem=f"nested more than {MAX_DEPTH} levels deep; a recipe needs three",
                problem_mark=event.start_mark,
            )
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """PyYAML's mapping; refuses a duplicate key."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _Refused(problem="a key must be a single word", problem_mark=key_node.start_mark)
            if key_node.value in seen:
                raise _Refused(
                    problem=f"key {key_node.value!r} is given twice; keep one", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        """The scalar as a decimal integer; `010` is ten."""
        digits = self.construct_scalar(node)
        if len(digits) > MAX_DIGITS:
            raise _Refused(
                problem=f"a whole number of {len(digits)} digits; write a smaller one",
                problem_mark=node.start_mark,
            )
        return int(digits.replace("_", ""))


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which also quotes text that only the reader above would read as a number."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """Parse the YAML in `text`.

    Raises:
        ValueError: not YAML, or YAML that is not allowed in a recipe; one sentence with the line and column.
    """
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = str(error.problem or error.context)
        what = f"{error.context}, {problem}" if problem.startswith("but ") else problem
        raise ValueError(f"{place}{what}{_hint(problem)}") from error
    except yaml.reader.ReaderError as error:
        raise ValueError(f"character {error.position + 1} is not text; write the recipe as plain UTF-8 text") from error
    except (ValueError, OverflowError) as error:
        raise ValueError(f"a value cannot be read ({error})") from error


def _hint(problem: str) -> str:
    if "'\\t'" in problem:
        return "; indent with spaces"
    return "; tags are not allowed in a recipe, write plain values" if "constructor for the tag" in problem else ""


def dump_yaml(value: dict[str, Any]) -> str:
    """`value` as YAML in block style, with keys in their order and numbers that any YAML reader reads as numbers."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def inline_yaml(key: str, value: Any) -> str:
    """`key: value` as YAML on one line, lists and mappings in flow style."""
    text = yaml.dump(
        {key: value}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=10**9
    )
    return text.strip()[1:-1]


def read_recipe_text(path: Path) -> str:
    """Read the text of a recipe file, at most 64 KiB.

    Raises:
        RecipeError: missing, not a regular file, too large, unreadable, or not UTF-8.
    """
    source = str(path)
    try:
        if path.is_dir():
            raise RecipeError(["this is a folder; give the YAML file itself"], source)
        if not path.exists():
            raise RecipeError(["no such file; check the path, or choose from `kasatune list recipes`"], source)
        if not path.is_file():
            raise RecipeError(["not a regular file; give a YAML file"], source)
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if isinstance(error, RecipeError):
            raise
        raise RecipeError([f"cannot be read ({reason}); check the path and its permissions"], source) from error
    if len(content) > MAX_BYTES:
        raise RecipeError([f"larger than {MAX_BYTES:,} bytes, the limit for a recipe; is this the right file?"], source)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError([f"byte {error.start} is not UTF-8; save the recipe as UTF-8 text"], source) from error
