"""Register BOTTLENECK as a PEFT type."""

from __future__ import annotations

from kasatune.kasa.registration import add_type
from kasatune.methods.bottleneck.config import BottleneckConfig
from kasatune.methods.bottleneck.model import BottleneckModel


def register() -> None:
    """Add the PEFT type BOTTLENECK; a second call changes nothing.

    Raises:
        InputError: PEFT already has a type BOTTLENECK.
    """
    add_type("BOTTLENECK", BottleneckConfig, BottleneckModel)
