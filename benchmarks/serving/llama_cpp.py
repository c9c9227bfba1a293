"""Compare greedy tokens of llama.cpp, with an exported adapter on the untouched base, with those of the trained model.

Usage: python llama_cpp.py BASE.gguf ADAPTER.gguf EXPECTED.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import xllamacpp


def greedy(base: str, adapter: str | None, prompt: list[int], count: int) -> list[int]:
    """The next `count` tokens of llama.cpp's server, started in this process."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = base
    parameters.n_ctx = 256
    parameters.n_parallel = 1
    parameters.warmup = False
    parameters.cpuparams.n_threads = 1
    if adapter is not None:
        parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    server = xllamacpp.Server(parameters)
    request = {"prompt": prompt, "n_predict": count, "temperature": 0, "top_k": 1, "repeat_penalty": 1.0}
    request |= {"ignore_eos": True, "logprobs": 1, "cache_prompt": False}
    answer = server.handle_completions(request)
    return [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]


def main(base: str, adapter: str, expected: Path) -> int:
    wanted = json.loads(expected.read_text())
    found = {
        "plain": greedy(base, None, wanted["prompt"], len(wanted["plain"])),
        "adapted": greedy(base, adapter, wanted["prompt"], len(wanted["adapted"])),
    }
    for name, tokens in found.items():
        same = sum(one == other for one, other in zip(tokens, wanted[name], strict=False))
        print(f"{name}: {same} of {len(wanted[name])} tokens equal")
        if tokens != wanted[name]:
            print("  wanted", wanted[name][:20])
            print("  found ", tokens[:20])
    return int(found["adapted"] != wanted["adapted"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
