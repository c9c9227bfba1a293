"""MiLoRA as a mixture: each LoRA of a block is an expert, and a router chooses among them once for a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kasatune.errors import InputError
from kasatune.mixtures.layer import MixtureLayer, MixtureModule, draw_device, normal_rows, uniform_rows
from kasatune.mixtures.prompt_pass import Decision, PromptPass

NUMERATOR = (0.0, 0.5, 0.4, 0.0775, 0.0, 0.0, 0.0)
DENOMINATOR = (0.0, 0.155, 0.0, 0.0, 0.0)
"""a_0..a_6 and b_1..b_5 of the rational activation at the start: GELU within 0.04 on [-3, 3], linear beyond."""
CHILD = "prompt_router"
"""Name of the router in its block."""


class MiloraMoeLayer(MixtureLayer):
    """y = W x + s w_m B A x, w_m the weight of this layer's expert in the decision of its block (`PromptRouter`).

    In evaluation, an expert that no row of the batch selects is not computed. In training all are, so that every
    process of a distributed run has the same gradients to reduce.

    Parameters: mixture_A (r, in), mixture_B (out, r).

    Attributes:
        place: by adapter, the name of the block and the number of this layer's expert in it.
    """

    adapter_layer_names = ("mixture_A", "mixture_B")
    other_param_names = ("place", *MixtureLayer.other_param_names)

    mixture_pass: PromptPass

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.place: dict[str, tuple[str, int]] = {}

    def initial_parameters(self, config: Any) -> Mapping[str, Tensor]:
        """As LoRA: A uniform, B = 0."""
        return {
            "mixture_A": uniform_rows(config.r, self.in_features),
            "mixture_B": torch.zeros(self.out_features, config.r, device=draw_device()),
        }

    def is_idle(self, adapter_name: str) -> bool:
        """Whether no row of the batch selects this expert."""
        block, expert = self.place[adapter_name]
        selected = self.mixture_pass.decisions[block].selected
        return selected is not None and not selected[expert]

    def add_update(self, adapter_name: str, x: Tensor, result: Tensor) -> Tensor:
        """See `MixtureLayer.add_update`.

        Raises:
            InputError: gradient checkpointing is reentrant. The decision is made outside the block that is computed
                again, and its gradient would be computed twice.
        """
        block, expert = self.place[adapter_name]
        decided = self.mixture_pass.decisions[block].gates
        if decided.requires_grad and not torch.is_grad_enabled():
            raise InputError(
                "gradient checkpointing with use_reentrant=True cannot compute the gradient of a router of prompts. "
                "Use gradient_checkpointing_kwargs={'use_reentrant': False}"
            )
        gates = decided[:, expert] * self.settings[adapter_name].scaling
        A, B = self.mixture_A[adapter_name], self.mixture_B[adapter_name]
        hidden = F.linear(self.mixture_dropout[adapter_name](self.cast(adapter_name, x)), A)
        per_row = hidden.view(len(gates), -1, hidden.shape[-1]) * gates.to(hidden).view(-1, 1, 1)
        return self.add_product(result, per_row.view(hidden.shape), B.T)


class PromptRouter(MixtureModule):
    """p = softmax(W_r g(pool(H))) over the experts of a block, H the hidden states of the prompt before the block.

    g(x) = (a_0 + a_1 x + .. + a_6 x^6) / (1 + |b_1 x + .. + b_5 x^5|), learnt. Computed in float32.

    Parameters: mixture_router W_r (experts, d), mixture_numerator a (7,), mixture_denominator b (5,), and with
    attention pooling mixture_pooler w_sa (d,).

    Args:
        mixture_pass: the state that all modules share in a forward pass.
        block: name of the block.
        width: d, the width of the hidden states.
    """

    adapter_layer_names = ("mixture_router", "mixture_pooler", "mixture_numerator", "mixture_denominator")

    mixture_pass: PromptPass
    mixture_pooler: nn.ParameterDict
    mixture_numerator: nn.ParameterDict
    mixture_denominator: nn.ParameterDict

    def __init__(self, mixture_pass: PromptPass, block: str, width: int) -> None:
        super().__init__(mixture_pass)
        self.block = block
        self.width = width

    def add_adapter(self, adapter_name: str, config: Any, experts: int, device: torch.device, dtype: Any) -> None:
        """Add the parameters of an adapter with a number of experts in this block."""
        values = {"mixture_router": normal_rows(experts, self.width)}
        if config.pooling == "attention":
            values["mixture_pooler"] = normal_rows(1, self.width)[0]
        values["mixture_numerator"] = torch.tensor(NUMERATOR, device=draw_device())
        values["mixture_denominator"] = torch.tensor(DENOMINATOR, device=draw_device())
        self.add_parameters(adapter_name, config, values, device, dtype)
        self.set_adapter(self.active_adapters)

    def before_block(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Decide for the hidden states with which the block is called; a hook of the block."""
        adapter = self.acting()
        if adapter is None:
            return
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        if self.mixture_pass.is_cached:
            decision = self.mixture_pass.kept(adapter, self.block, len(hidden))
        else:
            decision = self.decide(adapter, hidden)
        self.mixture_pass.keep(adapter, self.block, decision)

    def decide(self, adapter_name: str, hidden: Tensor) -> Decision:
        """The decision for hidden states (rows, tokens, d)."""
        config = self.settings[adapter_name]
        prompt = self.mixture_pass.prompt(hidden.shape[0], hidden.shape[1], hidden.device, training=self.in_training)
        W_r = self.mixture_router[adapter_name]
        states = hidden.to(torch.promote_types(W_r.dtype, torch.float32))
        w_sa = self.mixture_pooler[adapter_name] if config.pooling == "attention" else None
        pooled = pool(states, prompt, config.pooling, w_sa)
        activated = rational(pooled, self.mixture_numerator[adapter_name], self.mixture_denominator[adapter_name])
        probabilities = F.linear(activated, W_r.to(activated.dtype)).softmax(-1)
        top = probabilities.topk(config.top_k, dim=-1).indices
        none = torch.zeros_like(probabilities)
        chosen = none.scatter(-1, top, 1.0)
        weights = probabilities
        if config.gate == "straight-through":
            weights = 1 + probabilities - probabilities.detach()
        elif config.gate == "hard":
            weights = torch.ones_like(probabilities)
        self.mixture_pass.record(
            self.router_loads[adapter_name],
            probabilities,
            chosen / config.top_k,
            config.balance_weight,
            training=self.in_training,
            balanced=none.scatter(-1, top[:, :1], 1.0),
            rows=True,
        )
        selected = None if self.in_training else chosen.any(0).tolist()
        return Decision(weights * chosen, selected)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move the parameters of an adapter, keeping their dtypes; None leaves them where they are."""
        if device is not None:
            self.move_parameters(adapter_name, device)


def pool(states: Tensor, prompt: Tensor, pooling: str, w_sa: Tensor | None = None) -> Tensor:
    """One vector (rows, d) for the prompt of each row.

    Args:
        states: (rows, tokens, d).
        prompt: (rows, tokens), the tokens that count; a row without any is padding and gets an arbitrary vector.
        pooling: "last", "mean", "max", or "attention": the mean with weights softmax(states w_sa).
        w_sa: (d,).
    """
    if pooling == "last":
        last = (prompt.cumsum(-1) * prompt).argmax(-1)
        return states[torch.arange(len(states), device=states.device), last]
    if pooling == "max":
        return states.masked_fill(~prompt.unsqueeze(-1), torch.finfo(states.dtype).min).amax(1)
    if pooling == "attention" and w_sa is not None:
        scores = states @ w_sa.to(states.dtype)
        weights = scores.masked_fill(~prompt, torch.finfo(scores.dtype).min).softmax(-1)
    else:
        weights = prompt.to(states.dtype) / prompt.sum(-1, keepdim=True).clamp_min(1)
    return (weights.unsqueeze(1) @ states).squeeze(1)


def rational(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """(a_0 + a_1 x + .. + a_m x^m) / (1 + |b_1 x + .. + b_n x^n|), elementwise, for a (m + 1,) and b (n,)."""
    top, bottom = torch.zeros_like(x), torch.zeros_like(x)
    for a in numerator.flip(0).unbind():
        top = top * x + a
    for b in denominator.flip(0).unbind():
        bottom = (bottom + b) * x
    return top / (1 + bottom.abs())
