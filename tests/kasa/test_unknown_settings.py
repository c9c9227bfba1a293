"""Settings that a configuration does not have: explained, or with the name that was meant."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import pickle

import peft
import pytest

from kasatune import KasaConfig
from kasatune.errors import InputError, UnknownSettingError
from kasatune.kasa.unknown_settings import LORA_ONLY
from kasatune.methods.bottleneck import BottleneckConfig
from tests.peft_versions import newest_peft


def names(config_class):
    return {field.name for field in dataclasses.fields(config_class) if field.init}


@newest_peft
def test_every_setting_of_lora_alone_has_a_reason():
    assert set(LORA_ONLY) == names(peft.LoraConfig) - names(KasaConfig)


@pytest.mark.parametrize("name", sorted(LORA_ONLY))
def test_a_setting_of_lora_alone_is_refused_by_name_with_the_reason_and_the_remedy(name):
    with pytest.raises(UnknownSettingError) as caught:
        KasaConfig(r=4, **{name: None})
    assert isinstance(caught.value, InputError) and isinstance(caught.value, TypeError)
    message = str(caught.value)
    assert message == f"KasaConfig got an unexpected keyword argument {name!r}: {LORA_ONLY[name]}"
    assert any(word in message for word in ("Leave it out", "Use ", "Name layers", "fields of", "Export each"))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("lora_alpah", "lora_alpha"),
        ("LORA_ALPHA", "lora_alpha"),
        ("alpha", "lora_alpha"),
        ("rank", "r"),
        ("lora_r", "r"),
        ("target_module", "target_modules"),
        ("dropout", "lora_dropout"),
        ("truncatoin", "truncation"),
        ("use_dorra", "use_dora"),
    ],
)
def test_a_misspelled_name_gets_the_name_that_was_meant(written, meant):
    with pytest.raises(UnknownSettingError, match=rf"argument '{written}'; did you mean '{meant}'\?"):
        KasaConfig(**{written: 4})


def test_a_name_like_no_other_lists_the_settings_without_those_of_every_configuration():
    with pytest.raises(UnknownSettingError, match=r"argument 'xyzzy'; it has: r, lora_alpha, ") as caught:
        KasaConfig(xyzzy=1)
    assert "base_model_name_or_path" not in str(caught.value)


def test_all_unknown_names_are_reported_at_once():
    with pytest.raises(UnknownSettingError, match=r"'use_dora': .*; KasaConfig got .* 'xyzzy'"):
        KasaConfig(use_dora=True, xyzzy=1)


def test_a_subclass_refuses_them_too():
    class Derived(KasaConfig):
        pass

    with pytest.raises(UnknownSettingError, match="Derived got an unexpected keyword argument 'use_dora'"):
        Derived(use_dora=True)


def test_bottleneck_adapters_explain_what_they_do_not_have():
    with pytest.raises(UnknownSettingError, match=r"BottleneckConfig got .* 'lora_dropout': the dropout is adapter_dr"):
        BottleneckConfig(lora_dropout=0.1)
    with pytest.raises(UnknownSettingError, match="did you mean 'adapter_bias'"):
        BottleneckConfig(adapter_bais=False)


def test_a_file_with_a_setting_of_a_later_version_is_read_with_a_warning(tmp_path):
    KasaConfig(r=3).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "of_next_year": 1}))
    with pytest.warns(UserWarning, match="of_next_year"):
        assert KasaConfig.from_pretrained(tmp_path).r == 3


def test_the_configuration_is_otherwise_an_ordinary_dataclass():
    config = KasaConfig(r=3, beta=0.5)
    assert dataclasses.replace(config, r=4).beta == 0.5
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert "lora_alpha" in inspect.signature(KasaConfig).parameters
