"""Second moments of a base model's activations: E[x x^T] and E[y y^T] of each linear layer on calibration text."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kasatune.data.calibration_text import bundled_batches
from kasatune.distributed.gather_scatter import is_sharded
from kasatune.errors import InputError, KasatuneError, ModelError
from kasatune.kasa.truncation.self_written_text import SEQUENCES, calibration_length, own_tokenizer, write_text
from kasatune.kasa.truncation.undisturbed_model import device_of, on_device, seeded, undisturbed
from kasatune.linalg.activation_tail import ActivationMoments, Side, side_of
from kasatune.linalg.leading_directions import InputMoments
from kasatune.linalg.tail import TailSVD
from kasatune.weights.base_weight import BaseWeight
from kasatune.weights.fingerprint import weight_sketch
from kasatune.wording import counted

_ROWS_HELD = 512  # rows of a layer that wait for one product: larger products are faster, and take memory


@dataclass(frozen=True)
class ChosenComponents:
    """The components that truncate_by="sensitivity" chose when it was calibrated.

    Attributes:
        tails: by layer name, at most d triplets each; layers from which nothing is dropped are left out.
        layers: what to state of these layers: number dropped, predicted change of the loss, share of E||W x||^2.
        losses: loss on held-back rows by the number of triplets that were removed together.
        candidates: number of triplets that could have been dropped, over all layers.
    """

    tails: dict[str, TailSVD]
    layers: dict[str, dict[str, Any]]
    losses: dict[int, float]
    candidates: int


@dataclass(frozen=True)
class Activations:
    """What `measure` and `measure_generated` return.

    Attributes:
        moments: of the side that `activation_tail` needs, by layer name. Empty if they were not measured.
        inputs: of the inputs, by layer name; layers that read the same tensor share one object. Empty if they were not
            measured.
        source: "batches", "task" (training rows), "generated" (text that the model wrote), "bundled" (documentation
            strings) or "random" (random tokens).
        tokens: number of tokens read, padding left out.
        seed: of generated or random tokens; None for batches and bundled text.
        seconds: wall-clock time.
        base: a sketch of each weight, by layer name, by which another base model is recognized.
        components: of truncate_by="sensitivity", which are chosen while calibrating; else None.
        identity: distinguishes calibrations; copies have the same.
    """

    moments: dict[str, ActivationMoments]
    inputs: dict[str, InputMoments]
    source: str
    tokens: int
    seed: int | None
    seconds: float
    base: dict[str, dict[str, Any]]
    components: ChosenComponents | None = None
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)


def calibration_line(used: Mapping[str, Any]) -> str:
    """What a base was calibrated on, in words, from `source`, `tokens` and `seed`."""
    origin = {
        "generated": "text that the base generated",
        "bundled": "bundled text",
        "random": "random tokens",
        "task": "training rows",
    }.get(used["source"], "the batches given")
    seed = "" if used["seed"] is None else f", seed {used['seed']}"
    return f"KaSA: calibrated on {origin} ({counted(used['tokens'], 'token')}{seed})"


def measure(
    model: nn.Module,
    layers: Mapping[str, BaseWeight],
    batches: Iterable[Mapping[str, Any]],
    *,
    inputs: bool = False,
    tails: bool = True,
    source: str = "batches",
) -> Activations:
    """Second moments of the layers' activations over batches.

    The model runs without adapters, autograd, autocast or dropout, and is left as it was. Positions where
    `attention_mask` is 0 are left out.

    Args:
        model: the base model.
        layers: the weights to measure at, by layer name.
        batches: keyword arguments of `model(**batch)`; tensors are moved to the model's device.
        inputs: also measure the inputs of every layer, for `leading_directions`.
        tails: measure what `activation_tail` needs of every layer.
        source: what the batches are, as noted in the result.

    Raises:
        InputError: there is no batch, or a layer never runs on the batches.
    """
    start = time.perf_counter()
    with _measuring(model, layers, inputs=inputs, tails=tails) as recorder:
        for batch in batches:
            moved = on_device(batch, model)
            recorder.mask = moved.get("attention_mask")
            model(**moved)
    return _activations(recorder, source, None, start)


def measure_on(
    model: nn.Module,
    layers: Mapping[str, BaseWeight],
    batches: Iterable[Mapping[str, Any]] | None,
    seed: int = 0,
    *,
    inputs: bool,
    tails: bool = True,
    source: str = "batches",
) -> Activations:
    """`measure` over batches, or `measure_generated` without any."""
    if batches is None:
        return measure_generated(model, layers, seed, inputs=inputs, tails=tails)
    return measure(model, layers, batches, inputs=inputs, tails=tails, source=source)


def measure_generated(
    model: nn.Module,
    layers: Mapping[str, BaseWeight],
    seed: int = 0,
    *,
    inputs: bool = False,
    tails: bool = True,
) -> Activations:
    """Second moments of the layers' activations on text that the model writes itself, 16 sequences of 96 tokens.

    A causal language model samples at temperature 1 from the full vocabulary, beginning with its BOS token (else EOS,
    else a random token); end-of-text tokens are suppressed. The moments are taken while it writes, so that no second
    pass is needed. Any other model with token embeddings reads bundled text (data/calibration_text.py) with the
    tokenizer that lies beside its weights, or random tokens, which choose less well, where there is none. Random
    states, training modes and generation settings are left as they were. `inputs` and `tails` are those of `measure`.

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
    source = "generated" if getattr(model, "can_generate", lambda: False)() else "bundled"
    tokenizer = own_tokenizer(config, vocabulary) if source == "bundled" else None
    if source == "bundled" and tokenizer is None:
        source = "random"
    with _measuring(model, layers, inputs=inputs, tails=tails) as recorder, seeded(model, seed):
        try:
            if source == "generated":
                write_text(model, config, vocabulary)
            elif tokenizer is not None:
                for batch in bundled_batches(tokenizer, calibration_length(config)):
                    moved = on_device(batch, model)
                    recorder.mask = moved["attention_mask"]
                    model(**moved)
            else:
                size = (SEQUENCES, calibration_length(config))
                model(input_ids=torch.randint(vocabulary, size, device=device_of(model)))
        except KasatuneError:
            raise
        except Exception as error:  # a model that needs other inputs raises whatever its code happens to
            raise InputError(
                f"{type(model).__name__} failed on generated calibration text ({error}): pass calibrate(base, config, "
                "batches) with a few batches of your data"
            ) from error
    return _activations(recorder, source, None if source == "bundled" else seed, start)


