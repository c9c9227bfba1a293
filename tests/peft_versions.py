"""Marks of tests that need more than the oldest supported versions have (`make test-peft-versions`)."""

from __future__ import annotations

import peft
import pytest
from packaging.version import Version

from kasatune.errors import MissingExtraError
from kasatune.io.train_extra import require_train_extra
from kasatune.peft_compat.quantization_backends import QuantizationBackend

needs_peft_kasa = pytest.mark.skipif(not hasattr(peft, "KasaConfig"), reason="PEFT has a KaSA since 0.21")
newest_peft = pytest.mark.skipif(
    not hasattr(peft, "KasaConfig"), reason="the settings of LoraConfig are listed as in PEFT 0.21"
)
needs_peft_0_19 = pytest.mark.skipif(
    Version(peft.__version__) < Version("0.19"),
    reason="PEFT merges tied weights untied, and injects into compiled models by tensors, since 0.19",
)
needs_transformers_loader = pytest.mark.skipif(
    Version(peft.__version__) < Version("0.20"),
    reason="transformers' model.load_adapter imports a function that PEFT 0.18 does not have; PEFT 0.19 keeps the "
    "prefix of the keys, so that it loads nothing onto an encoder",
)
needs_base_state_dict = pytest.mark.skipif(
    not hasattr(peft, "set_base_model_state_dict"),
    reason="PEFT has functions for the base weights since 0.20",
)
needs_merge_of_quantized = pytest.mark.skipif(
    not QuantizationBackend.__module__.startswith("peft"),
    reason="PEFT has backends that write quantized weights since 0.20",
)

try:
    require_train_extra("this test")
    MISSING = ""
except MissingExtraError as fault:
    MISSING = str(fault)
needs_train = pytest.mark.skipif(bool(MISSING), reason=MISSING)
