"""Compare two forms of one adapter: by their outputs on fixed inputs, and by their updates."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Collection, Generator, Iterable
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from kasatune.adapters.adapter_files import AdapterFiles
from kasatune.adapters.embedding_tensors import TOKENS, base_name
from kasatune.adapters.lora_diag_formats import native_from_diagonal
from kasatune.adapters.lora_export import stack, stock_layers
from kasatune.adapters.native_format import scaling_of, stored_layers, trained_factors
from kasatune.kasa.layer import KasaLayer
from kasatune.weights.bitsandbytes_cpu import unpack_for_training_and_saving
from kasatune.weights.usable_positions import usable_positions

SEED, ROWS, LENGTH = 0, 2, 16

# The largest difference of two outputs that dtypes explain, as a share of the largest output. Both forms do the same
# sums in another order; a number is rounded by up to 6e-8 (float32), 5e-4 (float16, TF32) or 4e-3 (bfloat16) of
# itself, and a model adds many of these up. The kernels of quantized layers compute in 16 bits, or round what comes in
# to 8 bits, whatever the model's dtype.
OUTPUT_LIMITS = {
    "float64": 1e-8,
    "float32": 1e-4,
    "float16": 2e-2,
    "bfloat16": 1e-1,
    "tf32": 2e-2,
    "quantized": 1e-1,
}
# The same for ||dW_1 - dW_2||_F / ||dW_1||_F: both are stored in float32 or wider.
UPDATE_LIMIT = 1e-5


class Outputs(NamedTuple):
    """The outputs of a model for the fixed inputs: float32 values, and the dtype it computes in, or "quantized"."""

    values: Tensor
    dtype: str


@torch.no_grad()
def fixed_outputs(model: nn.Module) -> Outputs:
    """The logits, or the last hidden states, for 2 x 16 token ids that a fixed seed gives; in evaluation mode.

    Raises:
        LookupError: the model has no input embeddings to draw token ids for.
    """
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # pyright: ignore
    weight = getattr(embeddings, "weight", None)
    if not isinstance(weight, Tensor):
        raise LookupError("the model has no input embeddings, for which token ids could be drawn")
    config = getattr(model, "config", None)
    length = min(LENGTH, usable_positions(model) or LENGTH)
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(0, weight.shape[0], (ROWS, length), generator=generator).to(weight.device)
    extra = "decoder_input_ids" if getattr(config, "is_encoder_decoder", False) else None
    with _evaluating(model):
        # Row by row: classifiers without a padding token take no batches.
        rows = [model(**{"input_ids": row, **({extra: row} if extra else {})}) for row in ids.split(1)]
    values = torch.cat([_first_tensor(row) for row in rows])
    return Outputs(values.float().cpu(), output_dtype(model, values.device))


def output_dtype(model: nn.Module, device: torch.device) -> str:
    """The key of `OUTPUT_LIMITS` for a model that computes on `device`."""
    return "quantized" if is_quantized(model) else _dtype(model, device)


def untouched_copy(model: nn.Module) -> nn.Module:
    """The base under an adapter, as a separate tree of modules that shares the parameters of `model`.

    Call it, and use the copy, while the adapters of `model` are disabled. What is loaded on the copy does not
    change `model`, unless it writes into parameters.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    unpack_for_training_and_saving(base)
    for module in base.modules():
        own: Any = module
        if hasattr(module, "init_8bit_state") and getattr(own.weight, "CB", None) is not None:
            # bitsandbytes' first forward pass takes the scales off the weight, which a copy shares.
            own.init_8bit_state()
    tensors = itertools.chain(base.parameters(), base.buffers())
    twin = copy.deepcopy(base, {id(tensor): tensor for tensor in tensors})
    for name, module in list(twin.named_modules()):
        original = module.base_layer if isinstance(module, KasaLayer) else None
        if isinstance(module, AuxiliaryTrainingWrapper):
            original = module.original_module
        if original is not None:
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, original)
    # PEFT would distribute a copy with a device map anew, and cannot where parts of it are offloaded.
    for name in ("peft_config", "hf_device_map"):
        twin.__dict__.pop(name, None)
    return twin


