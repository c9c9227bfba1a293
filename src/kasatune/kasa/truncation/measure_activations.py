"""Second moments of a base model's activations: E[x x^T] or E[y y^T] of each linear layer on calibration text."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import GenerationConfig

from kasatune.errors import InputError, ModelError
from kasatune.linalg.activation_tail import ActivationMoments, Side, side_of
from kasatune.weights.base_weight import BaseWeight
from kasatune.weights.fingerprint import weight_sketch
from kasatune.wording import counted

SEQUENCES = 16
LENGTH = 96
_ROWS_HELD = 512  # rows of a layer that wait for one product: larger products are faster, and take memory


@dataclass(frozen=True)
class Activations:
    """What `measure` and `measure_generated` return.

    Attributes:
        moments: by layer name.
        source: "batches", "generated" (text that the model wrote) or "random" (random tokens).
        tokens: number of tokens read, padding left out.
        seed: of generated or random tokens; None for batches.
        seconds: wall-clock time.
        base: a sketch of each weight, by layer name, by which another base model is recognized.
    """

    moments: dict[str, ActivationMoments]
    source: str
    tokens: int
    seed: int | None
    seconds: float
    base: dict[str, dict[str, Any]]


def measure(model: nn.Module, layers: Mapping[str, BaseWeight], batches: Iterable[Mapping[str, Any]]) -> Activations:
    """Second moments of the layers' activations over batches.

    The model runs without adapters, autograd, autocast or dropout, and is left as it was. Positions where
    `attention_mask` is 0 are left out.

    Args:
        model: the base model.
        layers: the weights to measure at, by layer name.
        batches: keyword arguments of `model(**batch)`; tensors are moved to the model's device.

    Raises:
        InputError: there is no batch, or a layer never runs on the batches.
    """
    start = time.perf_counter()
    with _measuring(model, layers) as recorder:
        for batch in batches:
            moved = {
                key: value.to(_device(model)) if isinstance(value, Tensor) else value for key, value in batch.items()
            }
            recorder.mask = moved.get("attention_mask")
            model(**moved)
    return _activations(recorder, "batches", None, start)


def measure_generated(model: nn.Module, layers: Mapping[str, BaseWeight], seed: int = 0) -> Activations:
    """Second moments of the layers' activations on text that the model writes itself, 16 sequences of 96 tokens.

    A causal language model samples at temperature 1 from the full vocabulary, beginning with its BOS token (else EOS,
    else a random token); end-of-text tokens are suppressed. The moments are taken while it writes, so that no second
    pass is needed. Any other model with token embeddings reads random tokens, which choose less well. Random states,
    training modes and generation settings are left as they were.

    Raises:
        InputError: the model cannot run on tokens alone; call `calibrate` with batches.
    """
    start = time.perf_counter()
    config: Any = getattr(model, "config", None)
    vocabulary = getattr(config, "vocab_size", None)
    if not isinstance(vocabulary, int) or getattr(config, "is_encoder_decoder", False):
        kind = "an encoder-decoder model" if vocabulary else "a model that does not read tokens"
        raise InputError(
            f"{type(model).__name__} is {kind}, which cannot write calibration text for itself: pass "
            "calibrate(base, config, batches) with a few batches of your data"
        )
    generates = bool(getattr(model, "can_generate", lambda: False)())
    with _measuring(model, layers) as recorder, _seeded(model, seed):
        try:
            if generates:
                _write(model, config, vocabulary)
            else:
                model(input_ids=torch.randint(vocabulary, (SEQUENCES, _positions(config)), device=_device(model)))
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            raise InputError(
                f"{type(model).__name__} failed on generated calibration text ({error}): pass calibrate(base, config, "
                "batches) with a few batches of your data"
            ) from error
    return _activations(recorder, "generated" if generates else "random", seed, start)


def _write(model: Any, config: Any, vocabulary: int) -> None:
    settings = model.generation_config
    ends = _listed(settings.eos_token_id) + _listed(config.eos_token_id)
    first = next((token for token in (*_listed(settings.bos_token_id), *_listed(config.bos_token_id), *ends)), None)
    if first is None:
        prompt = torch.randint(vocabulary, (SEQUENCES, 1), device=_device(model))
    else:
        prompt = torch.full((SEQUENCES, 1), first, device=_device(model))
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        generation_config=GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=_positions(config) - 1,
            suppress_tokens=sorted(set(ends)) or None,
            pad_token_id=ends[0] if ends else 0,
            eos_token_id=None,
        ),
    )


def _positions(config: Any) -> int:
    """LENGTH, or fewer where the model has fewer positions; two are left for offsets such as RoBERTa's."""
    limit = getattr(config, "max_position_embeddings", None)
    return min(LENGTH, limit - 2) if isinstance(limit, int) and limit > 3 else LENGTH


