"""Python code fragments for the examples in model cards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kasatune.errors import AdapterError, ModelError
from kasatune.io.model_location import ModelLocation, find_model, split_file
from kasatune.io.run_layout import ADAPTER
from kasatune.reports.run_record import RunRecord

_PACKAGE = "package:"


def head_lines(run: RunRecord, family: str, further: str = "") -> list[str]:
    """The imports, with the auto class `family` and `further` names of transformers, and the adapter's folder."""
    places = [str(run.output / ADAPTER), ADAPTER, "."]
    return [
        *(["from importlib.util import find_spec"] if is_package(run.recipe.get("model", {})) else []),
        "from pathlib import Path",
        "",
        "import torch",
        "from peft import PeftModel",
        f"from transformers import {', '.join([family, 'AutoTokenizer', *([further] if further else [])])}",
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
    """A Python expression for the name or path of the base model, or for the folder of its GGUF file.

    Raises:
        AdapterError: the package with the base model is not installed, or contains no model.
    """
    location = _location(model)
    if not is_package(model):
        return literal(location.path)
    package = str(model.get("name")).removeprefix(_PACKAGE).partition("/")[0]
    spec = find_spec(package)
    inside = Path(location.path).relative_to(Path(str(spec and spec.origin)).parent)
    steps = "".join(f" / {literal(part)}" for part in inside.parts)
    return f"str(Path(find_spec({literal(package)}).origin).parent{steps})"


def source_options(model: Mapping[str, Any]) -> list[str]:
    """The arguments of from_pretrained that select the GGUF file, revision and remote code of the base model."""
    options = []
    gguf_file = _location(model).gguf_file
    if gguf_file is not None:
        options.append(f"gguf_file={literal(gguf_file)}")
    if model.get("revision"):
        options.append(f"revision={literal(model['revision'])}")
    if model.get("trust_remote_code"):
        options.append("trust_remote_code=True")
    return options


def _location(model: Mapping[str, Any]) -> ModelLocation:
    """Where the base is; for a folder or file that is not on this machine, as the recipe names it.

    Raises:
        AdapterError: it is in a package that is not installed, or that contains no model.
    """
    name, file = str(model.get("name")), model.get("gguf_file")
    try:
        return find_model(f"{name}/{file}" if file else name)
    except ModelError as fault:
        if is_package(model):
            raise AdapterError(f"{fault}; then write the card again") from fault
    return ModelLocation(name, str(file)) if file else split_file(name)