def require_loaded(layers: Mapping[str, BaseWeight]) -> None:
    """Refuse weights on the meta device, and weights of which this process holds a part.

    Raises:
        ModelError: the first such layer.
    """
    for name, weight in layers.items():
        if weight.is_missing:
            raise ModelError(
                f"{name}: its weight is on the meta device: load the base's checkpoint, then call calibrate(base, "
                "config) and attach the adapter"
            )
        if is_sharded(weight.layer.weight):
            raise ModelError(
                f"{name}: its weight is sharded (FSDP) or partitioned (ZeRO-3), and calibration runs the complete "
                "model in one process: call calibrate(base, config) and attach the adapter before the model is sharded"
            )


class _Sums:
    """sum v v^T over rows v (k): products in float32, sums in float64.

    Args:
        k: length of a row. Up to max(512, k) rows wait for one product, so that few rows are kept as they are.
    """

    def __init__(self, k: int) -> None:
        self._limit = max(_ROWS_HELD, k)
        self._total: Tensor | None = None
        self._held: list[Tensor] = []
        self._waiting = 0
        self.tokens = 0

    def add(self, rows: Tensor) -> None:
        self._held.append(rows.float())
        self._waiting += len(rows)
        self.tokens += len(rows)
        if self._waiting >= self._limit:
            self.total()

    def total(self) -> Tensor:
        if self._held:
            rows = torch.cat(self._held)
            product = (rows.mT @ rows).double()
            self._total = product if self._total is None else self._total.add_(product)
            self._held, self._waiting = [], 0
        assert self._total is not None
        return self._total

    def input_moments(self) -> InputMoments:
        """The rows themselves as long as there are fewer of them than their length; else E[v v^T]."""
        if self._total is None:
            return InputMoments(torch.cat(self._held), None, self.tokens)
        return InputMoments(None, self.total() / self.tokens, self.tokens)


