"""Build TrainingArguments, or a subclass from another library, from a recipe's section `training`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import TrainingArguments

from kasatune.distributed.fsdp import deepspeed_requested, sharding_requested, without_accelerate_fsdp
from kasatune.errors import RecipeError
from kasatune.training.checkpoints import MAX_CHECKPOINTS
from kasatune.training.deepspeed_config import apply_recipe
from kasatune.wording import counted

if TYPE_CHECKING:
    from kasatune.recipes.schema import TrainingSection

_Arguments = TypeVar("_Arguments", bound=TrainingArguments)


def training_arguments(
    section: TrainingSection,
    checkpoints: Path,
    device: torch.device,
    kind: type[_Arguments] = TrainingArguments,
    **further: Any,
) -> _Arguments:
    """The recipe's section `training` as TrainingArguments.

    Args:
        section: the recipe's section `training`.
        checkpoints: the folder for checkpoints.
        device: device of the run.
        kind: class of the arguments.
        further: arguments that only `kind` has.

    Raises:
        RecipeError: a batch cannot be split into equal micro-batches over the processes, or transformers rejects a
            value.
    """
    # FSDP2 then reduces the gradient after every micro-batch. The Trainer would defer it, based on the configuration
    # of a model that transformers sharded itself.
    sync = (
        {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
        if sharding_requested() and not deepspeed_requested()
        else None
    )
    try:
        with without_accelerate_fsdp():
            arguments = kind(
                output_dir=str(checkpoints),
                num_train_epochs=float(section.epochs),
                gradient_accumulation_steps=section.gradient_accumulation,
                learning_rate=section.learning_rate,
                weight_decay=section.weight_decay,
                # A value below 1 is a fraction of the steps, 1 would be a single step.
                warmup_steps=min(section.warmup_ratio, 1 - 1e-9),
                lr_scheduler_type=section.schedule,
                max_grad_norm=section.max_grad_norm or 0.0,
                bf16=section.precision == "bfloat16",
                fp16=section.precision == "float16",
                activation_checkpointing=section.gradient_checkpointing,
                activation_checkpointing_kwargs={"use_reentrant": False} if section.gradient_checkpointing else None,
                seed=section.seed,
                data_seed=section.seed,
                use_cpu=device.type == "cpu",
                eval_strategy="epoch",
                save_strategy="epoch",
                save_total_limit=MAX_CHECKPOINTS,
                save_only_model=True,  # `RunTrainer.save_model` writes the rest
                logging_strategy="steps",
                logging_steps=1,
                logging_nan_inf_filter=False,
                report_to=list(section.report_to) or "none",
                run_name=checkpoints.parent.name or None,
                remove_unused_columns=False,
                disable_tqdm=True,
                dataloader_pin_memory=device.type == "cuda",
                max_steps=-1 if section.max_steps is None else section.max_steps,
                accelerator_config=sync,
                **further,
            )
    except (ValueError, ImportError) as fault:
        raise RecipeError([f"training: {fault}"]) from fault
    # With several visible GPUs and no launcher the Trainer would use DataParallel, with another batch size.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    if deepspeed_requested():
        apply_recipe(arguments, section)
    pieces = section.gradient_accumulation * arguments.world_size
    if section.batch_size % pieces:
        raise RecipeError(
            [
                f"training.batch_size: {counted(section.batch_size, 'example')} cannot be split into "
                f"{counted(pieces, 'equal micro-batch')} "
                f"(gradient_accumulation {section.gradient_accumulation} x "
                f"{counted(arguments.world_size, 'process')}); "
                "change one of them"
            ]
        )
    arguments.per_device_train_batch_size = section.batch_size // pieces
    return arguments
