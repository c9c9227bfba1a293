"""Export a LoRA adapter as a GGUF file, which llama.cpp and programs based on it load together with a GGUF base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kasatune.adapters.adapter_files import AdapterFiles, listed
from kasatune.adapters.lora_export import StackedLora, stock_layers
from kasatune.errors import InputError, MissingExtraError

FILE = "adapter.gguf"
# Model types of transformers whose weights llama.cpp stores under its architecture "llama", with q and k permuted.
ARCHITECTURES = {"llama": "llama", "mistral": "llama"}


def architecture_of(model_config: Mapping[str, Any]) -> str:
    """The architecture name of a base in llama.cpp, after checking that an adapter can be written for it.

    Args:
        model_config: config.json of the base.

    Raises:
        InputError: llama.cpp stores this base differently.
        MissingExtraError: the gguf package is not installed.
    """
    try:
        import gguf  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        raise MissingExtraError("writing GGUF files", "gguf") from None
    architecture = ARCHITECTURES.get(str(model_config.get("model_type")))
    if architecture is None:
        raise InputError(
            f"a base of the type {model_config.get('model_type')!r} cannot have a GGUF adapter; those of type "
            f"{', '.join(ARCHITECTURES)} can. Export to 'lora' and convert it with llama.cpp's own script"
        )
    return architecture


def write_gguf(files: AdapterFiles, model_config: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Write W' - W = B A of every layer as blk.N.*.lora_a (rank, in) and .lora_b (out, rank), float32, scaling 1.

    llama.cpp stores the rows of each head of q and k in another order, for its rotary embedding: the rows of their B
    are permuted in the same way.

    Args:
        files: a stock LoRA adapter.
        model_config: config.json of the base.
        path: of the file.

    Returns:
        The name of each layer in llama.cpp.

    Raises:
        InputError: llama.cpp stores this base differently, or a GGUF adapter cannot hold a tensor, by name.
        MissingExtraError: the gguf package is not installed.
    """
    architecture = architecture_of(model_config)
    import gguf

    layers, rest = stock_layers(files)
    if rest:
        raise InputError(f"a GGUF adapter holds no trained heads or biases ({listed(sorted(rest))}): merge it instead")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, int(model_config["num_hidden_layers"]))
    known = {layer: name for layer in layers if (name := names.get_name(layer)) is not None}
    strange = [layer for layer in layers if layer not in known]
    tied = [layer for layer in layers if layer.endswith("lm_head") and model_config.get("tie_word_embeddings")]
    if strange or tied:
        raise InputError(f"llama.cpp has no separate weight for {listed(strange or tied)}: merge the adapter instead")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    ranks = {lora.A.shape[0] for lora in layers.values()}
    # Its scaling is alpha / rank, and 1 where alpha is 0: the one form that fits layers of several ranks.
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(ranks.pop()) if len(ranks) == 1 else 0.0)
    for layer in sorted(layers):
        A, B = _permuted(layer, layers[layer], model_config)
        writer.add_tensor(f"{known[layer]}.weight.lora_a", A.float().contiguous().numpy())
        writer.add_tensor(f"{known[layer]}.weight.lora_b", B.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return known


def permuted_rows(weight: Tensor, heads: int) -> Tensor:
    """The rows of each head with halves interleaved: (h, 2, d / 2) becomes (h, d / 2, 2), as llama.cpp stores them."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _permuted(layer: str, lora: StackedLora, config: Mapping[str, Any]) -> StackedLora:
    heads = int(config["num_attention_heads"])
    if layer.endswith("self_attn.q_proj"):
        return lora._replace(B=permuted_rows(lora.B, heads))
    if layer.endswith("self_attn.k_proj"):
        return lora._replace(B=permuted_rows(lora.B, int(config.get("num_key_value_heads") or heads)))
    return lora


def read_gguf(path: Path, model_config: Mapping[str, Any]) -> dict[str, StackedLora]:
    """The layers of a file that `write_gguf` wrote, by llama.cpp's names, with rows unpermuted and scaled."""
    import gguf

    reader = gguf.GGUFReader(path)
    alpha = float(reader.fields[gguf.Keys.Adapter.LORA_ALPHA].parts[-1][0])
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    heads = int(model_config["num_attention_heads"])
    layers = {}
    for name in [name.removesuffix(".weight.lora_a") for name in tensors if name.endswith(".lora_a")]:
        A, B = tensors[f"{name}.weight.lora_a"], tensors[f"{name}.weight.lora_b"]
        count = heads if name.endswith("attn_q") else int(model_config.get("num_key_value_heads") or heads)
        if name.endswith(("attn_q", "attn_k")):
            B = B.reshape(count, B.shape[0] // count // 2, 2, -1).swapaxes(1, 2).reshape(B.shape)
        layers[name] = StackedLora(A, B * (alpha / A.shape[0] if alpha else 1.0))
    return layers
