"""Embeddings that an adapter stores: those of a resized vocabulary in full, and the rows of trained tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from kasatune.adapters.adapter_files import PREFIX, Header, listed
from kasatune.errors import AdapterError
from kasatune.wording import counted

TOKENS = ".token_adapter.trainable_tokens_delta"
"""End of the key of the rows of trained tokens; they replace rows of the embedding."""


class Rows(NamedTuple):
    """Rows of an embedding by token id: W[ids] = values."""

    ids: list[int]
    values: Tensor


def base_name(key: str) -> str:
    """The name in the base of a parameter that an adapter holds under `key`."""
    name = key.removeprefix(PREFIX).replace(".token_adapter.base_layer.", ".").replace(".base_layer.", ".")
    return f"{name.removesuffix(TOKENS)}.weight" if name.endswith(TOKENS) else name


def token_ids(config: Mapping[str, Any], module: str) -> list[int] | None:
    """The ids of the trained tokens of a module; None if `trainable_token_indices` does not name it.

    Raises:
        AdapterError: the setting is neither a list of token ids nor one for each module.
    """
    setting = config.get("trainable_token_indices")
    if isinstance(setting, dict):
        setting = next((ids for name, ids in setting.items() if module.endswith(str(name))), None)
    if setting is None:
        return None
    if not isinstance(setting, list) or not all(type(number) is int and number >= 0 for number in setting):
        raise AdapterError(f"trainable_token_indices is {setting!r:.80}, must be a list of token ids")
    return setting


def require_trained_tokens(header: Header) -> None:
    """Check that an adapter whose configuration trains tokens holds rows of trained tokens.

    PEFT leaves them out where it converts an adapter while saving it, and cannot load the result.

    Raises:
        AdapterError: it holds none.
    """
    if header.config.get("trainable_token_indices") and not any(key.endswith(TOKENS) for key in header.shapes):
        raise AdapterError(
            f"{header.folder}: trainable_token_indices names trained tokens, and the adapter holds no rows of them: it "
            "is incomplete; save it again, without converting it"
        )


def embedding_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the input and output embeddings of a model, by name; tied ones under all their names."""
    getters = [getattr(model, name, None) for name in ("get_input_embeddings", "get_output_embeddings")]
    modules = [getter() for getter in getters if callable(getter)]
    names = [name for name, module in model.named_modules() if any(module is embedding for embedding in modules)]
    return {
        name: parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name.rpartition(".")[0] in names
    }


def original_vocabulary(model: nn.Module) -> int:
    """The number of rows of the input embedding in the checkpoint of a model; its present rows if that is unknown.

    Nothing is downloaded.
    """
    from transformers import AutoConfig

    getter: Any = getattr(model, "get_input_embeddings", None)
    weight = getattr(getter() if callable(getter) else None, "weight", None)
    present = 0 if weight is None else int(weight.shape[0])
    try:
        config = AutoConfig.from_pretrained(str(getattr(model, "name_or_path", "")), local_files_only=True)
        size = config.get_text_config().vocab_size
    except Exception:  # no checkpoint, none on this machine, or one that needs remote code
        return present
    return size if isinstance(size, int) else present


def stored_vocabulary(header: Header, model: nn.Module) -> int | None:
    """The number of rows of the embeddings that an adapter holds in full; None if it holds none.

    Args:
        header: of the adapter.
        model: its base, whatever the size of its vocabulary.
    """
    shapes = {**header.shapes, **header.repeated}
    known = embedding_parameters(model)
    rows = [
        shape[0]
        for key, shape in shapes.items()
        if not key.endswith(TOKENS) and len(shape) == 2 and base_name(key) in known
    ]
    return rows[0] if rows else None


def check_token_rows(header: Header, key: str, base: nn.Module) -> None:
    """Check the rows of trained tokens under `key` against the base.

    Raises:
        AdapterError: the base has no such embedding, or too few rows or columns; or the ids and rows do not agree.
    """
    name, (count, width) = base_name(key), header.shapes[key]
    weight = dict(base.named_parameters(remove_duplicate=False)).get(name)
    if weight is None or weight.ndim != 2:
        raise AdapterError(f"{header.folder}: this base has no embedding {listed([name])}: it is another model")
    ids = token_ids(header.config, name.removesuffix(".weight"))
    if ids is not None and len(ids) != count:
        raise AdapterError(
            f"{header.folder}: {listed([key])} holds {counted(count, 'row')}, trainable_token_indices names "
            f"{counted(len(ids), 'token')}"
        )
    if weight.shape[1] != width or (ids and max(ids) >= weight.shape[0]):
        raise AdapterError(
            f"{header.folder}: the trained tokens {ids} of width {width} do not fit {name} of shape "
            f"{list(weight.shape)} in this base: resize the vocabulary of the base as it was for training"
        )


def split_embeddings(
    rest: Mapping[str, Tensor], repeated: Mapping[str, Tensor], config: Mapping[str, Any], ties: Mapping[str, list[str]]
) -> tuple[dict[str, Tensor], dict[str, Rows]]:
    """The parameters that an adapter replaces in full, and rows of trained tokens, by the base's names.

    Args:
        rest: tensors of the adapter that belong to no adapted layer, by key.
        repeated: base weights that the adapter holds, by key.
        config: adapter_config.json.
        ties: the other names of each parameter of the base.

    Raises:
        AdapterError: `trainable_token_indices` names no tokens for rows in the file.
    """
    replaced = {base_name(key): tensor for key, tensor in rest.items() if not key.endswith(TOKENS)}
    rows: dict[str, Rows] = {}
    for key in sorted(key for key in rest if key.endswith(TOKENS)):
        name = base_name(key)
        ids = token_ids(config, name.removesuffix(".weight"))
        # With resized embeddings PEFT saves the rows under every name of a tied weight.
        if ids is None and any(f"{PREFIX}{tie.removesuffix('.weight')}{TOKENS}" in rest for tie in ties.get(name, ())):
            continue
        if ids is None:
            raise AdapterError(f"the adapter holds {listed([key])}, and trainable_token_indices names no such module")
        if len(ids) != len(rest[key]):
            raise AdapterError(
                f"{listed([key])} holds {counted(len(rest[key]), 'row')}, trainable_token_indices names "
                f"{counted(len(ids), 'token')}"
            )
        rows[name] = Rows(ids, rest[key])
    for key, tensor in repeated.items():
        name = base_name(key)
        if ".token_adapter." in key and name in rows:
            ids, values = rows.pop(name)
            replaced[name] = tensor.clone()
            replaced[name][ids] = values.to(tensor.dtype)
    return replaced, rows
