"""Keys of LLaMA-Factory, axolotl, TRL and PEFT, and the recipe keys that take their place."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

NOTHING = "nothing"
"""The key of a translation where a recipe needs none."""


class Translation(NamedTuple):
    """The recipe key that takes the place of another library's key.

    Attributes:
        key: what to write, "section.key", with a value where only one fits.
        remark: how the value differs; "" if it does not.
    """

    key: str
    remark: str = ""


_BATCH = Translation("training.batch_size", "examples per optimizer step, over all devices and accumulated pieces")
_PIECES = Translation("training.gradient_accumulation", "micro-batches that training.batch_size is cut into")
_PROMPTS = Translation("task.loss_on: everything", "its default, completion, leaves prompts out of the loss")
_FILES = Translation("task.train", "a file, or hub:NAME:SPLIT")
_HELD_OUT = Translation("task.validation", "a file, or the share of the training rows to hold out")
_LENGTH = Translation("task.max_length")
_RATIO = Translation("training.warmup_ratio", "a share of the optimizer steps, 0 to 1")
_LINEAR = Translation("method.target_modules: all-linear")
_FOUR_BITS, _EIGHT_BITS = Translation("model.quantization: nf4"), Translation("model.quantization: int8")
_BASE = Translation("model.name")
_CONTINUED = Translation("model.adapter", "the run or adapter that training continues from")
_TASK = Translation("task.name", "instruction for SFT, preference for DPO, reward for reward models")
_TEMPLATE = Translation("task.template")
_ANSWERS = Translation("task.loss_on", "completion (every answer), last-answer or everything")
_SMOOTHING = Translation("preference.label_smoothing")
_WHEN_SAVED = Translation("training.save_steps", "also at the end of each epoch and every ten minutes")
_WHEN_EVALUATED = Translation("training.eval_steps", "also at the end of each epoch")
_BEST = Translation("training.select", "best or last; the score of the task decides")
_OPTIMIZER = Translation(NOTHING, "the optimizer is AdamW")
_KERNELS = Translation(NOTHING, "transformers chooses the attention; Liger kernels are not used")
_LOGGED = Translation(NOTHING, "every step is in history.jsonl and report.html")
_LAUNCH = Translation(NOTHING, "devices are chosen by accelerate launch or torchrun")
_COMMAND_LINE = Translation(NOTHING, "it is the option --overwrite or --resume of `kasatune train`")
_PUSH = Translation(NOTHING, "`kasatune push RUN REPO_ID` uploads a finished run")
_WHOLE_MODULES = Translation(NOTHING, "a new head is always trained and saved")

_TABLE: dict[str, dict[str, Translation]] = {
    "LLaMA-Factory": {
        "model_name_or_path": _BASE,
        "model_revision": Translation("model.revision"),
        "adapter_name_or_path": _CONTINUED,
        "stage": _TASK,
        "quantization_bit": Translation("model.quantization", "nf4 for 4 bits, int8 for 8"),
        "finetuning_type": Translation("method.name", "lora, full, kasa and others"),
        "lora_rank": Translation("method.r"),
        "lora_alpha": Translation("method.alpha"),
        "lora_dropout": Translation("method.dropout"),
        "lora_target": Translation("method.target_modules"),
        "loraplus_lr_ratio": Translation("method.name: lora-plus", "with method.options: {ratio: ...}"),
        "pissa_init": Translation("method.name: pissa"),
        "use_dora": Translation("method.name: dora"),
        "additional_target": _WHOLE_MODULES,
        "dataset": _FILES,
        "dataset_dir": Translation("task.data"),
        "mix_strategy": Translation("task.name: mixture", "rows are drawn by the weight of each part"),
        "interleave_probs": Translation("task.parts", "with a weight in each part"),
        "eval_dataset": _HELD_OUT,
        "val_size": _HELD_OUT,
        "cutoff_len": _LENGTH,
        "pref_beta": Translation("preference.beta"),
        "pref_loss": Translation("preference.loss", "sigmoid, ipo, hinge and others"),
        "pref_ftx": Translation("preference.loss: [sigmoid, sft]", "with preference.loss_weights"),
        "dpo_label_smoothing": _SMOOTHING,
        "ref_model": Translation(NOTHING, "the reference is the model directly before the first step"),
        "max_samples": Translation("task.max_train"),
        "train_on_prompt": _PROMPTS,
        "mask_history": Translation("task.loss_on: last-answer"),
        "per_device_train_batch_size": _BATCH,
        "per_device_eval_batch_size": Translation("training.eval_batch_size"),
        "gradient_accumulation_steps": _PIECES,
        "num_train_epochs": Translation("training.epochs"),
        "lr_scheduler_type": Translation("training.schedule"),
        "warmup_steps": _RATIO,
        "bf16": Translation("training.precision: bfloat16"),
        "fp16": Translation("training.precision: float16"),
        "pure_bf16": Translation("model.dtype: bfloat16"),
        "use_cpu": Translation("training.device: cpu"),
        "optim": _OPTIMIZER,
        "flash_attn": _KERNELS,
        "enable_liger_kernel": _KERNELS,
        "eval_strategy": _WHEN_EVALUATED,
        "save_strategy": _WHEN_SAVED,
        "load_best_model_at_end": _BEST,
        "metric_for_best_model": _BEST,
        "logging_steps": _LOGGED,
        "plot_loss": _LOGGED,
        "deepspeed": _LAUNCH,
        "resume_from_checkpoint": _COMMAND_LINE,
        "overwrite_output_dir": _COMMAND_LINE,
        "output_dir": Translation("output"),
    },
    "axolotl": {
        "base_model": _BASE,
        "load_in_4bit": _FOUR_BITS,
        "load_in_8bit": _EIGHT_BITS,
        "adapter": Translation("method.name", "lora, kasa and others; model.adapter is one to continue"),
        "lora_model_dir": _CONTINUED,
        "rl": _TASK,
        "chat_template": _TEMPLATE,
        "lora_r": Translation("method.r"),
        "lora_target_modules": Translation("method.target_modules"),
        "lora_target_linear": _LINEAR,
        "peft_use_dora": Translation("method.name: dora"),
        "peft_use_rslora": Translation("method.use_rslora"),
        "datasets": _FILES,
        "test_datasets": _HELD_OUT,
        "val_set_size": _HELD_OUT,
        "sequence_len": _LENGTH,
        "sample_packing": Translation("training.packing"),
        "train_on_inputs": _PROMPTS,
        "roles_to_train": _ANSWERS,
        "train_on_eos": Translation(NOTHING, "the end of a turn is always learnt"),
        "pad_to_sequence_len": Translation(NOTHING, "rows are padded to the longest of their batch"),
        "micro_batch_size": _BATCH,
        "num_epochs": Translation("training.epochs"),
        "lr_scheduler": Translation("training.schedule"),
        "optimizer": _OPTIMIZER,
        "flash_attention": _KERNELS,
        "evals_per_epoch": _WHEN_EVALUATED,
        "saves_per_epoch": _WHEN_SAVED,
        "fsdp": _LAUNCH,
        "lora_modules_to_save": _WHOLE_MODULES,
        "early_stopping_patience": Translation("training.patience", "evaluations without a better score"),
        "wandb_project": Translation("training.report_to: [wandb]"),
    },
    "TRL": {
        "max_seq_length": _LENGTH,
        "dataset_name": _FILES,
        "loss_type": Translation("preference.loss"),
        "f_divergence_type": Translation("preference.divergence"),
        "f_alpha_divergence_coef": Translation("preference.alpha_coefficient"),
        "use_weighting": Translation("preference.weighting"),
        "precompute_ref_log_probs": Translation(NOTHING, "the reference is always computed before training"),
        "dataset_text_field": Translation("task.text"),
        "completion_only_loss": Translation("task.loss_on", "completion or everything"),
        "assistant_only_loss": _ANSWERS,
        "chat_template_path": _TEMPLATE,
        "use_peft": Translation("method.name", "lora, kasa and others, or full"),
        "max_prompt_length": Translation(NOTHING, "a prompt beyond half of task.max_length loses its beginning"),
        "padding_free": Translation("training.packing"),
        "use_liger_kernel": _KERNELS,
        "evaluation_strategy": _WHEN_EVALUATED,
        "push_to_hub": _PUSH,
        "hub_model_id": _PUSH,
        "torch_dtype": Translation("model.dtype"),
        "attn_implementation": Translation(NOTHING, "transformers chooses the attention"),
    },
    "PEFT": {
        "base_model_name_or_path": _BASE,
        "peft_type": Translation("method.name"),
        "init_lora_weights": Translation("method.name", "such as pissa, olora or milora"),
        "rank_pattern": Translation(NOTHING, "a recipe has one rank; method.name: sara chooses it per layer"),
        "modules_to_save": _WHOLE_MODULES,
    },
    "many trainers": {
        "lr": Translation("training.learning_rate"),
        "head_lr": Translation("training.head_learning_rate"),
        "wd": Translation("training.weight_decay"),
        "rank": Translation("method.r"),
        "targets": Translation("method.target_modules"),
        "model_name": _BASE,
        "dataset_path": _FILES,
        "train_file": _FILES,
        "validation_file": _HELD_OUT,
        "max_len": _LENGTH,
        "seq_len": _LENGTH,
        "train_batch_size": _BATCH,
        "grad_accum": _PIECES,
        "scheduler": Translation("training.schedule"),
        "warmup": _RATIO,
        "clip": Translation("training.max_grad_norm"),
        "gradient_clipping": Translation("training.max_grad_norm"),
        "early_stopping": Translation("training.patience", "evaluations without a better score"),
        "output_folder": Translation("output"),
    },
}
FOREIGN_KEYS: Mapping[str, Mapping[str, Translation]] = MappingProxyType(_TABLE)
"""Translations by library and key."""


def translate(key: str) -> str | None:
    """What to write instead of `key`, as a clause; None if no other library has such a key."""
    for keys in FOREIGN_KEYS.values():
        translation = keys.get(key.lower())
        if translation is not None and translation.key == NOTHING:
            return f"leave it out: {translation.remark}"
        if translation is not None:
            return f"write {translation.key}{f' ({translation.remark})' if translation.remark else ''}"
    return None
