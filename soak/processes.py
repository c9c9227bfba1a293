"""Train one recipe on one, two and four processes under torchrun, replicated and sharded, and compare the results.

python -m soak.processes [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file
from tests.toys import make_bert, make_recipe

from kasatune.io.run_layout import HISTORY, METRICS
from kasatune.recipes.schema import to_yaml
from soak.record import write

METHODS = ("kasa", "lora", "full")
LIMIT = 1e-5


SHARDING = {
    "replicated (DDP)": {},
    "sharded (FSDP2)": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    "sharded (ZeRO-3)": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}


def run(recipe: Path, out: Path, processes: int, *, sharding: str) -> None:
    """`kasatune train` under torchrun with one kind of sharding; a failure shows the output."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    environment = {**os.environ, **SHARDING[sharding]}
    command = [sys.executable, *launcher, "-m", "kasatune", "train", str(recipe), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=900)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr[-4000:]}")


def distance(run_dir: Path, alone: Path) -> tuple[float, float, float]:
    """Return the largest differences of losses and scores, which are judged, and of trained weights, which are not."""
    return (
        max(abs(one - other) for one, other in zip(_losses(run_dir), _losses(alone), strict=True)),
        max(abs(value - _metrics(alone)[name]) for name, value in _metrics(run_dir).items()),
        max(float((tensor - _weights(alone)[name]).abs().max()) for name, tensor in _weights(run_dir).items()),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train every method on every number of processes; return exit status 1 if a result differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="KaSA on two processes, without writing the record")
    given = parser.parse_args(argv)
    began = time.perf_counter()
    rows, lost, used = [], 0, 0
    with tempfile.TemporaryDirectory(prefix="kasatune-soak-") as folder:
        place = Path(folder)
        bert = make_bert(place / "bert")
        for method in METHODS[:1] if given.quick else METHODS:
            settings = make_recipe(
                bert,
                place / "data",
                train=27,
                model_options={"dropout": 0},
                method={"name": method},
                gradient_accumulation=2,
                max_grad_norm=1.0,
            )
            recipe = place / f"{method}.yaml"
            recipe.write_text(to_yaml(settings), encoding="utf-8")
            alone = place / f"{method}-1"
            run(recipe, alone, 1, sharding="replicated (DDP)")
            for count in (2,) if given.quick else (2, 4):
                for number, sharding in enumerate(SHARDING):
                    out = place / f"{method}-{count}-{number}"
                    run(recipe, out, count, sharding=sharding)
                    differences = distance(out, alone)
                    used += count
                    lost += int(max(differences[:2]) > LIMIT)
                    rows.append([method, count, sharding, *(f"{value:.1e}" for value in differences)])
                    print(*rows[-1], flush=True)
    write(
        part="processes",
        title="Several processes",
        order=30,
        command="python -m soak.processes",
        text=(
            "One recipe, started by `torchrun` on the CPU (gloo), float32, dropout 0, 27 rows in steps of 8 of "
            "two pieces, so that the last step of an epoch has fewer rows than places. The columns are the "
            "largest differences from a single process: of the loss of any step, of any score, of any trained "
            f"weight. Losses and scores are judged: a difference above {LIMIT:g} counts as lost. The weights are "
            "shown and not judged, because in `full` one may differ by more: the bias of the keys has no "
            "gradient except rounding, and Adam turns that into full steps. Resuming with another number of "
            "processes is tested (`tests/training/test_processes.py`, "
            "`tests/training/test_processes_zero3.py`): saved by two with the model sharded, resumed by one and "
            "by four."
        ),
        columns=["method", "processes", "model", "loss", "score", "weight"],
        rows=rows,
        totals={"processes used": used, "lost": lost},
        findings=[
            "In the last step of an epoch, rows repeated to fill all places counted twice.",
            "A loss that was not finite in one process left the others waiting: all now end at the same step.",
            "Every process decomposed every weight: the processes now share the work.",
        ],
        seconds=time.perf_counter() - began,
        quick=given.quick,
    )
    return int(lost > 0)


def _losses(run_dir: Path) -> list[float]:
    events = [json.loads(line) for line in (run_dir / HISTORY).read_text(encoding="utf-8").splitlines()]
    return [event["loss"] for event in events if event["event"] == "train"]


def _metrics(run_dir: Path) -> dict[str, float]:
    return json.loads((run_dir / METRICS).read_text(encoding="utf-8"))["metrics"]


def _weights(run_dir: Path) -> dict:
    return {
        f"{path.parent.name}/{name}": tensor.float()
        for path in sorted(run_dir.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


if __name__ == "__main__":
    raise SystemExit(main())
