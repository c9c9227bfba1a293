"""Time to load a saved adapter: kasatune's KaSA, PEFT's LoRA of rank 2r and PEFT's KaSA.

python -m benchmarks.load [--quick]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import peft
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from benchmarks.harness import Row, arguments, duration, publish, ratio_in_turn
from benchmarks.models import llama, minilm
from kasatune import KasaConfig

RANK = 8


def saved(make: Callable[[], nn.Module], config: peft.PeftConfig, folder: Path) -> Callable[[], PeftModel]:
    """Save an adapter, and give back what loads it onto a base that is already there."""
    get_peft_model(make(), config).save_pretrained(str(folder), save_embedding_layers=False)
    base = make()
    return lambda: PeftModel.from_pretrained(base, str(folder))


def main() -> None:
    quick = arguments(__doc__ or "").quick
    cases: list[tuple[str, Callable[[], nn.Module], float, int]] = [("MiniLM", minilm, 1 / 20, 7)]
    if not quick:
        cases.append(("Llama of 2048 x 8192, 2 layers", lambda: llama(2048, 2, intermediate=8192), 1 / 200, 3))
    rows = []
    for name, make, target, turns in cases:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            targets = {"target_modules": "all-linear"}
            ours = saved(make, KasaConfig(r=RANK, **targets), root / "kasa")
            lora = saved(make, LoraConfig(r=2 * RANK, **targets), root / "lora")
            pefts = saved(make, LoraConfig(r=RANK, kasa_config=peft.KasaConfig(), **targets), root / "peft-kasa")
            for peer_name, peer, limit, count in (
                (f"PEFT's LoRA of rank {2 * RANK}", lora, 1.3, 4 * turns + 1),
                ("PEFT's KaSA", pefts, target, turns if turns > 3 else 1),
            ):
                # What takes a minute has no need to warm up; ours has been called by then.
                warmup = min(1, count - 1)
                mine, theirs, ratio = ratio_in_turn(ours, peer, count, warmup, undo=lambda model: model.unload())
                rows.append(Row(f"{name}: load, against {peer_name}", duration(mine), duration(theirs), ratio, limit))
    publish(
        "load",
        "Loading a KaSA adapter: kasatune against PEFT",
        "python -m benchmarks.load",
        rows,
        f"All linear layers, r = {RANK}; the base model is in memory already. Both sides grow in proportion to the "
        "number of layers, PEFT's KaSA by a full SVD of every weight.",
        quick=quick,
    )


if __name__ == "__main__":
    main()
