"""KaSA in ms-swift: a plug-in for `swift sft --external_plugins kasa_plugin.py --tuner_type kasa`.

kasa_plugin.py is two lines of the user's, with any settings that only KaSA has:

    from kasatune.integrations.ms_swift import register
    register(beta=1e-4, gamma=1e-3, truncate_by="activation")
"""

from __future__ import annotations

from typing import Any

from peft import PeftModel, get_peft_model
from torch import nn

from kasatune.errors import InputError
from kasatune.integrations.lora_options import kasa_config
from kasatune.kasa import KasaConfig

NAME = "kasa"
# ms-swift's names of tasks that PEFT calls otherwise; the others are PEFT's in lower case.
_TASK_TYPES = {
    "embedding": None,
    "reranker": "SEQ_CLS",
    "generative_reranker": "CAUSAL_LM",
    "decision": "CAUSAL_LM",
}


def register(**settings: Any) -> None:
    """Make `--tuner_type kasa` known to ms-swift.

    What LoRA has too is set by ms-swift's own options: `--lora_rank`, `--lora_alpha` (32 by default), `--lora_dropout`
    (0.05 by default), `--use_rslora`, `--lora_bias`, `--target_modules` and `--modules_to_save`.

    Args:
        settings: fields of KasaConfig that LoRA does not have, such as `beta`, `gamma`, `convention`, `truncate_by`,
            `drop` or `protect`. They are those of new adapters; one that training resumes from keeps its own.

    Raises:
        InputError: a setting out of its range.
        UnknownSettingError: KasaConfig has no such setting.
    """
    from swift.tuner_plugin import PeftTuner, tuners_map  # pyright: ignore[reportMissingImports]

    KasaConfig(**settings)

    class KasaTuner(PeftTuner):
        """Create a KaSA adapter; PeftTuner saves and loads it as any adapter of PEFT."""

        @staticmethod
        def prepare_model(args: Any, model: nn.Module) -> PeftModel:
            return get_peft_model(model, _config(args, model, settings))

    tuners_map[NAME] = KasaTuner


def _config(args: Any, model: nn.Module, settings: dict[str, Any]) -> KasaConfig:
    from swift.pipelines.train.tuner import (  # pyright: ignore[reportMissingImports]
        get_modules_to_save,
        get_target_modules,
    )

    _refuse_unsupported(args)
    task = str(args.task_type).lower()
    lora = {
        "r": args.lora_rank,
        "lora_alpha": args.lora_alpha,
        "lora_dropout": args.lora_dropout,
        "bias": args.lora_bias,
        "use_rslora": args.use_rslora,
        "use_dora": args.use_dora,
        "init_lora_weights": args.init_weights,
        "target_modules": get_target_modules(args, model),
        "target_parameters": args.target_parameters,
        "modules_to_save": get_modules_to_save(args, model, task) or None,
        "task_type": _TASK_TYPES.get(task, task.upper()),
    }
    return kasa_config(lora, settings)


def _refuse_unsupported(args: Any) -> None:
    """Options that act on LoRA's classes in ms-swift, and would have no effect on KaSA."""
    without_effect = {"tuner_backend": "peft", "lora_dtype": None, "lorap_lr_ratio": None, "use_swift_lora": False}
    for name, default in without_effect.items():
        value = getattr(args, name)
        if value != default:
            raise InputError(f"--{name} {value} has no effect with --tuner_type {NAME}; leave it out")
