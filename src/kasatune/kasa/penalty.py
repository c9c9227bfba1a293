"""The penalty beta sum(sigma^2) + gamma (||A A^T - I|| + ||B^T B - I||) of a model, and its optimizer-step hook."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from kasatune.distributed import zero3
from kasatune.distributed.gather_scatter import gather_full, shard_like
from kasatune.distributed.zero3 import is_partitioned
from kasatune.errors import InputError
from kasatune.kasa.functional import Convention, Factors, PenaltyTerms, penalty_gradients, penalty_terms
from kasatune.kasa.layer import LIVE_LAYERS, KasaLayer
from kasatune.wording import agree, counted

_KEY = "penalty"


class _GroupKey(NamedTuple):
    """The properties that layers must share to be penalized in one batch."""

    beta: float
    gamma: float
    convention: Convention
    layer_count: int
    device: torch.device


def regularization(model: nn.Module, adapter_name: str | None = None) -> Tensor:
    """Beta sum(sigma^2) + gamma (||A A^T - I|| + ||B^T B - I||) over the layers of the active adapter.

    Eq. 12 of the paper without the task loss: a sum over layers in the convention "paper", a mean in "authors".

    Args:
        model: a model with KaSA layers, wrapped (DDP, PeftModel) or not.
        adapter_name: the adapter; None for the active one.

    Returns:
        A scalar with gradient, in float32 or wider for any dtype of the model. With penalty="step" it is for
        monitoring only: a backward pass through it would apply the penalty twice, and warns.

    Raises:
        InputError: no layer of the model has such an adapter; or penalty="loss" under ZeRO-3.
    """
    layers = _adapters(model, adapter_name)
    if any(layer.settings[name].penalty == "loss" and is_partitioned(layer.kasa_A[name]) for layer, name in layers):
        raise InputError("penalty='loss': no gradient reaches factors that ZeRO-3 has partitioned; use penalty='step'")
    terms = _weighted_terms(layers)
    total = terms.sigma + terms.orthogonality
    if total.requires_grad and any(layer.settings[name].penalty == "step" for layer, name in layers):
        total.register_hook(_report_doubled)
    return total


def regularization_terms(model: nn.Module, adapter_name: str | None = None) -> PenaltyTerms:
    """The two terms of `regularization`, weighted by beta and gamma.

    Returns:
        `sigma` and `orthogonality`, scalars with gradient.

    Raises:
        InputError: no layer of the model has such an adapter.
    """
    return _weighted_terms(_adapters(model, adapter_name))


def install_step_hook() -> None:
    """Make every optimizer of this process add the gradient of the penalty at the start of its step."""
    register_optimizer_step_pre_hook(_before_step)


def _before_step(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    layers = [layer for layer in LIVE_LAYERS if _in_step_mode(layer)]
    if not layers:
        return None
    step = zero3.buffer_step(optimizer, (p for layer in layers for p in _active(layer)))
    if step is not None:
        # Every process must gather in the same order, and a weak set has no order.
        layers = sorted((layer for layer in layers if step.holds(_active(layer).A)), key=_zero3_id)
        zero3.add_gradients(step, _KEY, lambda: _gradients(layers))
        for layer in layers:
            layer.needs_step = False
        return None
    positions = {
        id(p): position for position, p in enumerate(p for group in optimizer.param_groups for p in group["params"])
    }
    stepped = [layer for layer in layers if any(id(p) in positions for p in _active(layer) if p.requires_grad)]
    # A weak set has no order; with the optimizer's order two runs add the same numbers in the same order.
    stepped.sort(key=lambda layer: min(positions.get(id(p), len(positions)) for p in _active(layer)))
    if not stepped:
        _report_missed(optimizer, layers)
        return None
    for layer in stepped:
        layer.needs_step = False
    # PyTorch passes the hook the arguments of the unbound method: the optimizer itself comes first.
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        _add_gradients(optimizer, stepped, positions)
        return None
    _report_closure(optimizer)
    wrapped = _penalized_closure(closure, optimizer, stepped, positions)
    if len(args) > 1:
        return (args[0], wrapped, *args[2:]), kwargs
    return args, {**kwargs, "closure": wrapped}


def _in_step_mode(layer: KasaLayer) -> bool:
    # A layer under construction is in LIVE_LAYERS already and has no settings yet.
    settings = layer.__dict__.get("settings")
    if not settings or layer.disable_adapters or layer.merged_adapters or not layer.active_adapters:
        return False
    active = settings.get(layer.active_adapters[0])
    return active is not None and active.penalty == "step"


def _active(layer: KasaLayer) -> Factors:
    return layer.factors(layer.active_adapters[0])


def _zero3_id(layer: KasaLayer) -> int:
    return zero3.param_id(_active(layer).A)


def _add_gradients(optimizer: Optimizer, stepped: Iterable[KasaLayer], positions: dict[int, int]) -> None:
    # Fused optimizers divide by the loss scale after this hook.
    scale = getattr(optimizer, "grad_scale", None)
    for parameter, gradient in _gradients(stepped):
        if id(parameter) in positions:
            _accumulate(parameter, gradient if scale is None else gradient * scale)


def _gradients(stepped: Iterable[KasaLayer]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every trained factor of the layers' active adapters with the full gradient of the penalty."""
    for weights, members in _grouped([(layer, layer.active_adapters[0]) for layer in stepped]).items():
        factors = [layer.factors(name) for layer, name in members]
        share = _share(weights, len(members))
        gradients = penalty_gradients(
            [_full(f) for f in factors],
            weights.beta * share,
            weights.gamma * share,
            weights.convention,
        )
        for parameters, penalty in zip(factors, gradients, strict=True):
            for parameter, gradient in zip(parameters, penalty, strict=True):
                if parameter.requires_grad:
                    yield parameter, gradient


