"""KaSA: the equations of the paper, and the PEFT tuner."""

from __future__ import annotations

# First: importing peft runs the registration, which imports the modules below from this partly initialized package.
import peft  # noqa: F401  # isort: skip  # pyright: ignore[reportUnusedImport]

from kasatune.kasa.calibration import calibrate
from kasatune.kasa.config import KasaConfig
from kasatune.kasa.layer import KasaLayer
from kasatune.kasa.model import KasaModel
from kasatune.kasa.penalty import regularization, regularization_terms
from kasatune.kasa.protection import protect

__all__ = [
    "KasaConfig",
    "KasaLayer",
    "KasaModel",
    "calibrate",
    "protect",
    "regularization",
    "regularization_terms",
]
