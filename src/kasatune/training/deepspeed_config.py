"""DeepSpeed ZeRO-3 for a run: validate the recipe, complete DeepSpeed's settings, partition the model."""

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
_OF_THE_RECIPE = ("optimizer", "scheduler")
_OR = ", or shard with FSDP2: accelerate launch --use_fsdp"
# Allocated by each process for any model size; DeepSpeed's default of 5e8 elements would be 2 GiB.
_BUCKET = 2**24


def require_suitable(recipe: Recipe, method: Method) -> None:
    """Reject a recipe that ZeRO-3 would train differently from a single process.

    Raises:
        RecipeError: it uses mixed precision, gradient checkpointing, quantization, or a method that accesses its
            parameters between steps.
    """
    training, faults = recipe.training, []
    if training.precision != "float32":
        faults.append(
            f"training.precision: {training.precision}: DeepSpeed would cast the base and the adapter; use float32"
        )
    if training.gradient_checkpointing:
        faults.append("training.gradient_checkpointing: true: DeepSpeed needs the reentrant kind; use false")
    if recipe.model.quantization != "none":
        faults.append(
            f"model.quantization: {recipe.model.quantization}: DeepSpeed cannot partition packed weights; use none"
        )
    if method.reads_parameters_in_training(recipe.method):
        faults.append(f"method.name: {recipe.method.name} accesses its parameters between steps; train it unsharded")
    if faults:
        raise RecipeError([f"{fault}{_OR}" for fault in faults])


def require_one_dtype(model: nn.Module, recipe: Recipe) -> None:
    """Reject trained parameters of several dtypes, which ZeRO-3 cannot hold in one buffer.

    Raises:
        RecipeError: there are several, as with the head and the adapter of a 16-bit base.
    """
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in trainable(model).values()})
    if len(dtypes) > 1:
        raise RecipeError(
            [
                f"model.dtype: {recipe.model.dtype}: the trained parameters are {' and '.join(dtypes)}, and DeepSpeed "
                f"needs one dtype; use float32{_OR}"
            ]
        )


def apply_recipe(arguments: TrainingArguments, section: TrainingSection) -> None:
    """Override DeepSpeed's settings with those of the recipe.

    Args:
        arguments: arguments of the run; their DeepSpeed settings are changed in place.
        section: the recipe's `training`.

    Raises:
        RecipeError: a ZeRO stage other than 3, or settings for the optimizer, which the recipe decides.
    """
    stop_partitioning_on_load()
    settings = _settings(arguments)
    zero = settings["zero_optimization"]
    faults = [
        f"DeepSpeed's settings: {name}: the recipe decides it; remove it" for name in _OF_THE_RECIPE if name in settings
    ]
    if zero.get("stage") != _STAGE:
        faults.append(f"DeepSpeed's settings: ZeRO stage {zero.get('stage')}: give stage 3, or train without DeepSpeed")
    if (zero.get("offload_optimizer") or {}).get("device", "none") not in ("none", None):
        faults.append("DeepSpeed's settings: offload_optimizer: the optimizer of an adapter is small; remove it")
    if faults:
        raise RecipeError(faults)
    processes: Any = arguments.world_size
    settings |= {
        "train_batch_size": section.batch_size,
        "train_micro_batch_size_per_gpu": section.batch_size // section.gradient_accumulation // processes,
        "gradient_accumulation_steps": section.gradient_accumulation,
        "gradient_clipping": arguments.max_grad_norm,
    }
    # Persistent parameters must be of one dtype; the memory-efficient linear function would replace torch's globally.
    zero |= {"stage3_param_persistence_threshold": 0, "memory_efficient_linear": False}
    if zero.get("reduce_bucket_size", "auto") == "auto":
        zero["reduce_bucket_size"] = _BUCKET
    if arguments.device.type == "cpu":
        _allow_cpu(arguments)


def _allow_cpu(arguments: TrainingArguments) -> None:
    """Use DeepSpeed on the CPU, where it runs although accelerate does not choose it."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise it would use a GPU of the machine
    import deepspeed

    # A C++ all-reduce that would be compiled when the run starts; gloo has one already.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    assert arguments.distributed_state is not None, "reading `arguments.device` sets it"
    arguments.distributed_state.distributed_type = DistributedType.DEEPSPEED


def partition(model: nn.Module, arguments: TrainingArguments) -> None:
    """Partition each parameter over the processes, in place, one parameter at a time."""
    from deepspeed.runtime.zero import Init

    Init(module=model, config_dict_or_path=_settings(arguments))


def stop_partitioning_on_load() -> None:
    """Make transformers and PEFT load models unsharded from now on; with ZeRO-3 active they would partition them."""
    unset_hf_deepspeed_config()


def _settings(arguments: TrainingArguments) -> dict[str, Any]:
    plugin: Any = arguments.deepspeed_plugin
    return plugin.deepspeed_config
