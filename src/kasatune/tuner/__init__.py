"""KaSA as a PEFT tuner of its own, and its adapter files."""

from __future__ import annotations

# First: importing peft runs the registration, which imports the modules below from this half-made package.
import peft  # noqa: F401  # isort: skip

from kasatune.tuner.config import KasaConfig
from kasatune.tuner.files import export_adapter, load_adapter
from kasatune.tuner.layer import KasaLayer
from kasatune.tuner.model import KasaModel
from kasatune.tuner.penalty import regularization, regularization_terms

__all__ = [
    "KasaConfig",
    "KasaLayer",
    "KasaModel",
    "export_adapter",
    "load_adapter",
    "regularization",
    "regularization_terms",
]
