"""One adapter format into another, as plain data, and what the result measures beside its source."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn

from kasatune.adapters.authors_format import from_authors, to_authors
from kasatune.adapters.lora_export import to_lora
from kasatune.adapters.native_format import with_tails
from kasatune.adapters.parity import Outputs, fixed_outputs, flags_kept, untouched_copy
from kasatune.adapters.peft_kasa_format import from_peft_kasa, to_peft_kasa
from kasatune.adapters.recompress import Recompressed, recompress
from kasatune.adapters.storage import AdapterFiles, is_echo, listed
from kasatune.errors import AdapterError, CheckError, InputError, KasatuneError
from kasatune.kasa.layer import KasaLayer
from kasatune.kasa.model import KasaModel

_WRITERS: dict[str, Callable[[AdapterFiles], AdapterFiles]] = {
    "lora": to_lora,
    "kasa": lambda source: source,
    "peft-kasa": to_peft_kasa,
    "authors": to_authors,
}
_WITHOUT_TAILS = ("peft-kasa", "authors")


class Source(NamedTuple):
    """An adapter to convert, and what its outputs can be compared with.

    Attributes:
        files: the adapter, "lora" or native.
        kind: which of the two.
        found: the format that it had where it was read.
        outputs: of the adapted model for the fixed inputs; None where they cannot be measured.
        reason: why not.
    """

    files: AdapterFiles
    kind: str
    found: str
    outputs: Outputs | None
    reason: str | None


def as_native(files: AdapterFiles, kind: str, base: nn.Module | None) -> AdapterFiles:
    """An adapter of any KaSA format as a native one; without its tails where the base that they come from is not given.

    Raises:
        AdapterError: a configuration that is not read, or another base.
    """
    if kind == "kasa":
        return files
    native = from_peft_kasa(files) if kind == "peft-kasa" else from_authors(files)
    return native if base is None else with_tails(native, base)


def convert(
    source: AdapterFiles, kind: str, to: str, choose_rank: Callable[[Tensor], int] | None
) -> tuple[AdapterFiles, Recompressed | None]:
    """The adapter in the format `to`, and what it lost where it was compressed to a smaller rank.

    Args:
        source: a stock LoRA adapter, or a native one.
        kind: "lora" or "kasa".
        to: one of FORMATS.
        choose_rank: for "lora": gives the rank for a layer's singular values; None keeps every layer exactly.

    Raises:
        InputError: the format cannot hold the adapter.
    """
    if kind == "lora" and to != "lora":
        raise InputError(
            f"a LoRA adapter cannot become {to!r}: it has no singular values and nothing dropped. Only 'lora' can be "
            "made of it, with another rank"
        )
    made = source if kind == "lora" else _WRITERS[to](source)
    if choose_rank is None:
        return made, None
    lost = recompress(made, choose_rank)
    return lost.files, lost


def needs_base(kind: str, to: str) -> bool:
    """Whether a conversion must decompose the base: from a form without tails into one that holds them."""
    return kind in _WITHOUT_TAILS and to not in _WITHOUT_TAILS


def of_model(model: nn.Module) -> AdapterFiles:
    """The active KaSA adapter of a model as native files.

    Raises:
        InputError: the model has none.
        AdapterError: it holds NaN or infinity.
    """
    tuner = getattr(model, "base_model", None)
    if not isinstance(model, PeftModel) or not isinstance(tuner, KasaModel) or not tuner.active_adapters:
        raise InputError(f"export needs a PeftModel with an active KaSA adapter, got {type(model).__name__}")
    name = tuner.active_adapters[0]
    base = model.get_base_model()
    config = model.peft_config[name].to_dict()
    config["inference_mode"] = True
    if config.get("task_type") is None:
        config["auto_mapping"] = {
            "base_model_class": type(base).__name__,
            "parent_library": type(base).__module__,
        }
    config["base_model_name_or_path"] = config.get("base_model_name_or_path") or getattr(base, "name_or_path", None)
    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    broken = [key for key, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise AdapterError(f"the adapter holds NaN or infinity in {listed(broken)}: its training diverged")
    kept = {key: tensor.detach().clone() for key, tensor in tensors.items() if not is_echo(key)}
    return AdapterFiles(json.loads(json.dumps(config)), kept)


def outputs_or_reason(model: nn.Module) -> tuple[Outputs | None, str | None]:
    """What a model gives for the fixed inputs, or why that cannot be measured."""
    if any(parameter.is_meta for parameter in model.parameters()):
        return None, "weights of the base are offloaded, and PEFT loads no LoRA adapter onto those"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fixed_outputs(model), None
    except KasatuneError:
        raise
    except Exception as fault:  # a model of another kind fails in its own way when it is given token ids
        return None, (str(fault).strip().splitlines() or [type(fault).__name__])[0]


def outputs_of_written(
    twin: nn.Module, load: Callable[[nn.Module, Path], nn.Module], directory: Path, to: str
) -> Outputs:
    """What the base gives with the written adapter on it.

    Raises:
        CheckError: what was written cannot be loaded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fixed_outputs(load(twin, directory))
    except Exception as fault:  # whatever stops the reader, the conversion has failed
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        raise CheckError(f"the conversion to {to!r} cannot be loaded again: {reason}; nothing was written") from fault


@contextmanager
def bare_twin(model: nn.Module) -> Iterator[nn.Module]:
    """The untouched base of an adapted or a bare model, sharing its weights; `model` is as before afterwards."""
    with flags_kept(model):
        if not isinstance(model, PeftModel):
            yield untouched_copy(model)
            return
        merged = [name for layer in model.modules() if isinstance(layer, KasaLayer) for name in layer.merged_adapters]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Careful, disabling adapter layers with bias")
            with model.disable_adapter():
                yield untouched_copy(model)
        if merged:
            model.merge_adapter(adapter_names=[merged[0]])  # pyright: ignore[reportCallIssue]


def summary(record: dict[str, Any]) -> str:
    """A certificate in one sentence."""
    outputs = record["outputs"]
    if "largest_difference" in outputs:
        parity = f"outputs equal bit for bit ({outputs['dtype']})"
        if outputs["largest_difference"]:
            parity = (
                f"outputs differ by at most {outputs['largest_difference']:.2g} "
                f"(mean {outputs['mean_difference']:.2g}, {outputs['dtype']})"
            )
    else:
        parity = f"updates differ by at most {record['updates']['largest_relative_difference']:.2g} of their norm"
    if record["exact"]:
        return parity
    return f"relative error {record['relative_error']:.3g} of the update; {parity}"
