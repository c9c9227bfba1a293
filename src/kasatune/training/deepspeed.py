"""DeepSpeed's ZeRO-3 as a run uses it: its settings, and the model dealt out by it before a device holds it whole."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from accelerate.utils import DistributedType
from torch import nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from kasatune.errors import RecipeError
from kasatune.methods.shared.method import Method
from kasatune.methods.shared.trained_parameters import trainable

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from kasatune.recipes.schema import Recipe, TrainingSection

_STAGE = 3
_OR = ", or shard with FSDP2: accelerate launch --use_fsdp"
# Reserved by each process whatever the model: DeepSpeed's own 5e8 numbers would be 2 GiB.
_BUCKET = 2**24


def require_suitable(recipe: Recipe, method: Method) -> None:
    """What ZeRO-3 cannot train as it is trained elsewhere.

    Raises:
        RecipeError: the recipe asks for it.
    """
    training, faults = recipe.training, []
    if training.precision != "float32":
        faults.append(
            f"training.precision: {training.precision}: DeepSpeed would cast the base and the adapter; use float32"
        )
    if training.gradient_checkpointing:
        faults.append("training.gradient_checkpointing: true: DeepSpeed needs another kind of it; use false")
    if recipe.model.quantization != "none":
        faults.append(
            f"model.quantization: {recipe.model.quantization}: DeepSpeed cannot deal out packed weights; use none"
        )
    if any(getattr(type(method), name) is not getattr(Method, name) for name in ("callbacks", "training_state")):
        faults.append(f"method.name: {recipe.method.name} reaches for its parameters between steps; train it whole")
    if faults:
        raise RecipeError([f"{fault}{_OR}" for fault in faults])


def require_one_dtype(model: nn.Module, recipe: Recipe) -> None:
    """ZeRO-3 lays what is trained into one buffer.

    Raises:
        RecipeError: what is trained has several dtypes, as the head and the adapter of a base in 16 bits.
    """
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in trainable(model).values()})
    if len(dtypes) > 1:
        raise RecipeError(
            [
                f"model.dtype: {recipe.model.dtype}: what is trained is of {' and '.join(dtypes)}, and DeepSpeed needs "
                f"one dtype; use float32{_OR}"
            ]
        )


def settle(arguments: TrainingArguments, section: TrainingSection) -> None:
    """Have DeepSpeed do what the recipe says, whatever its own settings are for that.

    Args:
        arguments: the recipe's; their settings of DeepSpeed are changed in place.
        section: the recipe's `training`.

    Raises:
        RecipeError: another stage than 3, or settings that take the optimizer out of the recipe's hands.
    """
    loaded_whole()
    settings = _settings(arguments)
    zero = settings["zero_optimization"]
    faults = [f"DeepSpeed's settings: {name}: the recipe says it; leave it out" for name in _taken(settings)]
    if zero.get("stage") != _STAGE:
        faults.append(f"DeepSpeed's settings: ZeRO stage {zero.get('stage')}: give stage 3, or train without DeepSpeed")
    if (zero.get("offload_optimizer") or {}).get("device", "none") not in ("none", None):
        faults.append("DeepSpeed's settings: offload_optimizer: the optimizer of an adapter is small; leave it out")
    if faults:
        raise RecipeError(faults)
    processes: Any = arguments.world_size
    settings |= {
        "train_batch_size": section.batch_size,
        "train_micro_batch_size_per_gpu": section.batch_size // section.gradient_accumulation // processes,
        "gradient_accumulation_steps": section.gradient_accumulation,
        "gradient_clipping": arguments.max_grad_norm,
    }
    # Persistent parameters must be of one dtype, and another linear function would replace torch's in the process.
    zero |= {"stage3_param_persistence_threshold": 0, "memory_efficient_linear": False}
    if zero.get("reduce_bucket_size", "auto") == "auto":
        zero["reduce_bucket_size"] = _BUCKET
    if arguments.device.type == "cpu":
        _allow_cpu(arguments)


def _allow_cpu(arguments: TrainingArguments) -> None:
    """Accelerate has DeepSpeed on no CPU, although it runs there."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # beside a GPU it would take that
    import deepspeed

    # A sum over processes in C++, which would be compiled as the run begins; gloo has one.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    arguments.distributed_state.distributed_type = DistributedType.DEEPSPEED  # type: ignore[union-attr]


def deal_out(model: nn.Module, arguments: TrainingArguments) -> None:
    """Give every process its piece of each parameter, one parameter after the other; changed in place."""
    from deepspeed.runtime.zero import Init

    Init(module=model, config_dict_or_path=_settings(arguments))


def loaded_whole() -> None:
    """From here on transformers and PEFT load models as ever; they would deal out what they load."""
    unset_hf_deepspeed_config()


def _settings(arguments: TrainingArguments) -> dict[str, Any]:
    plugin: Any = arguments.deepspeed_plugin
    return plugin.deepspeed_config


def _taken(settings: dict[str, Any]) -> list[str]:
    return [name for name in ("optimizer", "scheduler") if name in settings]
