"""The load-balancing loss of a router, its expert loads over training, and routing statistics."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from kasatune.errors import InputError

_LIVE: weakref.WeakSet[RouterLoad] = weakref.WeakSet()


class RouterLoad:
    """Which experts a router chooses: the loads f of the balance loss, and totals for reports.

    The balance loss of a router is N sum_i f_i P_i. P_i is the mean probability of expert i over the items of the
    micro-batch, and f_i the share of the choices that fell on it in the optimizer step before, 1/N in the first one. A
    share of the same step would make the gradient depend on how the step is divided into micro-batches; with that of
    the step before, the loss is a mean over items, as a task's loss is. In a distributed run each process uses the
    choices of its own rows, unless `sum_choices_over_processes` is called before each optimizer step.

    Attributes:
        owner: the module whose `mixture_router[adapter_name]` is the router's weight, by which an optimizer step is
            recognized.
        adapter_name: the adapter.
        shares: f, (N,); None for 1/N.
        step_counts: choices since the last optimizer step, (N,).
        counts: choices since `reset`, (N,), weighted by items.
        entropy: sum over items of -sum_i p_i log p_i since `reset`; None before the first item.
        items: number of items since `reset`.
        STATE: names of the values that a resumed run needs.
    """

    STATE = ("shares", "counts", "entropy", "items")

    def __init__(self, owner: Any, adapter_name: str) -> None:
        self.owner = owner
        self.adapter_name = adapter_name
        self.shares: Tensor | None = None
        self.step_counts: Tensor | None = None
        self.reset()
        _LIVE.add(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> RouterLoad:
        """A copy of the loads for the copied module, which the step hook finds too."""
        copied = RouterLoad(memo.get(id(self.owner), self.owner), self.adapter_name)
        memo[id(self)] = copied
        for name in ("shares", "step_counts", "counts", "entropy", "items"):
            value = getattr(self, name)
            setattr(copied, name, value.clone() if isinstance(value, Tensor) else value)
        return copied

    def reset(self) -> None:
        """Start the totals again."""
        self.counts: Tensor | None = None
        self.entropy: Tensor | None = None
        self.items: Tensor | float = 0.0

    def state(self) -> dict[str, Tensor]:
        """Those of the values in `STATE` that exist, for a checkpoint."""
        totals = {"counts": self.counts, "entropy": self.entropy, "shares": self.shares}
        if self.counts is not None:
            totals["items"] = torch.tensor(float(self.items), dtype=torch.float64)
        return {name: value for name, value in totals.items() if value is not None}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned; checkpoints of earlier versions hold the shares alone."""
        self.reset()
        self.shares = state["shares"].clone() if "shares" in state else None
        if "counts" in state:
            self.counts, self.entropy = state["counts"].clone(), state["entropy"].clone()
            self.items = float(state["items"])

    @property
    def parameter(self) -> Tensor | None:
        """The router's weight; None after its adapter was deleted."""
        return dict(self.owner.mixture_router).get(self.adapter_name)

    @torch.no_grad()
    def add(self, probabilities: Tensor, chosen: Tensor, weights: Tensor | None, balanced: Tensor | None) -> None:
        """Count the choices of one forward pass.

        Args:
            probabilities: (items, N), float32.
            chosen: (items, N), 1 / top_k for the chosen experts and 0 elsewhere, or the weights of dense experts.
            weights: (items,), the weight of each item, summing to their number; None for 1.
            balanced: (items, N), the choices that count for the shares of the balance loss; None outside training.
        """
        counts = _sum(chosen, weights)
        entropy = -torch.xlogy(probabilities, probabilities).sum(-1)
        self.counts = counts if self.counts is None else self.counts.to(counts) + counts
        total = entropy.sum() if weights is None else weights @ entropy
        self.entropy = total if self.entropy is None else self.entropy.to(total) + total
        self.items = self.items + (float(len(probabilities)) if weights is None else weights.sum())
        if balanced is not None:
            step = counts if balanced is chosen else _sum(balanced, weights)
            self.step_counts = step if self.step_counts is None else self.step_counts + step

    def loss(self, mean_probability: Tensor) -> Tensor:
        """N sum_i f_i P_i for the mean probabilities P (N,)."""
        if self.shares is None:
            return mean_probability.sum()
        return len(mean_probability) * (self.shares.to(mean_probability) * mean_probability).sum()

    def end_step(self) -> None:
        """Make the shares of the step that ends those of the next one."""
        if self.step_counts is not None:
            self.shares = self.step_counts / self.step_counts.sum().clamp_min(1e-9)
            self.step_counts = None

    def statistics(self) -> dict[str, Any] | None:
        """The share of each expert and the mean entropy in nats since `reset`; None before the first item."""
        if self.counts is None or self.entropy is None:
            return None
        total, items = float(self.counts.sum()), float(self.items)
        return {
            "load": [float(count) / max(total, 1e-9) for count in self.counts],
            "entropy": float(self.entropy) / max(items, 1e-9),
            "items": round(items),
        }


