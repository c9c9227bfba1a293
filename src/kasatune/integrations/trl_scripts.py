"""KaSA in TRL's scripts: `python -m kasatune.integrations.trl_scripts sft` for `trl sft`.

TRL's scripts have options for LoRA and none for another adapter. This launcher runs them with a KasaConfig from the
same options and `--kasa_beta`, `--kasa_gamma` and so on, which a file of `--config` may hold too.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import itertools
import runpy
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kasatune.errors import InputError, KasatuneError, MissingExtraError, UnknownSettingError
from kasatune.integrations.lora_options import kasa_config
from kasatune.kasa import KasaConfig
from kasatune.kasa.config import CHOICES

SCRIPTS = ("dpo", "grpo", "kto", "reward", "rloo", "sft")

_FIELDS = {
    "beta": "weight of sum(sigma^2)",
    "gamma": "weight of the orthogonality term",
    "convention": "the paper's equations or those of the released code",
    "core": "sigma as r values or as an r x r matrix",
    "penalty": "step: added once per optimizer step; none: without",
    "truncation": "the tail beside the weight, or subtracted from it",
    "truncate_by": "which component of the weight is dropped",
    "drop": "number of triplets dropped; r by default",
    "protect": "share of the input directions that A keeps out of",
    "sigma_init": "how sigma starts",
}
"""Fields of KasaConfig that become options, with their help."""


def main() -> int:
    """Run one of TRL's scripts with the rest of the command line; the exit status."""
    name, arguments = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    try:
        if name not in SCRIPTS:
            raise InputError(f"{name or 'no script'}: name one of TRL's scripts first: {', '.join(SCRIPTS)}")
        if find_spec("trl") is None:
            raise MissingExtraError("kasatune.integrations.trl_scripts", "sft", ["trl"])
        _refuse_unknown_options(arguments)
        install()
        # argparse shows this as the name of the program.
        sys.argv = [f"python -m {__spec__.name if __spec__ else __name__} {name}", *arguments]
        runpy.run_module(f"trl.scripts.{name}", run_name="__main__")
    except KasatuneError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_status
    return 0


def install() -> None:
    """Replace, in this process, the two names through which TRL's scripts read and configure LoRA.

    `trl.ModelConfig` becomes a subclass with the options of KaSA, with which `use_peft` is on; `trl.get_peft_config`
    returns a KasaConfig.
    """
    trl: Any = importlib.import_module("trl")
    trl.ModelConfig = _model_config(trl.ModelConfig)
    trl.get_peft_config = _kasa_config


def _refuse_unknown_options(arguments: Sequence[str]) -> None:
    """Refuse options and keys of --config that begin with kasa and do not exist: TRL's scripts ignore unknown ones."""
    names = [argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")]
    for option, value in itertools.pairwise(arguments):
        if option == "--config":
            names += _keys(value)
    known = [f"kasa_{name}" for name in _FIELDS]
    for name in names:
        if name.startswith("kasa") and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UnknownSettingError(f"{name}: did you mean {near[0]}?" if near else f"{name}: use {', '.join(known)}")


def _keys(file: str) -> Iterable[str]:
    import yaml

    content = yaml.safe_load(Path(file).read_text(encoding="utf-8")) if Path(file).is_file() else None
    return map(str, content) if isinstance(content, dict) else ()


def _model_config(base: type[Any]) -> type[Any]:
    """TRL's class of model options with those of KaSA."""
    defaults = {field.name: field.default for field in dataclasses.fields(KasaConfig)}
    fields: list[Any] = [
        ("use_peft", bool, dataclasses.field(default=True, metadata={"help": "Train a KaSA adapter."}))
    ]
    for name, about in _FIELDS.items():
        kind: Any = int | None if name == "drop" else type(defaults[name])
        metadata = {"help": f"KaSA: {about}.", **({"choices": list(CHOICES[name])} if name in CHOICES else {})}
        fields.append((f"kasa_{name}", kind, dataclasses.field(default=defaults[name], metadata=metadata)))
    return dataclasses.make_dataclass(base.__name__, fields, bases=(base,))


def _kasa_config(options: Any) -> KasaConfig:
    """What TRL's get_peft_config gives for LoRA.

    Raises:
        InputError: `use_peft` is off, a value out of its range, or penalty="loss", which needs a loss of one's own.
        UnknownSettingError: an option of LoRA that KaSA has no counterpart for.
    """
    if not options.use_peft:
        raise InputError("use_peft: off would train the full model; use `trl` itself for that")
    if options.kasa_penalty == "loss":
        raise InputError("kasa_penalty: loss needs code that adds regularization(model) to the loss; use step")
    lora = {
        "task_type": options.lora_task_type,
        "r": options.lora_r,
        "target_modules": options.lora_target_modules,
        "lora_alpha": options.lora_alpha,
        "lora_dropout": options.lora_dropout,
        "bias": "none",
        "use_rslora": options.use_rslora,
        "use_dora": options.use_dora,
        "modules_to_save": options.lora_modules_to_save,
        "target_parameters": options.lora_target_parameters,
    }
    return kasa_config(lora, {name: getattr(options, f"kasa_{name}") for name in _FIELDS})


if __name__ == "__main__":
    sys.exit(main())
