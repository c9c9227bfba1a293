"""Fine-tune language models with KaSA, compare it with other PEFT methods, and deploy plain LoRA adapters.

The names in `kasatune.__all__` are the stable Python interface. Everything below, `kasatune.kasa` and the other
subpackages, may change between versions.

Importing this package registers the PEFT types KASA and BOTTLENECK and those of the mixtures (MOE_LORA, MOR, MALORA,
MILORA_MOE), whether `kasatune` or `peft` is imported first. It imports neither torch nor peft, so that the command line
starts quickly: the registration runs when peft is imported, and each public name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from wrapt import register_post_import_hook

from kasatune.errors import KasatuneError

if TYPE_CHECKING:
    from kasatune.adapter_tools.shrink import shrink_adapter
    from kasatune.adapters.export import export_adapter
    from kasatune.adapters.load import load_adapter
    from kasatune.evaluation.evaluate import evaluate
    from kasatune.evaluation.predict import predict
    from kasatune.experiments.compare.compare import compare
    from kasatune.kasa import KasaConfig, calibrate, protect, regularization
    from kasatune.linalg import TailSVD, tail_svd
    from kasatune.recipes.schema import load_recipe
    from kasatune.training.train import train


__version__ = "0.1.0"

__all__ = [
    "KasaConfig",
    "KasatuneError",
    "TailSVD",
    "__version__",
    "calibrate",
    "compare",
    "evaluate",
    "export_adapter",
    "load_adapter",
    "load_recipe",
    "predict",
    "protect",
    "regularization",
    "shrink_adapter",
    "tail_svd",
    "train",
]

_HOMES = {
    "KasaConfig": "kasatune.kasa",
    "TailSVD": "kasatune.linalg",
    "calibrate": "kasatune.kasa",
    "compare": "kasatune.experiments.compare.compare",
    "evaluate": "kasatune.evaluation.evaluate",
    "export_adapter": "kasatune.adapters.export",
    "load_adapter": "kasatune.adapters.load",
    "load_recipe": "kasatune.recipes.schema",
    "predict": "kasatune.evaluation.predict",
    "protect": "kasatune.kasa",
    "regularization": "kasatune.kasa",
    "shrink_adapter": "kasatune.adapter_tools.shrink",
    "tail_svd": "kasatune.linalg",
    "train": "kasatune.training.train",
}

# These need the packages of the extra `train`; the others work with the core alone.
_TRAIN_NAMES = frozenset({"compare", "evaluate", "load_recipe", "predict", "shrink_adapter", "train"})


def _register(_peft: object) -> None:
    for room in ("kasa", "mixtures", "methods.bottleneck"):
        importlib.import_module(f"kasatune.{room}.registration").register()


register_post_import_hook(_register, "peft")


def __getattr__(name: str) -> object:
    """Import a public name from its module when it is first used.

    Raises:
        AttributeError: there is no such name.
        MissingExtraError: the name needs the packages of `kasatune[train]`.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'kasatune' has no attribute {name!r}")
    if name in _TRAIN_NAMES:
        from kasatune.io.train_extra import require_train_extra

        require_train_extra(f"kasatune.{name}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
