"""Make a small Llama, rows to fine-tune it on, and a recipe, from Python's standard library; nothing is downloaded.

python scripts/make_tiny_llama.py [OUT]          (`make tiny-llama` writes runs/tiny-llama)

The model has one million parameters and is pretrained for half a minute on the docstrings of the standard library. The
rows ask for the first sentence of a function's docstring, given its signature. It is large enough to try every command
that handles language models, and far too small to write sensible text.
"""

from __future__ import annotations

import ast
import json
import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROWS, VALIDATION = 800, 50
VOCABULARY, LENGTH, BATCH, STEPS = 2048, 64, 16, 150

RECIPE = """\
# KaSA on a small Llama: from a function's signature to the first sentence of its docstring
model: {{name: {out}/model}}
task: {{name: text-generation, train: {out}/train.jsonl, validation: {out}/validation.jsonl,
       prompt: prompt, completion: completion, max_length: 64}}
method: {{name: kasa, r: 8, target_modules: all-linear}}
training: {{epochs: 1, batch_size: 16, learning_rate: 2.0e-3}}
generation: {{max_new_tokens: 24}}
output: {out}/run
"""


def documented_functions() -> Iterator[tuple[str, str]]:
    """(signature, docstring) of the public functions of the standard library, read without importing it."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                text = ast.get_docstring(node)
                if text:
                    yield f"{path.stem}.{node.name}({', '.join(a.arg for a in node.args.args)})", text


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def pretrain(model: LlamaForCausalLM, tokens: list[int]) -> float:
    """Train every parameter on random pieces of `tokens`; the mean loss of the last ten steps."""
    data, losses = torch.tensor(tokens), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    for _ in range(STEPS):
        starts = torch.randint(len(data) - LENGTH, (BATCH,))
        rows = torch.stack([data[start : start + LENGTH] for start in starts.tolist()])
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses[-10:]) / 10


def main(out: Path) -> None:
    """Write model, rows and recipe into `out`.

    Raises:
        SystemExit: `out` exists already.
    """
    if out.exists():
        raise SystemExit(f"{out} exists; remove it to make the model again")
    torch.manual_seed(0)
    functions = list(documented_functions())
    texts = [f"{signature}: {text}" for signature, text in functions]
    tokenizer = make_tokenizer(texts)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    print(f"pretraining a Llama of {model.num_parameters():,} parameters on {len(texts):,} docstrings ...", flush=True)
    loss = pretrain(model, [token for text in texts for token in [*tokenizer(text)["input_ids"], config.eos_token_id]])
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    rows = [{"prompt": f"{signature}:", "completion": f" {text.splitlines()[0]}"} for signature, text in functions]
    rows = random.Random(0).sample(rows, min(ROWS + VALIDATION, len(rows)))
    for name, part in (("validation", rows[:VALIDATION]), ("train", rows[VALIDATION:])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (out / "recipe.yaml").write_text(RECIPE.format(out=out), encoding="utf-8")
    print(f"{out}: model (loss {loss:.2f}), {len(rows) - VALIDATION:,} training rows, recipe.yaml")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/tiny-llama"))
