"""Fine-tune language models with KaSA, compare honestly, deploy as plain LoRA.

Importing this package registers the PEFT types KASA and BOTTLENECK, whichever of `kasatune` and `peft` is imported
first. It imports neither torch nor peft by itself, so that the command line starts at once: the registration runs when
peft is there.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from wrapt import register_post_import_hook

from kasatune.errors import KasatuneError

if TYPE_CHECKING:
    from kasatune.maths import TailSVD, tail_svd
    from kasatune.tuner import KasaConfig, export_adapter, load_adapter, regularization


__version__ = "0.1.0"

__all__ = [
    "KasaConfig",
    "KasatuneError",
    "TailSVD",
    "__version__",
    "export_adapter",
    "load_adapter",
    "regularization",
    "tail_svd",
]

_HOMES = {
    "KasaConfig": "kasatune.tuner",
    "TailSVD": "kasatune.maths",
    "export_adapter": "kasatune.tuner",
    "load_adapter": "kasatune.tuner",
    "regularization": "kasatune.tuner",
    "tail_svd": "kasatune.maths",
}


def _register(_peft: object) -> None:
    for module in ("kasatune.tuner.registration", "kasatune.methods.bottleneck.registration"):
        importlib.import_module(module).register()


register_post_import_hook(_register, "peft")


def __getattr__(name: str) -> object:
    """Import a public name from its home when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'kasatune' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