def _sum(choices: Tensor, weights: Tensor | None) -> Tensor:
    return choices.float().sum(0) if weights is None else weights @ choices.float()


def install_step_hook() -> None:
    """Make every optimizer of this process end the step of the routers whose weights it holds."""
    register_optimizer_step_post_hook(_after_step)


def _after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    waiting = [load for load in _LIVE if load.step_counts is not None]
    if not waiting:
        return
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    stepped = [load for load in waiting if id(load.parameter) in held]
    # Engines that flatten parameters hold none of them by identity; one model is trained then.
    for load in stepped or waiting:
        load.end_step()


def sum_choices_over_processes(model: nn.Module, adapter_name: str = "default") -> None:
    """Add up the choices since the last optimizer step over the processes of a distributed run; a collective call.

    Call it before each optimizer step, in every process; runs of kasatune do. It does nothing in a single process.

    Args:
        model: a model with a mixture of experts, of which every process trains the same adapter.
        adapter_name: the adapter.
    """
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    counted = [(load, counts) for _, load in routers(model, adapter_name) if (counts := load.step_counts) is not None]
    for device in dict.fromkeys(counts.device for _, counts in counted):  # in one order in every process
        members = [(load, counts) for load, counts in counted if counts.device == device]
        total = torch.cat([counts for _, counts in members])
        distributed.all_reduce(total)
        for (load, _), counts in zip(members, total.split([len(counts) for _, counts in members]), strict=True):
            load.step_counts = counts


def balance_loss(model: nn.Module) -> Tensor | None:
    """The weighted balance loss of the last forward pass in training, a scalar with gradient.

    It is returned once, and only where the model has not added it to its own loss: that happens if the model computes
    a loss from `labels`. Add it to your own loss, divided as that one is.

    Args:
        model: a model with a mixture of experts, wrapped (DDP, PeftModel) or not.

    Returns:
        The loss; None if there is none.

    Raises:
        InputError: the model has no mixture.
    """
    return forward_pass_of(model).take_loss()


def forward_pass_of(model: nn.Module) -> Any:
    """The `ForwardPass` of the mixture in a model.

    Raises:
        InputError: the model has no mixture.
    """
    for module in model.modules():
        passes = vars(module).get("mixture_pass")
        if passes is not None:
            return passes
    raise InputError(
        f"{type(model).__name__} has no mixture of experts; attach one with peft.get_peft_model(model, MoeLoraConfig())"
    )


def routers(model: nn.Module, adapter_name: str = "default") -> Iterator[tuple[str, RouterLoad]]:
    """The loads of every router of an adapter, by the name of the layer or block in the base model."""
    for name, module in model.named_modules():
        loads: dict[str, RouterLoad] = vars(module).get("router_loads", {})
        if adapter_name in loads:
            yield name.removeprefix("base_model.model.").removesuffix(".prompt_router"), loads[adapter_name]


@contextmanager
def record_routing(model: nn.Module, adapter_name: str = "default") -> Iterator[dict[str, dict[str, Any]]]:
    """Count the choices of all routers inside the context, also in evaluation mode.

    Args:
        model: a model with a mixture of experts.
        adapter_name: the adapter.

    Yields:
        An empty mapping, which at the end holds for each router, by layer or block name: `load`, the share of each
        expert; `entropy` in nats, at most log N; `items`, how many tokens (or prompts) were routed.

    Raises:
        InputError: the model has no mixture.
    """
    passes = forward_pass_of(model)
    saved = {name: (load, load.counts, load.entropy, load.items) for name, load in routers(model, adapter_name)}
    for load, *_ in saved.values():
        load.reset()
    statistics: dict[str, dict[str, Any]] = {}
    recorded, passes.recording = passes.recording, True
    try:
        yield statistics
    finally:
        passes.recording = recorded
        for name, (load, counts, entropy, items) in saved.items():
            entry = load.statistics()
            if entry is not None:
                statistics[name] = entry
            load.counts, load.entropy, load.items = counts, entropy, items
