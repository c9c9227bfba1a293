"""KASA is known to PEFT whatever is imported first, and PEFT still is what the registration assumes."""

from __future__ import annotations

import pickle
import subprocess
import sys

import peft
import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType

import kasatune
from kasatune.errors import InputError
from kasatune.kasa import KasaModel
from kasatune.kasa.registration import register
from kasatune.kasa.targets import targets_of_base
from tests.kasa.models import bert, token_ids
from tests.peft_versions import needs_peft_kasa


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.process
@pytest.mark.parametrize("order", ["import kasatune, peft", "import peft, kasatune"])
def test_either_import_order_registers_the_types(order):
    code = (
        f"{order}; table = peft.PEFT_TYPE_TO_CONFIG_MAPPING\n"
        "for name in ('KASA', 'BOTTLENECK'): print(peft.PeftType(name).value, table[peft.PeftType[name]].__name__)"
    )
    assert run(code).splitlines() == ["KASA KasaConfig", "BOTTLENECK BottleneckConfig"]


@pytest.mark.process
def test_every_room_of_the_registration_can_be_imported_first():
    modules = [
        "kasatune.kasa.layer",
        "kasatune.methods.bottleneck.config",
        "kasatune.mixtures.layer",
        "kasatune.peft_compat.quantization_backends",
        "kasatune.peft_compat.save_and_load",
        "kasatune.peft_compat.tuner_bases",
        "kasatune.weights.base_weight",
    ]
    code = (
        "import importlib, os, sys, traceback, transformers, torch\n"
        f"for name in {modules}:\n"
        "    if os.fork() == 0:\n"
        "        try:\n"
        "            importlib.import_module(name)\n"
        "        except Exception:\n"
        "            traceback.print_exc()\n"
        "            os._exit(1)\n"
        "        os._exit(0)\n"
        "    if os.wait()[1]:\n"
        "        print(name)"
    )
    assert run(code).splitlines() == []


def test_importing_kasatune_alone_imports_neither_torch_nor_peft():
    assert run("import kasatune, sys; print(sorted({'torch', 'peft', 'transformers'} & set(sys.modules)))") == "[]"


def test_peft_has_the_enum_tables_that_the_registration_extends():
    for table in ("_member_names_", "_member_map_", "_value2member_map_"):
        assert hasattr(PeftType, table), f"PEFT {peft.__version__}: the enum has no {table}"
    assert PeftType("KASA") is PeftType["KASA"] is PeftType.KASA
    assert PeftType.KASA in list(PeftType)
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.KASA] is kasatune.KasaConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.KASA].prefix == "kasa_"


def test_bottleneck_adapters_are_known_to_peft_too():
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType("BOTTLENECK")].prefix == "bottleneck_"


def test_registering_twice_changes_nothing():
    before = list(PeftType)
    register()
    assert list(PeftType) == before


def test_configuration_survives_pickling():
    config = kasatune.KasaConfig(r=3, target_modules=["query"])
    assert pickle.loads(pickle.dumps(config)) == config


@needs_peft_kasa
@pytest.mark.parametrize("taker", [KasaModel, targets_of_base])
def test_pefts_namesake_is_refused_by_kasatune_with_the_right_import(taker):
    with pytest.raises(InputError, match=r"peft\.KasaConfig, an option of peft.*from kasatune import KasaConfig"):
        taker(*([bert(), peft.KasaConfig(), "default"] if taker is KasaModel else [peft.KasaConfig(), bert()]))


def test_another_tuners_configuration_is_refused():
    with pytest.raises(InputError, match=r"peft\.LoraConfig was passed.*from kasatune import KasaConfig"):
        KasaModel(bert(), peft.LoraConfig(target_modules=["query"]), "default")


@needs_peft_kasa
def test_pefts_own_kasa_is_left_alone():
    config = peft.LoraConfig(target_modules=["query"], r=4, kasa_config=peft.KasaConfig())
    assert peft.get_peft_model(bert(), config)(token_ids()).logits.isfinite().all()
    assert not hasattr(peft.KasaConfig, "base_model_name_or_path")
