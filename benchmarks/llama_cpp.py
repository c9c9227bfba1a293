"""llama.cpp in this process (xllamacpp), with float32 keys and values: greedy tokens, and log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xllamacpp

_WARNINGS = 1  # of the levels of messages, instead of a line for every request


class LlamaCpp:
    """A base in a GGUF file, with or without a LoRA adapter in another.

    By default llama.cpp rounds keys and values to half precision, and flash attention rounds again: log-probabilities
    change by up to 4e-3, more than the gap between close tokens. Both are switched off here.

    Args:
        base: the file.
        adapter: the file of the adapter; None for the base alone.
    """

    def __init__(self, base: Path, adapter: Path | None) -> None:
        parameters: Any = xllamacpp.CommonParams()
        parameters.model.path = str(base)
        parameters.n_ctx = 256
        parameters.verbosity = _WARNINGS
        parameters.n_parallel = 1
        parameters.warmup = False
        parameters.cpuparams.n_threads = 1
        parameters.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if adapter is not None:
            parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
        self._server: Any = xllamacpp.Server(parameters)

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The next `count` tokens after a prompt; tokens that end a text are left out of the choice."""
        return [token for token, _ in self.greedy_scored(prompt, count, 1)]

    def greedy_scored(self, prompt: Sequence[int], count: int, alternatives: int) -> list[tuple[int, dict[int, float]]]:
        """The same tokens, each with the log-probabilities of the `alternatives` most probable tokens at its place."""
        request = {
            "prompt": list(prompt),
            "n_predict": count,
            "logprobs": alternatives,
            "temperature": 0,
            "top_k": 1,
            "repeat_penalty": 1.0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        places = self._server.handle_completions(request)["choices"][0]["logprobs"]["content"]
        return [
            (place["id"], {token["id"]: float(token["logprob"]) for token in place["top_logprobs"]}) for place in places
        ]
