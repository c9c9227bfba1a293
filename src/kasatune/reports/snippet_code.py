"""Python code fragments for the examples in model cards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kasatune.errors import AdapterError
from kasatune.io.run_layout import ADAPTER
from kasatune.reports.run_record import RunRecord

_PACKAGE = "package:"


def head_lines(run: RunRecord, family: str) -> list[str]:
    """The imports, with the auto class `family` of transformers, and the search for the adapter's folder."""
    places = [str(run.output / ADAPTER), ADAPTER, "."]
    return [
        *(["from importlib.util import find_spec"] if is_package(run.recipe.get("model", {})) else []),
        "from pathlib import Path",
        "",
        "import torch",
        "from peft import PeftModel",
        f"from transformers import {family}, AutoTokenizer",
        "",
        f"places = {literal(places)}  # possible locations of this folder",
        'adapter = next(place for place in places if Path(place, "adapter_config.json").is_file())',
    ]


def literal(value: str | list[str]) -> str:
    """A Python literal in double quotes; for strings and lists of strings, JSON and Python agree."""
    return json.dumps(value, ensure_ascii=False)


def is_package(model: Mapping[str, Any]) -> bool:
    """Whether the base model is part of an installed Python package."""
    return str(model.get("name", "")).startswith(_PACKAGE)


def base_expression(model: Mapping[str, Any]) -> str:
    """A Python expression for the name or path of the base model.

    Raises:
        AdapterError: the package with the base model is not installed, or contains no model.
    """
    name = str(model.get("name"))
    if not is_package(model):
        return literal(name)
    package = name.removeprefix(_PACKAGE)
    inside = "".join(f" / {literal(part)}" for part in _model_folder(package))
    return f"str(Path(find_spec({literal(package)}).origin).parent{inside})"


def _model_folder(package: str) -> tuple[str, ...]:
    """The folder of the model inside the package: the first with a config.json that has a model type.

    Raises:
        AdapterError: the package is not installed, or contains no model.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise AdapterError(
            f"the base model {_PACKAGE}{package} is not installed; install it, then write the card again"
        )
    root = Path(spec.origin).parent
    for path in sorted(root.rglob("config.json"), key=lambda path: (len(path.parts), path)):
        if "model_type" in json.loads(path.read_text(encoding="utf-8")):
            return path.parent.relative_to(root).parts
    raise AdapterError(f"the package {package} contains no config.json of a model; name another base model")


def source_options(model: Mapping[str, Any]) -> list[str]:
    """The arguments of from_pretrained that select the revision and remote code of the base model."""
    options = []
    if model.get("revision"):
        options.append(f"revision={literal(model['revision'])}")
    if model.get("trust_remote_code"):
        options.append("trust_remote_code=True")
    return options