class _Recorder:
    """Forward hooks that sum the moments of each layer.

    Args:
        layers: the weights that are measured, by layer name.
        inputs: sum the moments of the inputs of every layer, not only where `activation_tail` needs them.
        tails: sum what `activation_tail` needs of every layer.

    Attributes:
        layers: as given.
        mask: attention mask of the batch that is running, (batch, length); None where nothing is padded.
    """

    def __init__(self, layers: Mapping[str, BaseWeight], *, inputs: bool, tails: bool) -> None:
        self.layers = layers
        self.mask: Tensor | None = None
        self._inputs = inputs
        self._tails = tails
        self._sides: dict[str, Side] = {name: side_of(weight.shape) for name, weight in layers.items()}
        self._output_sums = {n: _Sums(w.shape[0]) for n, w in layers.items() if self._sides[n] == "outputs"}
        self._input_sums: dict[str, _Sums] = {}  # by the first of the layers that read one tensor
        self._first: dict[str, str] = {}
        self._latest: tuple[Tensor, str] | None = None
        self._latest_square: tuple[Tensor, float] | None = None
        self._squares = dict.fromkeys(layers, 0.0)
        self._tokens = dict.fromkeys(layers, 0)

    def hook(self, name: str, weight: BaseWeight) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            x = self._rows(inputs[0], weight)
            self._tokens[name] += len(x)
            if self._tails:
                self._squares[name] += self._square(inputs[0], x)
            if self._inputs or (self._tails and self._sides[name] == "inputs"):
                self._add_input(name, inputs[0], x)
            if self._tails and self._sides[name] == "outputs":
                y = self._rows(output, weight)
                bias = getattr(module, "bias", None)
                self._output_sums[name].add(y if bias is None else y.float() - bias.float())

        return record

    def _square(self, tensor: Tensor, rows: Tensor) -> float:
        """||x||^2 over the rows, computed once for all layers that read the same tensor directly after each other."""
        if self._latest_square is None or self._latest_square[0] is not tensor:
            self._latest_square = tensor, float(rows.float().square().sum(dtype=torch.float64))
        return self._latest_square[1]

    def _add_input(self, name: str, tensor: Tensor, rows: Tensor) -> None:
        """Add the input of a layer, once for all layers that read the same tensor directly after each other."""
        latest = self._latest if self._latest is not None and self._latest[0] is tensor else None
        first = self._first.setdefault(name, name if latest is None else latest[1])
        if first == name:
            self._latest = (tensor, name)
            self._input_sums.setdefault(name, _Sums(rows.shape[1])).add(rows)
        elif latest is None or latest[1] != first:
            raise ModelError(
                f"{name} reads the same tensor as {first} in some forward passes and another one in others: its "
                "activations cannot be measured; leave it out with exclude_modules"
            )

    def _rows(self, values: Tensor, weight: BaseWeight) -> Tensor:
        """Values as rows (tokens, k), padding left out."""
        if weight.pointwise:
            values = values.movedim(-1 - weight.pointwise, -1)
        rows = values.reshape(-1, values.shape[-1])
        if self.mask is not None and self.mask.ndim == 2 and self.mask.numel() == len(rows):
            rows = rows[self.mask.reshape(-1).bool()]
        return rows

    def tokens(self) -> int:
        """Number of tokens that were read.

        Raises:
            InputError: a layer never ran.
        """
        idle = [name for name, tokens in self._tokens.items() if tokens == 0]
        if idle:
            raise InputError(
                f"calibration: {counted(len(idle), 'layer')} never ran, first {idle[0]}: pass batches that "
                "reach every target, or "
                "leave these layers out of target_modules"
            )
        return max(self._tokens.values())

    def input_moments(self) -> dict[str, InputMoments]:
        """By layer name; {} unless the inputs of every layer were measured."""
        if not self._inputs:
            return {}
        by_first = {name: sums.input_moments() for name, sums in self._input_sums.items()}
        return {name: by_first[self._first[name]] for name in self.layers}

    def moments(self) -> dict[str, ActivationMoments]:
        """What `activation_tail` needs of each layer; {} unless it was measured."""
        if not self._tails:
            return {}
        return {
            name: ActivationMoments(
                side,
                self._sums(name).total() / self._tokens[name],
                self._squares[name] / (self._tokens[name] * self.layers[name].shape[1]),
                self._tokens[name],
            )
            for name, side in self._sides.items()
        }

    def _sums(self, name: str) -> _Sums:
        return self._output_sums[name] if self._sides[name] == "outputs" else self._input_sums[self._first[name]]


@contextmanager
def _measuring(
    model: nn.Module, layers: Mapping[str, BaseWeight], *, inputs: bool, tails: bool
) -> Generator[_Recorder]:
    require_loaded(layers)
    recorder = _Recorder(layers, inputs=inputs, tails=tails)
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        for name, weight in layers.items():
            stack.callback(weight.layer.register_forward_hook(recorder.hook(name, weight)).remove)
        stack.enter_context(torch.no_grad())
        yield recorder


def _activations(recorder: _Recorder, source: str, seed: int | None, start: float) -> Activations:
    tokens = recorder.tokens()
    # inputs first: `moments` turns the rows of inputs that it needs itself into products
    inputs, moments = recorder.input_moments(), recorder.moments()
    base = {name: weight_sketch(weight.read(), weight.bits) for name, weight in recorder.layers.items()}
    return Activations(moments, inputs, source, tokens, seed, time.perf_counter() - start, base)
