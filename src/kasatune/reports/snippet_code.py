"""Pieces of the Python code that model cards show."""

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
    """The imports, with transformers' class `family`, and the search for the adapter's folder."""
    places = [str(run.output / ADAPTER), ADAPTER, "."]
    return [
        *(["from importlib.util import find_spec"] if is_package(run.recipe.get("model", {})) else []),
        "from pathlib import Path",
        "",
        "import torch",
        "from peft import PeftModel",
        f"from transformers import {family}, AutoTokenizer",
        "",
        f"places = {literal(places)}  # where this folder may be",
        'adapter = next(place for place in places if Path(place, "adapter_config.json").is_file())',
    ]


def literal(value: str | list[str]) -> str:
    """Python for a string or a list of strings, in double quotes: JSON's form of them is Python's too."""
    return json.dumps(value, ensure_ascii=False)


def is_package(model: Mapping[str, Any]) -> bool:
    """Whether an installed package brings the base."""
    return str(model.get("name", "")).startswith(_PACKAGE)


def base_expression(model: Mapping[str, Any]) -> str:
    """Python for the name of the base.

    Raises:
        AdapterError: the package that brings it is not installed, or brings no model.
    """
    name = str(model.get("name"))
    if not is_package(model):
        return literal(name)
    package = name.removeprefix(_PACKAGE)
    inside = "".join(f" / {literal(part)}" for part in _model_folder(package))
    return f"str(Path(find_spec({literal(package)}).origin).parent{inside})"


def _model_folder(package: str) -> tuple[str, ...]:
    """Where in the package the model lies: the folder of the config.json that names a model type.

    Raises:
        AdapterError: the package is not installed, or brings no model.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise AdapterError(
            f"the base model {_PACKAGE}{package} is not installed; install it, then write the card again"
        )
    root = Path(spec.origin).parent
    for path in sorted(root.rglob("config.json"), key=lambda found: (len(found.parts), found)):
        if "model_type" in json.loads(path.read_text(encoding="utf-8")):
            return path.parent.relative_to(root).parts
    raise AdapterError(f"the package {package} holds no config.json of a model; name another base model")


def source_options(model: Mapping[str, Any]) -> list[str]:
    """Where the base is taken from, as arguments of from_pretrained."""
    options = []
    if model.get("revision"):
        options.append(f"revision={literal(model['revision'])}")
    if model.get("trust_remote_code"):
        options.append("trust_remote_code=True")
    return options
