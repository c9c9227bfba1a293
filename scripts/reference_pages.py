"""The reference pages of the documentation site, generated from the code: recipe keys, commands, errors, tasks, API.

PAGES maps each page of the site to the function that returns its Markdown, FILES each other file to its content.
scripts/mkdocs_hooks.py puts them into the site when it is built; nothing is written into docs/.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

import kasatune
from kasatune import errors
from kasatune.cli.main import COMMANDS, build_app
from kasatune.data.tasks.table import TASKS
from kasatune.recipes.catalogue import about, built_in
from kasatune.recipes.foreign_keys import FOREIGN_KEYS, NOTHING
from kasatune.recipes.schema import SECTIONS, PartSection, recipe_json_schema

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "kasatune"

_SAME_NAMES = [
    f"`{section}.{key}`"
    for section, keys in (
        ("method", ("use_rslora", "target_modules")),
        ("task", ("max_length", "template")),
        ("training", ("learning_rate", "weight_decay", "warmup_ratio", "max_steps", "max_grad_norm", "seed")),
        ("training", ("eval_steps", "save_steps", "group_by_length", "packing", "gradient_checkpointing", "report_to")),
        ("preference", ("beta", "label_smoothing", "ld_alpha")),
    )
    for key in keys
]
_SIGNS = {"minimum": ">=", "maximum": "<=", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}


def recipe_keys() -> str:
    """The page of recipe keys: one table per section."""
    schema = recipe_json_schema()
    parts = [
        "# Recipe keys",
        "Every key of a recipe, with its type, limits and default. Keys may be added in later versions, never renamed. "
        "[Train on your own data](../train.md) explains how to choose them, and `kasatune plan RECIPE` shows what a "
        "recipe resolves to before anything is loaded.",
        "Change a single key on the command line with `section.key=value`, for example `training.seed=1` or "
        "`method.options.ratio=4`.",
        "## In your editor",
        "[recipe.schema.json](recipe.schema.json) is the same reference as a JSON schema. Editors that use the YAML "
        "language server (VS Code with the YAML extension, Neovim, Helix, Emacs) complete and check recipes when the "
        "first line names the schema:",
        "```yaml\n# yaml-language-server: $schema=path/to/recipe.schema.json\nmodel: {name: path/to/model}\n```",
        "`make site` writes it to `site/reference/recipe.schema.json`. The schema checks single keys; rules for "
        "several keys together are checked by kasatune alone.",
        f"## output\n\n`output` (text): {_sentence(_description(schema['properties']['output']))}"
        if _description(schema["properties"]["output"])
        else "## output\n\n`output` (text): the run directory; `runs/TASK-METHOD` by default.",
    ]
    for section, model in {**SECTIONS, "task.parts": PartSection}.items():
        properties = schema["$defs"][model.__name__]["properties"]
        required = schema["$defs"][model.__name__].get("required", [])
        rows = [
            [
                f"`{section}.{key}`",
                _form(field, schema),
                "required" if key in required else f"`{json.dumps(field.get('default'))}`",
                _sentence(_description(field)),
            ]
            for key, field in properties.items()
        ]
        parts += [
            f"## {section}",
            inspect.cleandoc(model.__doc__ or ""),
            table(["key", "type and limits", "default", "meaning"], rows),
        ]
    parts.append("The keys of `method.options` depend on the method: see [methods](../methods.md).")
    return "\n\n".join(parts) + "\n"


def other_trainers() -> str:
    """The page that turns the keys of other trainers into recipe keys."""
    parts = [
        "# Keys of other trainers",
        "What LLaMA-Factory, axolotl, TRL and PEFT call a setting, and the [recipe key](recipe-keys.md) that takes its "
        "place. A recipe that holds one of their keys is refused with the key to write instead. The list is no promise "
        "that a value means the same: `training.batch_size` counts the examples of an optimizer step over all devices "
        "and accumulated pieces, theirs those of one device and piece.",
        "Their other keys have the same name here, within a section: " + ", ".join(_SAME_NAMES) + ".",
    ]
    for library, keys in FOREIGN_KEYS.items():
        rows = [
            [f"`{key}`", "nothing" if entry.key == NOTHING else f"`{entry.key}`", entry.remark]
            for key, entry in keys.items()
        ]
        parts += [f"## {_sentence(library).rstrip('.')}", table(["theirs", "here", ""], rows)]
    return "\n\n".join(parts) + "\n"


def commands() -> str:
    """The page of commands: usage, arguments, options and exit statuses."""
    application = typer.main.get_command(build_app())
    parts = [
        "# Commands",
        "Every command with its arguments and options, as `kasatune COMMAND --help` prints them. [Errors](errors.md) "
        "lists the exit statuses. With `--json`, standard output holds JSON alone; messages go to standard error.",
        table(
            ["command", "purpose"],
            [[f"[`kasatune {name}`](#{name})", _first_line(_command(application, name).help)] for name in COMMANDS],
        ),
    ]
    for name in COMMANDS:
        command = _command(application, name)
        usage, rows = [f"kasatune {name}"], []
        for parameter in command.params:
            shown = getattr(parameter, "metavar", None) or parameter.name.upper()
            if parameter.param_type_name == "argument":
                text = f"{shown} ..." if parameter.nargs == -1 else shown
                usage.append(text if parameter.required else f"[{text}]")
                label = f"`{text}`"
            else:
                flag = getattr(parameter, "is_flag", False)
                spelled = ", ".join(parameter.opts)
                label = f"`{spelled}`" if flag else f"`{spelled} {shown}`"
                if parameter.required:
                    usage.append(f"{parameter.opts[0]} {shown}")
            rows.append([label, _default(parameter), _sentence(getattr(parameter, "help", None) or "")])
        usage.append("[OPTIONS]")
        parts += [f"## {name}", _paragraphs(command.help), f"```text\n{' '.join(usage)}\n```"]
        parts.append(table(["argument or option", "default", "meaning"], rows))
    return "\n\n".join(parts) + "\n"


def error_reference() -> str:
    """The page of errors: exit statuses, the classes as a tree, and the text of every message."""
    messages = list(_raised())
    parts = [
        "# Errors and exit statuses",
        "A failing command prints one message on standard error, which names the value received, the limit and what to "
        "do next. It never prints a traceback; `KASATUNE_DEBUG=1` adds one.",
        table(
            ["exit status", "meaning"],
            [
                ["0", "done"],
                ["1", "the inputs were valid, but the operation failed: training diverged, a full disk, the network"],
                ["2", "an input was wrong: recipe, data, model, adapter, output directory, or a missing extra"],
                ["130", "interrupted by Ctrl-C or SIGTERM; a training run has written a checkpoint"],
            ],
        ),
        "In Python each is an exception of `kasatune.errors`, a child of `kasatune.KasatuneError`. An `InputError` is "
        "also a `ValueError`.",
        "## Exceptions",
        table(["exception", "exit status", "raised when"], list(_classes(errors.KasatuneError, 0))),
        "## Messages",
        f"The {len(messages)} messages in the source, sorted by exception; words in `{{braces}}` stand for values. "
        "Faults of a recipe are collected and reported together.",
    ]
    for name in sorted({name for name, _, _ in messages}):
        rows = sorted([f"`{module}`", text] for raised, text, module in messages if raised == name)
        parts += [f"### {name}", table(["raised in", "message"], rows)]
    return "\n\n".join(parts) + "\n"


def tasks() -> str:
    """The page of tasks: one row each, from the table of tasks."""
    rows = [
        [f"`{info.name}`", info.title, info.kind, ", ".join(info.metrics), info.primary, info.source]
        for info in TASKS.values()
    ]
    return "\n\n".join(
        [
            "# Tasks",
            "What `task.name` of a recipe can be, also printed by `kasatune list tasks`. `selects` is the score that "
            "chooses the best epoch. Scores are fractions between 0 and 1, except NIST, CIDEr, loss and perplexity.",
            table(["name", "task", "kind", "scores", "selects", "rows come from"], rows),
            *_decoding(),
        ]
    )


def _decoding() -> Iterator[str]:
    rows = [
        [f"`{info.name}`", ", ".join(f"`{key}: {value}`" for key, value in info.decoding.items())]
        for info in TASKS.values()
        if info.decoding
    ]
    yield "## Decoding defaults\n\nTasks that generate text may set other defaults for the section `generation`:"
    yield table(["task", "defaults"], rows) + "\n"


def recipes() -> str:
    """The page of built-in recipes, each as it is printed."""
    names = built_in()
    parts = [
        "# Built-in recipes",
        "`kasatune train NAME` trains one of these; `NAME section.key=value` changes it. A copy is a good start for "
        "your own recipe. `kasatune list recipes` prints the names.",
        table(
            ["name", "about"],
            [[f"[`{name}`](#{_anchor(name)})", _sentence(about(path))] for name, path in names.items()],
        ),
    ]
    for name, path in names.items():
        parts += [f"## {name}", f"```yaml\n{path.read_text(encoding='utf-8').strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def api() -> str:
    """The API page: directives for mkdocstrings, one for each public name of the package."""
    parts = [
        "# Python API",
        "The names below, imported from `kasatune`, are stable: they are extended, not renamed. Modules below "
        "`kasatune` are internal and may move. Importing `kasatune` registers the PEFT types `KASA` and `BOTTLENECK`. "
        "It imports neither torch nor transformers; a name is loaded when it is first used. "
        "[Use from Python](../use-from-python.md) shows them in context.",
    ]
    parts += [f"::: kasatune.{name}" for name in kasatune.__all__ if not name.startswith("__")]
    return "\n\n".join(parts) + "\n"


PAGES: Mapping[str, Callable[[], str]] = {
    "reference/recipe-keys.md": recipe_keys,
    "reference/other-trainers.md": other_trainers,
    "reference/commands.md": commands,
    "reference/errors.md": error_reference,
    "reference/tasks.md": tasks,
    "reference/recipes.md": recipes,
    "reference/api.md": api,
}
FILES: Mapping[str, Callable[[], str]] = {
    "reference/recipe.schema.json": lambda: json.dumps(recipe_json_schema(), indent=2) + "\n",
}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars and line breaks in its cells are escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(str(cell)) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading).replace(" ", "-").lower()


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "." if text else ""


def _first_line(text: str | None) -> str:
    return _sentence(" ".join((text or "").split("\n\n")[0].split()))


def _paragraphs(text: str | None) -> str:
    """The help of a command, with its examples as code."""
    parts = []
    for paragraph in (text or "").split("\n\n"):
        if "```" in paragraph:
            parts.append(paragraph)
            continue
        line = " ".join(paragraph.split())
        example = line.removeprefix("Example: ")
        parts.append(f"```bash\n{example}\n```" if example != line and example.startswith("kasatune ") else line)
    return "\n\n".join(parts)


def _command(application: Any, name: str) -> Any:
    return application.commands[name]


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    default = parameter.default
    if default is None or callable(default) or default in ((), [], False):
        return ""
    return f"`{getattr(default, 'value', default)}`"


def _description(field: Mapping[str, Any]) -> str:
    return str(field.get("description", ""))


def _form(field: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Type and limits of one key in words, from its JSON schema."""
    if "$ref" in field:
        return _form(schema["$defs"][field["$ref"].rpartition("/")[2]], schema)
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_form(option, schema) for option in field["anyOf"]))
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    kind = field.get("type", "any")
    if kind == "array":
        least, most = field.get("minItems"), field.get("maxItems")
        size = f" ({least} to {most})" if least and most else ""
        return f"list of {_form(field.get('items', {}), schema)}{size}"
    names = {
        "string": "text",
        "number": "number",
        "integer": "integer",
        "boolean": "`true` or `false`",
        "null": "`null`",
    }
    limits = [f"{sign} {field[name]:g}" for name, sign in _SIGNS.items() if name in field]
    return " ".join([names.get(kind, "mapping" if kind == "object" else kind), ", ".join(limits)]).strip()


