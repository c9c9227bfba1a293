"""The code in adapter/README.md that loads the adapter with transformers and PEFT alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kasatune.errors import AdapterError
from kasatune.reports.record import RunRecord

_PACKAGE = "package:"


def label_names(run: RunRecord) -> list[str]:
    """The labels in the order of the logits; their numbers as text where metrics.json does not name them.

    Raises:
        AdapterError: metrics.json does not name them and the adapter holds no head to count them by.
    """
    named = run.metrics.get("label_names")
    if named:
        return [str(name) for name in named]
    return [str(number) for number in range(_head_rows(run.run_dir / "adapter" / "adapter_model.safetensors"))]


def loading_snippet(run: RunRecord) -> str:
    """Python that loads base and adapter and scores one text; runs as it stands, kasatune not installed.

    Raises:
        AdapterError: the number of labels cannot be known.
    """
    model = run.recipe.get("model", {})
    regression = run.task_kind == "regression"
    names = [] if regression else label_names(run)
    options = [f"num_labels={1 if regression else len(names)}"]
    if regression:
        options.append('problem_type="regression"')
    else:
        options.append("id2label=dict(enumerate(labels))")
        options.append("label2id={label: number for number, label in enumerate(labels)}")
    source = _source_options(model)
    options += [*source, f'dtype="{model.get("dtype", "float32")}"']
    output = (
        "print(logits.item())"
        if regression
        else "print(model.config.id2label[logits.argmax(-1).item()], logits.softmax(-1).tolist()[0])"
    )
    texts = ", ".join(map(_literal, example_texts(run)))
    places = [str(run.output / "adapter"), "adapter", "."]
    return "\n".join(
        [
            *(["from importlib.util import find_spec"] if _is_package(model) else []),
            "from pathlib import Path",
            "",
            "import torch",
            "from peft import PeftModel",
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
            "",
            f"places = {_literal(places)}  # where this folder may be",
            'adapter = next(place for place in places if Path(place, "adapter_config.json").is_file())',
            f"base = {_base_expression(model)}",
            *([] if regression else [f"labels = {_literal(names)}"]),
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({', '.join(['base', *source])})",
            "model = AutoModelForSequenceClassification.from_pretrained(",
            "    base,",
            *(f"    {option}," for option in options),
            ")",
            "model = PeftModel.from_pretrained(model, adapter).eval()",
            "",
            f'inputs = tokenizer({texts}, truncation=True, max_length={_max_length(run)}, return_tensors="pt")',
            "with torch.no_grad():",
            "    logits = model(**inputs).logits",
            output,
        ]
    )


def _literal(value: str | list[str]) -> str:
    """Python for a string or a list of strings, in double quotes: JSON's form of them is Python's too."""
    return json.dumps(value, ensure_ascii=False)


def _is_package(model: Mapping[str, Any]) -> bool:
    return str(model.get("name", "")).startswith(_PACKAGE)


def _base_expression(model: Mapping[str, Any]) -> str:
    name = str(model.get("name"))
    if not _is_package(model):
        return _literal(name)
    package = name.removeprefix(_PACKAGE)
    inside = "".join(f" / {_literal(part)}" for part in _model_folder(package))
    return f"str(Path(find_spec({_literal(package)}).origin).parent{inside})"


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


def _source_options(model: Mapping[str, Any]) -> list[str]:
    options = []
    if model.get("revision"):
        options.append(f"revision={_literal(model['revision'])}")
    if model.get("trust_remote_code"):
        options.append("trust_remote_code=True")
    return options


def example_texts(run: RunRecord) -> tuple[str, ...]:
    """A text, or two where the task is about pairs."""
    return ("The first text.", "The second text.") if run.metrics.get("text_fields") == 2 else ("A text to score.",)


def _max_length(run: RunRecord) -> int:
    return int(run.recipe.get("task", {}).get("max_length") or 512)


def _head_rows(path: Path) -> int:
    """Rows of the head's weight, from the header of a safetensors file: the head is the last saved non-LoRA matrix."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (OSError, struct.error, json.JSONDecodeError) as error:
        raise AdapterError(f"{path}: the adapter cannot be read ({error}); run the training again") from None
    shapes = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    heads = {
        name: shape
        for name, shape in shapes.items()
        if len(shape) == 2
        and any(f".{part}." in f".{name}" for part in ("classifier", "score"))
        and "lora_" not in name
    }
    if not heads:
        raise AdapterError(f"{path}: holds no head, so that the number of labels is not known; run the training again")
    return min(shape[0] for shape in heads.values())
