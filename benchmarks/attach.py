"""Time to attach a new adapter to a model: kasatune's KaSA and PEFT's KaSA.

python -m benchmarks.attach [--quick]
"""

from __future__ import annotations

from collections.abc import Callable

import peft
from peft import LoraConfig, get_peft_model
from torch import nn

from benchmarks.harness import Row, arguments, duration, publish, ratio_in_turn
from benchmarks.models import llama, minilm
from kasatune import KasaConfig

RANK = 8


def attaching(make: Callable[[], nn.Module], config: Callable[[], peft.PeftConfig]) -> Callable[[], peft.PeftModel]:
    """Attach to a base that is made once; unloading afterwards is not part of it."""
    base = make()
    return lambda: get_peft_model(base, config())


def main() -> None:
    quick = arguments(__doc__ or "").quick
    cases = [
        ("MiniLM", minilm, 1 / 3, 7),
        ("Llama blocks of hidden size 1024, 2 layers", lambda: llama(1024, 2), 1 / 4, 3),
    ]
    if not quick:
        cases.append(("Llama blocks of hidden size 4096, 1 layer", lambda: llama(4096, 1), 1 / 8, 1))
    rows = []
    for name, make, target, turns in cases:
        ours, peer, ratio = ratio_in_turn(
            attaching(make, lambda: KasaConfig(r=RANK, target_modules="all-linear")),
            attaching(make, lambda: LoraConfig(r=RANK, target_modules="all-linear", kasa_config=peft.KasaConfig())),
            turns,
            warmup=1 if turns > 1 else 0,
            undo=lambda model: model.unload(),
        )
        rows.append(
            Row(f"{name}: attach, all linear layers, r = {RANK}", duration(ours), duration(peer), ratio, target)
        )
    publish(
        "attach",
        "Attaching KaSA to a model: kasatune against PEFT",
        "python -m benchmarks.attach",
        rows,
        "PEFT truncates the same base again at every turn, which takes it as long as the first time. Both sides grow "
        "in proportion to the number of layers.",
        quick=quick,
    )


if __name__ == "__main__":
    main()
