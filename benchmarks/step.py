"""Cost of a training step, KaSA folded and attached, and PEFT's LoRA: operations, saved bytes, peak memory, time.

python -m benchmarks.step [--quick]
"""

from __future__ import annotations

import gc
import statistics
import time
import weakref
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, addmm_flop

from benchmarks.harness import Row, arguments, duration, publish, ratio_in_turn
from benchmarks.models import llama
from kasatune import KasaConfig
from kasatune.kasa.layer import KasaLayer

RANK = 16


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations make, while they live; the peak of their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: weakref.WeakValueDictionary = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in known and storage._cdata not in self.seen:
                    self._count(storage)
        self.peak = max(self.peak, self.live)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.live += size
        self.seen[storage._cdata] = storage

        def freed(size: int = size) -> None:
            self.live -= size

        weakref.finalize(storage, freed)


def adapted(hidden: int, layers: int, config) -> nn.Module:
    return get_peft_model(llama(hidden, layers), config).train()


def step_of(model: nn.Module, ids: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        model(input_ids=ids).last_hidden_state.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def saved_bytes(model: nn.Module, ids: torch.Tensor) -> int:
    """Bytes kept from forward for backward, each storage once, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=ids).last_hidden_state.square().mean()
    return sum(kept.values())


# PyTorch's counter knows addmm and passes over addmm_, which the fused layer uses.
def _in_place(self_shape, a_shape, b_shape, out_shape=None, **kwargs) -> int:
    return addmm_flop(self_shape, a_shape, b_shape)


def measured(model: nn.Module, ids: torch.Tensor) -> dict[str, float]:
    step = step_of(model, ids)
    step()
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _in_place}) as flops:
        step()
    gc.collect()
    with LiveBytes() as memory:
        step()
    return {"operations": flops.get_total_flops(), "saved": saved_bytes(model, ids), "peak": memory.peak}


def penalty_seconds(model: nn.Module, ids: torch.Tensor, turns: int = 21) -> tuple[float, int]:
    """Median seconds of the penalty's gradient alone, of all layers, and their number.

    What an optimizer that changes nothing takes, with the penalty's hook and without it.
    """
    layers = [module for module in model.modules() if isinstance(module, KasaLayer)]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    model(input_ids=ids[:1, :8]).last_hidden_state.square().mean().backward()
    took: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(2 * turns):
        if turn % 2:
            model.base_model.enable_adapter_layers()
        else:
            model.base_model.disable_adapter_layers()
        start = time.perf_counter()
        optimizer.step()
        took[bool(turn % 2)].append(time.perf_counter() - start)
    model.base_model.enable_adapter_layers()
    return statistics.median(took[True]) - statistics.median(took[False]), len(layers)


def compiled_rows(ids: torch.Tensor, turns: int) -> list[Row]:
    """Steps through torch.compile, on a model small enough for its compilation to take less than a minute."""
    steps = {}
    for name, config in (
        ("LoRA", LoraConfig(r=RANK, target_modules="all-linear")),
        ("KaSA attached", KasaConfig(r=RANK, target_modules="all-linear")),
    ):
        torch._dynamo.reset()
        model = adapted(512, 2, config)
        model.forward = torch.compile(model.forward)
        steps[name] = step_of(model, ids)
        steps[name]()
    ours, peer, ratio = ratio_in_turn(steps["KaSA attached"], steps["LoRA"], turns)
    return [Row("KaSA attached / LoRA, both compiled, hidden size 512", duration(ours), duration(peer), ratio, None)]


def main() -> None:
    quick = arguments(__doc__ or "").quick
    hidden, layers, batch, length, turns = (512, 2, 4, 256, 9) if quick else (2048, 4, 4, 512, 3)
    ids = torch.randint(0, 512, (batch, length))
    targets = {"target_modules": "all-linear", "lora_alpha": 2 * RANK}
    models = {
        "LoRA": adapted(hidden, layers, LoraConfig(r=RANK, **targets)),
        "LoRA of rank 2r": adapted(hidden, layers, LoraConfig(r=2 * RANK, **targets)),
        "KaSA folded": adapted(hidden, layers, KasaConfig(r=RANK, truncation="fold", **targets)),
        "KaSA attached": adapted(hidden, layers, KasaConfig(r=RANK, **targets)),
    }
    counts = {name: measured(model, ids) for name, model in models.items()}
    rows = []
    for name, limits in (("KaSA folded", (1.01, 1.005, 1.01)), ("KaSA attached", (None, None, None))):
        for key, unit, limit in zip(("operations", "saved", "peak"), ("GFLOP", "MB", "MB"), limits, strict=True):
            ours, peer = counts[name][key], counts["LoRA"][key]
            scale = 1e9 if unit == "GFLOP" else 1e6
            what = {"operations": "operations", "saved": "bytes saved for backward", "peak": "peak of live bytes"}[key]
            rows.append(
                Row(
                    f"{name} / LoRA: {what}",
                    f"{ours / scale:.2f} {unit}",
                    f"{peer / scale:.2f} {unit}",
                    ours / peer,
                    limit,
                )
            )
    for name, peer, limit in (
        ("KaSA folded", "LoRA", 1.02),
        ("KaSA attached", "LoRA", 1.03),
        ("KaSA attached", "LoRA of rank 2r", 1.00),
    ):
        ours_s, peer_s, ratio = ratio_in_turn(step_of(models[name], ids), step_of(models[peer], ids), turns)
        rows.append(Row(f"{name} / {peer}: time of a step", duration(ours_s), duration(peer_s), ratio, limit))
    seconds, count = penalty_seconds(models["KaSA attached"], ids)
    share = seconds / ours_s
    rows.append(Row(f"the penalty of {count} layers / the step", duration(seconds), duration(ours_s), share, None))
    if not quick:
        rows += compiled_rows(torch.randint(0, 512, (4, 256)), 9)
    publish(
        "step",
        "A training step: KaSA against PEFT's LoRA",
        "python -m benchmarks.step",
        rows,
        f"Llama blocks of hidden size {hidden}, {layers} layers, all linear layers adapted, rank {RANK}, sequence "
        f"{length}, batch {batch}, float32, AdamW, the penalty included. The original weights that folding keeps for "
        "unloading are not counted.",
        quick=quick,
    )


if __name__ == "__main__":
    main()