@torch.no_grad()
def _accumulate(parameter: Tensor, gradient: Tensor) -> None:
    # A wrapped optimizer runs this hook twice: a gradient unchanged since the first run already contains the penalty.
    if getattr(parameter.grad, "_kasa_version", None) == getattr(parameter.grad, "_version", -1):
        return
    gradient = shard_like(gradient, parameter)
    if parameter.grad is None:
        parameter.grad = gradient.to(parameter.dtype)
    else:
        parameter.grad.add_(gradient.to(parameter.grad.dtype))
    parameter.grad._kasa_version = parameter.grad._version  # pyright: ignore[reportAttributeAccessIssue]


def _penalized_closure(
    closure: Callable[[], Any], optimizer: Optimizer, stepped: list[KasaLayer], positions: dict[int, int]
) -> Callable[[], Any]:
    """The closure with the penalty in its gradients and in the loss that it returns."""

    @functools.wraps(closure)
    def penalized() -> Any:
        loss = closure()
        _add_gradients(optimizer, stepped, positions)
        for layer in stepped:
            layer.needs_step = False
        return None if loss is None else _added_to(loss, stepped)

    return penalized


@torch.no_grad()
def _added_to(loss: Any, stepped: list[KasaLayer]) -> Any:
    """The return value of a closure, a tensor or a number, plus the penalty of the layers."""
    terms = _weighted_terms([(layer, layer.active_adapters[0]) for layer in stepped])
    penalty = terms.sigma + terms.orthogonality
    return loss + (penalty.to(loss.device) if isinstance(loss, Tensor) else penalty.item())


def _weights(layer: KasaLayer, adapter_name: str) -> _GroupKey:
    settings = layer.settings[adapter_name]
    return _GroupKey(
        settings.beta,
        settings.gamma,
        settings.convention,
        settings.layer_count,
        layer.kasa_A[adapter_name].device,
    )


def _adapters(model: nn.Module, adapter_name: str | None) -> list[tuple[KasaLayer, str]]:
    """The layers that hold the named adapter, or an active one if None, each with the adapter's name."""
    layers = [
        (layer, adapter_name or layer.active_adapters[0])
        for layer in model.modules()
        if isinstance(layer, KasaLayer) and (adapter_name or layer.active_adapters)
    ]
    layers = [(layer, name) for layer, name in layers if name in layer.kasa_A]
    if not layers:
        wanted = "an active KaSA adapter" if adapter_name is None else f"a KaSA adapter named {adapter_name!r}"
        raise InputError(f"regularization: no layer of the model has {wanted}; create one with peft.get_peft_model")
    return layers


def _weighted_terms(layers: Iterable[tuple[KasaLayer, str]]) -> PenaltyTerms:
    """Both terms times beta and gamma, which may differ between layers; on the device of the first layer."""
    sigma, orthogonality = [], []
    for weights, members in _grouped(layers).items():
        terms = penalty_terms([_full(layer.factors(name)) for layer, name in members], weights.convention)
        share = _share(weights, len(members))
        sigma.append(weights.beta * share * terms.sigma)
        orthogonality.append(weights.gamma * share * terms.orthogonality)
    device = sigma[0].device
    return PenaltyTerms(
        torch.stack([t.to(device) for t in sigma]).sum(), torch.stack([t.to(device) for t in orthogonality]).sum()
    )


def _grouped(layers: Iterable[tuple[KasaLayer, str]]) -> dict[_GroupKey, list[tuple[KasaLayer, str]]]:
    groups: dict[_GroupKey, list[tuple[KasaLayer, str]]] = {}
    for layer, name in layers:
        groups.setdefault(_weights(layer, name), []).append((layer, name))
    return groups


def _share(weights: _GroupKey, members: int) -> float:
    """Members / layer_count in a mean over the adapter's layers ("authors"); 1 in a sum ("paper")."""
    return members / weights.layer_count if weights.convention == "authors" else 1.0


def _full(factors: Factors) -> Factors:
    """The factors as full tensors, gathered where they are sharded."""
    return Factors(*(gather_full(factor) for factor in factors))


def _report_missed(optimizer: Optimizer, layers: list[KasaLayer]) -> None:
    missed = [layer for layer in layers if layer.needs_step and any(p.requires_grad for p in _active(layer))]
    if not missed or getattr(optimizer, "_kasa_reported", False):
        return
    optimizer._kasa_reported = True  # pyright: ignore[reportAttributeAccessIssue]
    warnings.warn(
        f"{type(optimizer).__name__} holds no KaSA parameters of the {counted(len(missed), 'layer')} that "
        f"{agree(len(missed), 'was', 'were')} just "
        "trained: their penalty is not applied. If the training engine flattens parameters, use "
        "KasaConfig(penalty='loss') and add regularization(model) to the loss; if another optimizer holds them, ignore "
        "this warning.",
        stacklevel=4,
    )


def _report_closure(optimizer: Optimizer) -> None:
    if getattr(optimizer, "_kasa_reported", False):
        return
    optimizer._kasa_reported = True  # pyright: ignore[reportAttributeAccessIssue]
    warnings.warn(
        f"{type(optimizer).__name__} was given a closure, which computes gradients inside the step: the KaSA penalty "
        "is added to the closure's gradients and to the loss it returns. To add it yourself use "
        "KasaConfig(penalty='loss') and regularization(model).",
        stacklevel=4,
    )


def _report_doubled(gradient: Tensor) -> None:
    warnings.warn(
        "regularization(model) is part of the loss, and KasaConfig(penalty='step') adds the same gradient at the "
        "optimizer step: the KaSA penalty is applied twice. Remove it from the loss, or use penalty='loss'.",
        stacklevel=2,
    )
