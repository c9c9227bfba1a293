"""Recognize the format of an adapter by its content, and validate its configuration against its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeGuard

from peft import TaskType
from peft.utils.other import get_pattern_key

from kasatune.adapters.adapter_files import PREFIX, Header, is_number, listed
from kasatune.errors import AdapterError
from kasatune.mixtures.config import MIXTURE_TYPES
from kasatune.redaction import may_run_for_ever

FORMATS = ("lora", "kasa", "peft-kasa", "authors")
TITLES = {
    "lora": "a stock LoRA adapter",
    "kasa": "a native KaSA adapter",
    "peft-kasa": "a KaSA adapter of PEFT",
    "authors": "a KaSA adapter of the authors' code",
}

# Suffixes of the tensors of a layer that each format requires.
NATIVE = ("kasa_A", "kasa_sigma", "kasa_B", "kasa_tail_U", "kasa_tail_V")
LORA = ("lora_A.weight", "lora_B.weight")
DIAGONAL = (*LORA, "lora_diag")
_TASK_TYPES = [kind.value for kind in TaskType]
_PARTS = {"kasa": NATIVE, "peft-kasa": DIAGONAL, "authors": DIAGONAL, "lora": LORA}


class LayerShapes(NamedTuple):
    """An adapted layer in an adapter file: module name, (out, in), rank, and shapes by tensor suffix."""

    module: str
    shape: tuple[int, int]
    rank: int
    parts: dict[str, tuple[int, ...]]


def format_of(header: Header) -> str:
    """One of `FORMATS`, by peft_type and the presence of `lora_diag` tensors.

    Raises:
        AdapterError: the peft_type is not supported.
    """
    kind = header.config["peft_type"]
    if kind == "KASA":
        return "kasa"
    if kind in MIXTURE_TYPES:
        raise AdapterError(
            f"{header.folder}: peft_type {kind!r} is a mixture of LoRA experts, whose update depends on the input "
            "through its router: it cannot be exported, merged, shrunk or inspected as a matrix. Use it with PEFT: "
            "`import kasatune`, then PeftModel.from_pretrained"
        )
    if kind != "LORA":
        raise AdapterError(
            f"{header.folder}: peft_type {kind!r} is not supported; KaSA and LoRA adapters are. Use it with PEFT: its "
            "merge_and_unload() merges most other types"
        )
    if header.config.get("kasa_config") is not None:
        return "peft-kasa"
    return "authors" if any(key.endswith(".lora_diag") for key in header.shapes) else "lora"


def split_key(key: str, kind: str) -> tuple[str, str] | None:
    """(module, suffix) of a tensor that belongs to an adapted layer; None for heads and biases."""
    for part in _PARTS[kind]:
        if key.endswith(f".{part}"):
            return key.removesuffix(f".{part}").removeprefix(PREFIX), part
    return None


def checked_layers(header: Header, kind: str) -> dict[str, LayerShapes]:
    """The adapted layers of a header, by module name, after checking that configuration and tensors agree.

    Raises:
        AdapterError: a configuration value has the wrong type, or a tensor is missing, unknown, or of another shape
            or rank than the configuration and the rest of its layer require.
    """
    where, config = header.folder, header.config
    _check_config(header)
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in header.shapes.items():
        if not key.startswith(PREFIX):
            raise AdapterError(f"{where}: the tensor {listed([key])} does not start with {PREFIX}; not a PEFT adapter")
        split = split_key(key, kind)
        if split is not None:
            parts.setdefault(split[0], {})[split[1]] = shape
        elif kind != "lora" and re.search(r"\.(kasa_|lora_)\w+(\.weight|\.bias)?$", key):
            raise AdapterError(f"{where}: the tensor {listed([key])} does not belong in {TITLES[kind]}")
    if not parts:
        raise AdapterError(f"{where}: the adapter contains no adapted layer; it is incomplete, or of another kind")
    faults: list[str] = []
    layers: dict[str, LayerShapes] = {}
    for module, stored in parts.items():
        shapes = _as_matrices(stored) if kind == "lora" else stored
        missing = [part for part in _PARTS[kind] if part not in shapes]
        if missing:
            faults.append(f"{listed([module])} lacks {', '.join(missing)}")
            continue
        rank = configured(config, "r", "rank_pattern", module)
        wanted = _wanted(shapes, rank, config, kind)
        wrong = [part for part in _PARTS[kind] if shapes[part] not in wanted[part]]
        if wrong and not _is_special(shapes, config, kind):
            faults += [
                f"{listed([module])}: {p} has shape {list(shapes[p])}, rank {rank} requires {_or(wanted[p])}"
                for p in wrong
            ]
            continue
        up, down = _PARTS[kind][1 if kind != "kasa" else 2], _PARTS[kind][0]
        layers[module] = LayerShapes(module, (shapes[up][0], shapes[down][-1]), rank, shapes)
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise AdapterError(f"{where}: {'; '.join(faults[:5])}{more}. The adapter is incomplete or was edited.")
    return layers


def configured(config: dict[str, Any], value: str, pattern: str, module: str) -> Any:
    """The configured value for a layer: its entry in `rank_pattern` or `alpha_pattern`, or the common value."""
    patterns = config.get(pattern) or {}
    return patterns.get(get_pattern_key(list(patterns), module), config[value])


def exact_patterns(values: dict[str, Any], layers: Iterable[str]) -> dict[str, Any]:
    """A rank_pattern or alpha_pattern that gives each named layer its value and matches no other layer.

    PEFT interprets a key as a regular expression that may match the end of a name. Plain names are used unless another
    name ends in them, because other programs compare names literally.
    """
    names = list(layers)
    pattern = {}
    for name, value in sorted(values.items()):
        others = [other for other in names if other != name and re.match(rf"(.*\.)?({name})$", other)]
        pattern[f"^{re.escape(name)}$" if others else name] = value
    return pattern


def _as_matrices(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of a LoRA on a pointwise convolution without trailing dimensions of 1; other shapes unchanged."""
    is_pointwise = all(len(shape) > 2 and set(shape[2:]) == {1} for shape in shapes.values())
    return {part: shape[:2] for part, shape in shapes.items()} if is_pointwise else shapes


