"""A small random Llama in a GGUF file, with a byte-level tokenizer and a chat template, as llama.cpp reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from kasatune.adapters.gguf_export import permuted_rows

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}


def tiny_llama(seed: int = 5, **changes: Any) -> LlamaForCausalLM:
    """The model in the file before it is quantized."""
    torch.manual_seed(seed)
    options = {**SIZES, "vocab_size": len(_tokens()), "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**{**options, **changes})).eval()


def write_gguf_model(
    path: Path,
    model: LlamaForCausalLM | None = None,
    *,
    weights: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    template: str | None = TEMPLATE,
) -> Path:
    """Write a Llama as llama.cpp's converter does; vectors stay float32 whatever the type of the matrices."""
    model = tiny_llama() if model is None else model
    config: Any = model.config
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(_tokens())
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(_tokens()) - 3))
    writer.add_token_merges([f"{left} {right}" for left, right in _merges()])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        tensor = parameter.detach().float()
        if name.endswith("q_proj.weight"):
            tensor = permuted_rows(tensor, config.num_attention_heads)
        elif name.endswith("k_proj.weight"):
            tensor = permuted_rows(tensor, config.num_key_value_heads)
        kind = weights if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(tensor.contiguous().numpy(), kind)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _merges() -> list[tuple[str, str]]:
    return [("t", "h"), ("th", "e"), ("i", "n"), ("e", "r"), ("\u0120", "the")]


def _tokens() -> list[str]:
    """Special tokens, the 256 bytes, the merged pairs."""
    return [*SPECIAL, *bytes_to_unicode().values(), *(left + right for left, right in _merges())]
