"""The files of a run, as other programs and other processes see them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kasatune.data.tokenize import encode
from kasatune.evaluation.task_model import TaskModel
from kasatune.recipes.schema import to_yaml
from kasatune.runs.directory import read_recipe
from kasatune.training.train import train
from tests.toys import make_recipe

TRAIN = """
import sys
from pathlib import Path
from kasatune.recipes.schema import load_recipe
from kasatune.training.train import train
for recipe in sys.argv[2:]:
    train(load_recipe(recipe), Path(sys.argv[1]) / Path(recipe).stem)
"""

LOAD = """
import json, sys
sys.modules["kasatune"] = None  # importing it fails, as where it is not installed
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

base, found = sys.argv[1], []
tokenizer = AutoTokenizer.from_pretrained(base)
for adapter, labels in zip(sys.argv[2::2], sys.argv[3::2]):
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=int(labels))
    model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        batch = tokenizer(["good nice sad", "awful poor"], padding=True, return_tensors="pt")
        found.append(model(**batch).logits.tolist())
assert "kasatune" not in {name for name, module in sys.modules.items() if module is not None}
print(json.dumps(found))
"""


def python(script: str, *arguments: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def deterministic_files(root: Path) -> dict[str, bytes]:
    names = {"metrics.json", "history.jsonl"}
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in names
    }


def test_the_same_seed_gives_the_same_bytes_whatever_the_hash_seed(bert, tmp_path):
    recipes = []
    for name in ("kasa", "lora", "bitfit"):
        targets = ["query", "key", "value", "output.dense", "intermediate.dense"]
        recipe = make_recipe(bert, tmp_path, method={"name": name, "target_modules": targets, "dropout": 0.1})
        train(recipe, tmp_path / "here" / name)
        recipes.append(tmp_path / f"{name}.yaml")
        recipes[-1].write_text(to_yaml(recipe))
    python(TRAIN, tmp_path / "there", *recipes, PYTHONHASHSEED="2" if os.environ.get("PYTHONHASHSEED") == "1" else "1")
    here, there = deterministic_files(tmp_path / "here"), deterministic_files(tmp_path / "there")
    assert len(here) == 9 + 4 + 4
    assert {name for name in here if here[name] != there.get(name)} == set()
    scores = [
        json.loads((tmp_path / place / "kasa/metrics.json").read_text())["metrics"] for place in ("here", "there")
    ]
    assert scores[0] == scores[1]


def test_another_seed_gives_another_run(bert, tmp_path):
    runs = [train(make_recipe(bert, tmp_path, epochs=1, seed=seed), tmp_path / str(seed)) for seed in (0, 1)]
    first, second = ((run / "kasa" / "adapter_model.safetensors").read_bytes() for run in runs)
    assert first != second


def test_the_adapter_loads_where_kasatune_is_not_installed(bert, tmp_path):
    runs = [train(make_recipe(bert, tmp_path / str(n), labels=n), tmp_path / f"run{n}") for n in (2, 5)]
    arguments = [argument for run, n in zip(runs, (2, 5), strict=True) for argument in (run / "adapter", n)]
    stock = json.loads(python(LOAD, bert, *arguments))
    for run, theirs in zip(runs, stock, strict=True):
        metrics = json.loads((run / "metrics.json").read_text())
        ours = TaskModel.for_saved_run(read_recipe(run), tuple(metrics["label_names"]), run)
        examples = encode(ours.base.tokenizer, ["good nice sad", "awful poor"], None, None, 32)
        np.testing.assert_allclose(np.array(theirs), ours.logits(examples), atol=1e-5)


@pytest.mark.parametrize("name", ["kasa", "lora", "peft-kasa"])
def test_no_file_of_a_run_is_a_pickle_or_names_a_temporary_place(name, bert, tmp_path):
    run = train(make_recipe(bert, tmp_path, method={"name": name}, epochs=1), tmp_path / "run")
    for path in run.rglob("*"):
        assert path.suffix in ("", ".safetensors", ".json", ".jsonl", ".yaml")
        if path.suffix in (".json", ".yaml"):
            assert "unfinished" not in path.read_text()
