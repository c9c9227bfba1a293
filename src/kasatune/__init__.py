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
    from kasatune.adapters.files import export_adapter, load_adapter
    from kasatune.kasa import KasaConfig, calibrate, regularization
    from kasatune.linalg import TailSVD, tail_svd


__version__ = "0.1.0"

__all__ = [
    "KasaConfig",
    "KasatuneError",
    "TailSVD",
    "__version__",
    "calibrate",
    "export_adapter",
    "load_adapter",
    "regularization",
    "tail_svd",
]

_HOMES = {
    "KasaConfig": "kasatune.kasa",
    "TailSVD": "kasatune.linalg",
    "calibrate": "kasatune.kasa",
    "export_adapter": "kasatune.adapters.files",
    "load_adapter": "kasatune.adapters.files",
    "regularization": "kasatune.kasa",
    "tail_svd": "kasatune.linalg",
}


def _register(_peft: object) -> None:
    for module in ("kasatune.kasa.registration", "kasatune.methods.bottleneck.registration"):
        importlib.import_module(module).register()


register_post_import_hook(_register, "peft")


def __getattr__(name: str) -> object:
    """Import a public name from its home when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'kasatune' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