def _wanted(
    shapes: dict[str, tuple[int, ...]], rank: int, config: dict[str, Any], kind: str
) -> dict[str, list[tuple[int, ...]]]:
    """The valid shapes of a layer's tensors, given the width of A and the height of B."""
    down, up = ("kasa_A", "kasa_B") if kind == "kasa" else LORA
    width = shapes[down][-1] if shapes[down] else 0
    height = shapes[up][0] if shapes[up] else 0
    wanted: dict[str, list[tuple[int, ...]]] = {down: [(rank, width)], up: [(height, rank)]}
    if kind == "kasa":
        wanted["kasa_sigma"] = [(rank, rank)] if config.get("core") == "dense" else [(rank,)]
        stored = config.get("drop")
        drop = stored if _is_rank(stored) else 0 if stored == 0 else rank
        wanted["kasa_tail_U"], wanted["kasa_tail_V"] = [(height, drop)], [(drop, width)]
    elif kind == "peft-kasa":
        wanted["lora_diag"] = [(rank,)]
    elif kind == "authors":
        wanted["lora_diag"] = [(rank,), (rank, rank)]
    return wanted


def _is_special(shapes: dict[str, tuple[int, ...]], config: dict[str, Any], kind: str) -> bool:
    """Whether it is LoRA on convolutions or on single parameters, whose shapes PEFT checks itself."""
    return kind == "lora" and (
        all(len(shapes[part]) > 2 for part in LORA)
        or (bool(config.get("target_parameters")) and all(len(shapes[part]) == 2 for part in LORA))
    )


def _check_config(header: Header) -> None:
    config = header.config
    faults = []
    if not _is_rank(config.get("r")):
        faults.append(f"r is {_brief(config.get('r'))}, must be a whole number of at least 1")
    if not is_number(config.get("lora_alpha")):
        faults.append(f"lora_alpha is {_brief(config.get('lora_alpha'))}, must be a number")
    for name, fits in (("rank_pattern", _is_rank), ("alpha_pattern", is_number)):
        pattern = config.get(name)
        if pattern is not None and not (isinstance(pattern, dict) and all(fits(value) for value in pattern.values())):
            faults.append(f"{name} is {_brief(pattern)}, must give a number by layer name")
        elif pattern:
            faults += _pattern_faults(name, list(pattern))
    for name in ("target_modules", "exclude_modules"):
        value = config.get(name)
        if isinstance(value, str):
            faults += _pattern_faults(name, [value])
        elif value is not None and not _is_names(value):
            faults.append(f"{name} is {_brief(value)}, must be names or a regular expression")
    if config.get("modules_to_save") is not None and not _is_names(config["modules_to_save"]):
        faults.append(f"modules_to_save is {_brief(config['modules_to_save'])}, must be a list of names")
    for name in ("use_rslora", "fan_in_fan_out"):
        if not isinstance(config.get(name, False), bool):
            faults.append(f"{name} is {_brief(config[name])}, must be true or false")
    task = config.get("task_type")
    if task is not None and task not in _TASK_TYPES:
        faults.append(f"task_type is {_brief(task)}, must be one of {', '.join(_TASK_TYPES)}")
    if not isinstance(config.get("bias", "none"), str):
        faults.append(f"bias is {_brief(config['bias'])}, must be none, all or lora_only")
    if faults:
        raise AdapterError(f"{header.folder}: adapter_config.json: {'; '.join(faults[:5])}")


def _pattern_faults(name: str, patterns: Sequence[str]) -> list[str]:
    for pattern in patterns:
        if may_run_for_ever(pattern):
            return [f"{name} holds the regular expression {_brief(pattern)}, which may take forever to match"]
        try:
            re.compile(rf"(.*\.)?({pattern})$")
        except (re.error, RecursionError, OverflowError) as error:
            return [f"{name} holds {_brief(pattern)}, not a regular expression: {error}"]
    return []


def _is_rank(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _or(shapes: list[tuple[int, ...]]) -> str:
    return " or ".join(str(list(shape)) for shape in shapes)


def _brief(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
