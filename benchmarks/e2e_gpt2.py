"""E2E with KaSA on a small model of GPT-2's architecture, pretrained here on Alpaca's texts: scores before and after.

python -m benchmarks.e2e_gpt2 ALPACA.json E2E_FOLDER RUN_FOLDER [--page docs/results/e2e-gpt2.md] [--every N]

ALPACA.json holds Alpaca's rows, E2E_FOLDER train.txt, valid.txt and test.txt. Next to RUN_FOLDER, RUN_FOLDER-random
is the model with random weights and a byte-level vocabulary from Alpaca's texts, RUN_FOLDER-pretraining the run that
trains all parameters on these texts, and RUN_FOLDER-model the resulting checkpoint. KaSA is then trained on E2E by the
recipe `e2e/gpt2-tiny`, and the test set is scored twice, as in benchmarks.e2e. Finished parts are not repeated.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks.e2e import Subject, shown
from kasatune.cli.progress_bar import make_progress
from kasatune.data.readers.conversations import alpaca_message
from kasatune.io.atomic import write_json
from kasatune.io.run_layout import CHECKPOINT
from kasatune.recipes.schema import Recipe
from kasatune.reports import formatting as words
from kasatune.runs.metrics import read_metrics
from kasatune.training.train import train

END = "<|endoftext|>"
PIECES, WIDTH, LAYERS, HEADS, POSITIONS = 2048, 192, 4, 6, 512
STEPS = 700


def plain_text(alpaca: Path, to: Path) -> list[dict[str, str]]:
    """Alpaca's rows as a file of prompts and completions, without those that have no output."""
    rows = [
        {"prompt": alpaca_message(row["instruction"], row.get("input")), "completion": f"\n{row['output']}"}
        for row in json.loads(alpaca.read_text(encoding="utf-8"))
        if row["output"].strip()
    ]
    write_json(to, rows)
    return rows


def random_model(rows: list[dict[str, str]], folder: Path) -> None:
    """GPT-2 from a configuration, its weights drawn, with byte pairs learnt from `rows` as GPT-2's own were."""
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    bytes_ = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=PIECES, special_tokens=[END], initial_alphabet=bytes_, show_progress=False)
    pairs.train_from_iterator((text for row in rows for text in row.values()), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pairs, bos_token=END, eos_token=END, unk_token=END, model_max_length=POSITIONS
    )
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=PIECES,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=POSITIONS,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def pretrained(alpaca: Path, run: Path) -> Path:
    """The folder of the model that has read Alpaca."""
    random, pretraining, model = (run.with_name(f"{run.name}-{name}") for name in ("random", "pretraining", "model"))
    text = run.with_name(f"{run.name}-text.json")
    text.parent.mkdir(parents=True, exist_ok=True)
    rows = plain_text(alpaca, text)
    if not random.is_dir():
        random_model(rows, random)
    recipe = Recipe.model_validate(
        {
            "model": {"name": str(random), "dropout": 0},
            "task": {
                "name": "text-generation",
                "train": str(text),
                "validation": 0.02,
                "prompt": "prompt",
                "completion": "completion",
                "loss_on": "everything",
                "max_length": 128,
                "max_eval": 64,
            },
            "method": {"name": "full"},
            "training": {
                "max_steps": STEPS,
                "batch_size": 16,
                "eval_batch_size": 32,
                "learning_rate": 2e-3,
                "weight_decay": 0.01,
                "max_grad_norm": 1.0,
                "schedule": "cosine",
                "select": "last",
                "device": "cpu",
            },
            "generation": {"max_new_tokens": 16},
            "output": str(pretraining),
        }
    )
    train(recipe, pretraining, resume=pretraining.is_dir(), display=make_progress())
    shutil.copytree(random, model, dirs_exist_ok=True)
    return shutil.copytree(pretraining / CHECKPOINT, model, dirs_exist_ok=True)


def subject(run: Path, every: int) -> Subject:
    metrics = read_metrics(run.with_name(f"{run.name}-pretraining"))
    rows = len(json.loads(run.with_name(f"{run.name}-text.json").read_text(encoding="utf-8")))
    size, read = metrics["trainable_parameters"], metrics["metrics"]
    return Subject(
        "e2e/gpt2-tiny",
        f"""# E2E with GPT-2's architecture

GPT-2's architecture, whose layers are Conv1D, from a configuration: {LAYERS} blocks of width {WIDTH}, {size:,}
parameters with the embedding of {PIECES:,} byte pairs. It was made with random weights and trained in full on
Alpaca's texts, so that there is a base to adapt, if a poor one. KaSA teaches it to tell the facts of a restaurant, the
task of the E2E challenge. GPT-2 medium and large, the paper's models, were not run: this page shows the way and repeats
none of the paper's numbers. The same with [a small Llama](e2e.md).
""",
        "the limit of the LoRA paper's code, 4 tokens, is two or three words here",
        (
            f"The base read {rows:,} rows of Alpaca, instruction, input and output, for {STEPS} steps of 16 rows of up"
            f" to 128 pieces: loss {read['loss']:.4f}, perplexity {read['perplexity']:.1f} for each piece on 64 rows"
            f" held back; {words.duration(metrics['seconds']['train'])}. It has never seen E2E, and its byte pairs come"
            " from Alpaca too.",
        ),
        "python -m benchmarks.e2e_gpt2 path/to/alpaca.json path/to/e2e runs/e2e-gpt2-tiny"
        f" --page docs/results/e2e-gpt2.md{'' if every == 1 else f' --every {every}'}",
        every,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("alpaca", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--every", type=int, default=1, help="score one in so many inputs of the test set")
    arguments = parser.parse_args()
    model = pretrained(arguments.alpaca, arguments.run)
    shown(subject(arguments.run, arguments.every), model, arguments.data, arguments.run, (), arguments.page)


if __name__ == "__main__":
    main()