@contextmanager
def flags_kept(model: nn.Module) -> Generator[None]:
    """Restore `requires_grad` of the parameters afterwards, which PEFT changes when it loads an adapter."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def copy_parameters(twin: nn.Module, written: Collection[str]) -> None:
    """Replace the named parameters of a copy from `untouched_copy`, which are those of the original, by copies.

    Parameters that are tied stay tied.

    Args:
        twin: the copy.
        written: names of the parameters that something will write into.
    """
    parameters = list(twin.named_parameters(remove_duplicate=False))
    copies = {id(parameter): copy.deepcopy(parameter) for path, parameter in parameters if path in written}
    for path, parameter in parameters:
        if id(parameter) in copies:
            owner, _, name = path.rpartition(".")
            setattr(twin.get_submodule(owner), name, copies[id(parameter)])


def update_factors(files: AdapterFiles, kind: str, *, tails: bool) -> dict[str, tuple[Tensor, Tensor]]:
    """W' - W = left right of each layer, left (out, q) and right (q, in), by module name, in float64.

    Args:
        files: an adapter.
        kind: its format.
        tails: whether the truncated tail is included; formats whose reader truncates hold the trained part only.
    """
    if kind == "lora":
        return {name: (lora.B.double(), lora.A.double()) for name, lora in stock_layers(files)[0].items()}
    if kind == "kasa" and tails:
        layers, _ = stored_layers(files.tensors)
        stacked = {name: stack(layer, scaling_of(files.config, name)) for name, layer in layers.items()}
        return {name: (lora.B.double(), lora.A.double()) for name, lora in stacked.items()}
    trained = trained_factors(files.tensors)[0] if kind == "kasa" else native_from_diagonal(files, kind)[0]
    updates: dict[str, tuple[Tensor, Tensor]] = {}
    for name, (A, sigma, B) in trained.items():
        core = torch.diag(sigma.double()) if sigma.ndim == 1 else sigma.double()
        updates[name] = (scaling_of(files.config, name) * B.double() @ core, A.double())
    return updates


def update_difference(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """||dW_1 - dW_2||_F / ||dW_1||_F from the factors of both, without forming either matrix."""
    norm = _product_norm(*one)
    apart = _product_norm(torch.cat([one[0], -other[0]], dim=1), torch.cat([one[1], other[1]]))
    return apart / norm if norm else apart


def own_parameters(keys: Iterable[str]) -> set[str]:
    """Names in the base of the parameters that an adapter holds besides its layers, heads and biases, by its keys."""
    own = [key for key in keys if ".kasa_" not in key and ".lora_" not in key and not key.endswith(TOKENS)]
    return {base_name(key) for key in own}


def _product_norm(left: Tensor, right: Tensor) -> float:
    R_left = torch.linalg.qr(left, mode="r").R
    R_right = torch.linalg.qr(right.mT, mode="r").R
    return float(torch.linalg.norm(R_left @ R_right.mT))


def _first_tensor(output: Any) -> Tensor:
    for name in ("logits", "last_hidden_state"):
        if isinstance(getattr(output, name, None), Tensor):
            return getattr(output, name)
    if isinstance(output, Tensor):
        return output
    raise LookupError(f"the model gives a {type(output).__name__} without logits")


def is_quantized(model: nn.Module) -> bool:
    """Whether any weight of a model is not a plain floating-point tensor."""
    return any(
        isinstance(module, KasaLayer) and module.quantization_backend is not None for module in model.modules()
    ) or any(not p.is_floating_point() or type(p).__module__.partition(".")[0] != "torch" for p in model.parameters())


def _dtype(model: nn.Module, device: torch.device) -> str:
    """The narrowest floating dtype a model computes in, which determines the rounding."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    narrowest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps) if dtypes else torch.float32
    if narrowest == torch.float32 and device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return str(narrowest).removeprefix("torch.")


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
