"""Private CPU memory of each of two processes that share a model while it is loaded, adapted and sharded.

python -m benchmarks.process_memory

The files are bfloat16. Private memory is what a process does not share with others; weights that are memory-mapped from
the files do not count. Linux only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PROCESSES = 2
DTYPES = ("bfloat16", "float32")
MIB = 2**20


def own_memory() -> int:
    """Bytes of this process that lie in no file."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def make_model(folder: Path) -> int:
    """A random Llama of 230 million parameters in bfloat16; the bytes of its weights."""
    import torch
    from tests.text_toys import make_llama
    from transformers import AutoModelForCausalLM

    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12, "vocab_size": 20000}
    make_llama(folder, **shape, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return sum(parameter.nbytes for parameter in model.parameters())


def work(recipe_file: Path, out: Path) -> None:
    """What a run does before its first step, in one of the processes."""
    import torch

    from kasatune.distributed.fsdp import shard_model
    from kasatune.evaluation import task_model as prepare
    from kasatune.recipes.schema import load_recipe

    data: Any = SimpleNamespace(kind="generation", label_names=None)
    stages = {"begin": own_memory()}
    load = prepare.load_base

    def loading(*arguments: Any, **options: Any) -> Any:
        base = load(*arguments, **options)
        stages["loaded"] = own_memory()
        return base

    prepare.load_base = loading
    prepared = prepare.TaskModel.for_training(load_recipe(recipe_file), data, on_cpu=True)
    stages["adapted"] = own_memory()
    shard_model(prepared.model, prepared.base.model, torch.device("cpu"))
    stages["sharded"] = own_memory()
    if os.environ["RANK"] == str(PROCESSES - 1):
        out.write_text(json.dumps(stages), encoding="utf-8")


def main() -> None:
    """The table, in Markdown."""
    from tests.text_toys import make_text_recipe

    from kasatune.recipes.schema import to_yaml

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        size = make_model(folder / "llama")
        print(f"\nPrivate MiB of each of {PROCESSES} processes for {size / MIB:.0f} MiB of files:\n")
        print("| `model.dtype` | loaded | adapted | sharded |\n|---|---|---|---|")
        for dtype in DTYPES:
            recipe = make_text_recipe(folder / "llama", folder / "data", method={"r": 4})
            recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": dtype})})
            (folder / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
            own = ["-m", "benchmarks.process_memory", str(folder / "recipe.yaml"), str(folder / "out.json")]
            subprocess.run([*command, *own], check=True, stderr=subprocess.DEVNULL)
            stages = json.loads((folder / "out.json").read_text(encoding="utf-8"))
            grown = [(stages[name] - stages["begin"]) / MIB for name in ("loaded", "adapted", "sharded")]
            print(f"| {dtype} | " + " | ".join(f"{value:.0f}" for value in grown) + " |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        work(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        main()
