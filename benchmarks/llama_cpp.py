"""llama.cpp in this process (xllamacpp), with float32 keys and values: greedy tokens, and log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xllamacpp


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
        return [token["id"] for token in self._tokens(prompt, count, 1)]

    def log_probabilities(self, prompt: Sequence[int], count: int) -> dict[int, float]:
        """The log-probabilities of the `count` most probable tokens after a prompt, by token."""
        answer = self._tokens(prompt, 1, count)[0]
        return {token["id"]: float(token["logprob"]) for token in answer["top_logprobs"]}

    def _tokens(self, prompt: Sequence[int], count: int, alternatives: int) -> list[dict[str, Any]]:
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
        return self._server.handle_completions(request)["choices"][0]["logprobs"]["content"]