def _listed(tokens: int | list[int] | None) -> list[int]:
    return tokens if isinstance(tokens, list) else [] if tokens is None else [tokens]


def _device(model: nn.Module) -> torch.device:
    return next(parameter.device for parameter in model.parameters() if not parameter.is_meta)


class _Sums:
    """sum v v^T over rows v (k): products in float32, sums in float64."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._held: list[Tensor] = []
        self._rows = 0

    def add(self, rows: Tensor) -> None:
        self._held.append(rows.float())
        self._rows += len(rows)
        if self._rows >= _ROWS_HELD:
            self.total()

    def total(self) -> Tensor:
        if self._held:
            rows = torch.cat(self._held)
            product = (rows.mT @ rows).double()
            self._total = product if self._total is None else self._total.add_(product)
            self._held, self._rows = [], 0
        assert self._total is not None
        return self._total


class _Recorder:
    """Forward hooks that sum the moments of each layer.

    Attributes:
        layers: the weights that are measured, by layer name.
        mask: attention mask of the batch that is running, (batch, length); None where nothing is padded.
    """

    def __init__(self, layers: Mapping[str, BaseWeight]) -> None:
        self.layers = layers
        self.mask: Tensor | None = None
        self._sums = {name: _Sums() for name in layers}
        self._squares = dict.fromkeys(layers, 0.0)
        self._tokens = dict.fromkeys(layers, 0)
        self._sides: dict[str, Side] = {name: side_of(weight.shape) for name, weight in layers.items()}

    def hook(self, name: str, weight: BaseWeight) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            x = self._rows(inputs[0], weight)
            self._squares[name] += float(x.float().square().sum(dtype=torch.float64))
            self._tokens[name] += len(x)
            if self._sides[name] == "inputs":
                self._sums[name].add(x)
                return
            y = self._rows(output, weight)
            bias = getattr(module, "bias", None)
            self._sums[name].add(y if bias is None else y.float() - bias.float())

        return record

    def _rows(self, values: Tensor, weight: BaseWeight) -> Tensor:
        """Values as rows (tokens, k), padding left out."""
        if weight.pointwise:
            values = values.movedim(-1 - weight.pointwise, -1)
        rows = values.reshape(-1, values.shape[-1])
        if self.mask is not None and self.mask.ndim == 2 and self.mask.numel() == len(rows):
            rows = rows[self.mask.reshape(-1).bool()]
        return rows

    def moments(self) -> dict[str, ActivationMoments]:
        idle = [name for name, tokens in self._tokens.items() if tokens == 0]
        if idle:
            raise InputError(
                f"calibration: {counted(len(idle), 'layer')} never ran, first {idle[0]}: pass batches that "
                "reach every target, or "
                "leave these layers out of target_modules"
            )
        return {
            name: ActivationMoments(
                self._sides[name],
                self._sums[name].total() / self._tokens[name],
                self._squares[name] / (self._tokens[name] * self.layers[name].shape[1]),
                self._tokens[name],
            )
            for name in self.layers
        }


@contextmanager
def _measuring(model: nn.Module, layers: Mapping[str, BaseWeight]) -> Generator[_Recorder]:
    missing = [name for name, weight in layers.items() if weight.is_missing]
    if missing:
        raise ModelError(
            f"{missing[0]}: its weight is on the meta device; load the base's checkpoint before calibrating"
        )
    recorder = _Recorder(layers)
    training = {module: module.training for module in model.modules()}
    disabled: dict[BaseTunerLayer, bool] = {
        module: module.disable_adapters for module in model.modules() if isinstance(module, BaseTunerLayer)
    }
    with ExitStack() as stack:
        stack.callback(_restore, training, disabled)
        model.eval()
        _set_disabled(dict.fromkeys(disabled, True))
        for name, weight in layers.items():
            stack.callback(weight.layer.register_forward_hook(recorder.hook(name, weight)).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(_device(model).type, enabled=False))
        yield recorder


def _restore(training: Mapping[nn.Module, bool], disabled: Mapping[BaseTunerLayer, bool]) -> None:
    for module, was_training in training.items():
        module.training = was_training
    _set_disabled(disabled)


def _set_disabled(flags: Mapping[BaseTunerLayer, bool]) -> None:
    """Set PEFT's flag by itself; `enable_adapters` would change requires_grad as well."""
    for layer, disabled in flags.items():
        layer._disable_adapters = disabled  # pyright: ignore[reportPrivateUsage]


@contextmanager
def _seeded(model: nn.Module, seed: int) -> Generator[None]:
    device = _device(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _activations(recorder: _Recorder, source: str, seed: int | None, start: float) -> Activations:
    moments = recorder.moments()
    tokens = max(moment.tokens for moment in moments.values())
    base = {name: weight_sketch(weight.read(), weight.bits) for name, weight in recorder.layers.items()}
    return Activations(moments, source, tokens, seed, time.perf_counter() - start, base)
