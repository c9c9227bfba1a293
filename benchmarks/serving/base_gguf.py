"""Convert a small transformers Llama to a GGUF file, for the llama.cpp comparison.

Usage: python base_gguf.py MODEL_FOLDER OUT.gguf
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of each head, its two halves interleaved, as llama.cpp's rotary embedding wants them."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(folder: Path, out: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    if isinstance(vocabulary, dict):
        tokens = [token for token, _ in sorted(vocabulary.items(), key=lambda item: item[1])]
        scores = [-float(place) for place in range(len(tokens))]
    else:
        tokens, scores = [token for token, _ in vocabulary], [float(score) for _, score in vocabulary]
    tokens += [f"<unused{place}>" for place in range(len(tokens), config["vocab_size"])]
    scores += [-1e4] * (config["vocab_size"] - len(scores))
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    special = {0: gguf.TokenType.UNKNOWN, 1: gguf.TokenType.CONTROL, 2: gguf.TokenType.CONTROL}
    writer.add_token_types([special.get(place, gguf.TokenType.NORMAL) for place in range(len(tokens))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        if name.endswith("q_proj.weight"):
            tensor = permuted(tensor, config["num_attention_heads"])
        elif name.endswith("k_proj.weight"):
            tensor = permuted(tensor, config["num_key_value_heads"])
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
