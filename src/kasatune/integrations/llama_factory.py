"""KaSA in LLaMA-Factory: `python -m kasatune.integrations.llama_factory` in place of `llamafactory-cli`.

LLaMA-Factory has no place for another adapter. This launcher runs its commands with a KasaConfig where LLaMA-Factory
builds a LoraConfig, from the same options, and from the mapping `kasa` of the configuration file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from kasatune.errors import InputError, KasatuneError
from kasatune.integrations.lora_options import kasa_config
from kasatune.kasa import KasaConfig

SECTION = "kasa"
_WORKER = "worker"
# LLaMA-Factory starts several processes as `torchrun ... FILE ARGUMENTS`, split at spaces.
_TORCHRUN_TARGET = f"-m kasatune.integrations.llama_factory {_WORKER}"
_OTHER_BACKENDS = ("USE_V1", "USE_RAY", "USE_KT", "USE_MCA")
_OTHER_ADAPTERS = ("use_unsloth", "use_kt")


def main() -> int:
    """Run a command of LLaMA-Factory; the exit status."""
    try:
        _refuse_other_processes(sys.argv[1:])
        install()
        from llamafactory import launcher  # pyright: ignore[reportMissingImports]
        from llamafactory.train import tuner  # pyright: ignore[reportMissingImports]

        if sys.argv[1:2] == [_WORKER]:
            del sys.argv[1]
            tuner.run_exp()
        else:
            launcher.launch()
    except KasatuneError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_status
    return 0


def install() -> None:
    """Replace, in this process, what LLaMA-Factory reads, checks and configures for LoRA; once.

    Four names change: `read_args` in two modules, which gives up the mapping `kasa`; `LoraConfig` in model.adapter;
    `init_adapter` in model.loader, which first refuses options that would train something else than KaSA; and
    `__file__` of the launcher, which torchrun starts in every process.
    """
    from llamafactory import launcher  # pyright: ignore[reportMissingImports]
    from llamafactory.extras import logging  # pyright: ignore[reportMissingImports]
    from llamafactory.hparams import parser  # pyright: ignore[reportMissingImports]
    from llamafactory.model import adapter, loader  # pyright: ignore[reportMissingImports]
    from llamafactory.train import tuner  # pyright: ignore[reportMissingImports]

    if launcher.__file__ == _TORCHRUN_TARGET:
        return
    settings: dict[str, Any] = {}
    read_args, init_adapter = parser.read_args, loader.init_adapter
    logger = logging.get_logger(__name__)

    def read_without_settings(args: Any = None) -> Any:
        values = read_args(args)
        if isinstance(values, dict) and SECTION in values:
            values = dict(values)
            settings.clear()
            settings.update(_checked_settings(values.pop(SECTION)))
        return values

    def init_checked_adapter(config: Any, model: Any, model_args: Any, finetuning_args: Any, is_trainable: bool) -> Any:
        if is_trainable:
            _refuse_other_training(model_args, finetuning_args)
        return init_adapter(config, model, model_args, finetuning_args, is_trainable)

    def config(*, modules_to_save: Any = None, **lora: Any) -> KasaConfig:
        values = kasa_config({**lora, "modules_to_save": sorted(modules_to_save or []) or None}, settings)
        logger.info_rank0(
            f"KaSA instead of LoRA: r={values.r}, lora_alpha={values.lora_alpha}, beta={values.beta}, "
            f"gamma={values.gamma}, penalty={values.penalty}, truncate_by={values.truncate_by}"
        )
        return values

    parser.read_args = tuner.read_args = read_without_settings
    loader.init_adapter = init_checked_adapter
    adapter.LoraConfig = config
    launcher.__file__ = _TORCHRUN_TARGET


def _checked_settings(settings: object) -> Mapping[str, Any]:
    if not isinstance(settings, Mapping) or not all(isinstance(name, str) for name in settings):
        raise InputError(
            f"{SECTION}: {settings!r} must be a mapping of settings of KasaConfig, such as {{beta: 1.0e-4}}"
        )
    KasaConfig(**settings)
    return settings


def _refuse_other_processes(arguments: list[str]) -> None:
    """Commands and backends that train in code or processes that this launcher does not reach: LoRA, without a word."""
    if arguments[:1] == ["webui"]:
        raise InputError(
            "webui: LLaMA Board starts llamafactory-cli, which trains LoRA. Save its configuration and train with that"
        )
    for variable in _OTHER_BACKENDS:
        if os.environ.get(variable, "").lower() in {"true", "y", "1"}:
            raise InputError(f"{variable}={os.environ[variable]}: this backend cannot train KaSA; unset {variable}")


def _refuse_other_training(model_args: Any, finetuning_args: Any) -> None:
    kind = finetuning_args.finetuning_type
    if kind != "lora":
        raise InputError(f"finetuning_type: {kind} would not train KaSA, which takes the place of lora; set it to lora")
    for name in _OTHER_ADAPTERS:
        if getattr(model_args, name, False):
            raise InputError(f"{name}: it builds LoRA adapters of another library; remove it to train KaSA")
    ratio = finetuning_args.loraplus_lr_ratio
    if ratio is not None:
        raise InputError(f"loraplus_lr_ratio: {ratio} finds B by LoRA's name and would miss KaSA's; remove it")


if __name__ == "__main__":
    sys.exit(main())