def _classes(kind: type[errors.KasatuneError], depth: int) -> Iterator[list[str]]:
    indent = "&nbsp;" * 4 * depth
    yield [f"{indent}`{kind.__name__}`", str(kind.exit_status), (kind.__doc__ or "").strip().split("\n")[0]]
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _classes(child, depth + 1)


def _raised() -> Iterator[tuple[str, str, str]]:
    """(exception, message, module) of every `raise` of one of kasatune's errors whose text is in the source."""
    names = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    for path in sorted(SOURCE.rglob("*.py")):
        module = str(path.relative_to(SOURCE).with_suffix("")).replace("/", ".")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            call = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in names:
                text = next(filter(None, (_text(argument) for argument in call.args)), "")
                if len(re.sub(r"\{[^}]*\}", "", text).strip()) > 8:
                    yield call.func.id, text, module


def _text(node: ast.expr) -> str:
    """The literal text of a string expression, with {name} for each value, or {...} where it has no plain name."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else _placeholder(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.List) and node.elts:
        return "; ".join(filter(None, map(_text, node.elts)))
    return ""


def _placeholder(part: ast.expr) -> str:
    value = part.value if isinstance(part, ast.FormattedValue) else part
    name = value.attr if isinstance(value, ast.Attribute) else value.id if isinstance(value, ast.Name) else "..."
    return f"{{{name}}}"
