"""Bottleneck adapters as a PEFT tuner: small nonlinear modules between the sublayers of a transformer."""

from __future__ import annotations

# First: importing peft runs the registration, which imports the modules below from this partly initialized package.
import peft  # noqa: F401  # isort: skip

from kasatune.methods.bottleneck.adapter import Bottleneck
from kasatune.methods.bottleneck.config import BottleneckConfig
from kasatune.methods.bottleneck.layer import BottleneckLayer
from kasatune.methods.bottleneck.model import BottleneckModel

__all__ = ["Bottleneck", "BottleneckConfig", "BottleneckLayer", "BottleneckModel"]
