"""The configuration says no to what cannot be meant, and is written down in the same bytes every time."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import peft
import pytest

from kasatune import KasaConfig
from kasatune.errors import InputError


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"r": 0}, "r must be a whole number of at least 1, got 0"),
        ({"r": 2.5}, "r must be a whole number"),
        ({"r": True}, "r must be a whole number"),
        ({"rank_pattern": {"query": 0}}, r"rank_pattern\['query'\] must be a whole number"),
        ({"lora_alpha": 0}, "lora_alpha must be a number above 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a number above 0, got nan"),
        ({"lora_dropout": 1.0}, "lora_dropout must be at least 0 and below 1, got 1.0"),
        ({"beta": -1.0}, "beta must be a number of at least 0, got -1.0"),
        ({"gamma": "1"}, "gamma must be a number of at least 0, got '1'"),
        ({"convention": "author"}, "convention must be one of paper, authors, got 'author'"),
        ({"core": "full"}, "core must be one of diagonal, dense"),
        ({"penalty": "always"}, "penalty must be one of step, loss, none"),
        ({"truncation": "none"}, "truncation must be one of attach, fold"),
        ({"tail_source": "x"}, "tail_source must be one of auto, checkpoint, dequantized"),
        ({"bias": "some"}, "bias must be none, all or lora_only"),
        (
            {"target_modules": ".*query", "layers_to_transform": [0]},
            "layers_to_transform needs target_modules as a list",
        ),
        ({"layers_pattern": "layer"}, "layers_pattern needs layers_to_transform"),
    ],
)
def test_values_out_of_range_are_refused_by_name(given, said):
    with pytest.raises(InputError, match=said):
        KasaConfig(**given)


def test_every_fault_is_told_at_once():
    with pytest.raises(InputError) as caught:
        KasaConfig(r=0, beta=-1.0, core="full")
    assert all(name in str(caught.value) for name in ("r must", "beta must", "core must"))


def test_saved_and_loaded_again_it_is_the_same(tmp_path):
    config = KasaConfig(r=3, target_modules=["value", "query"], rank_pattern={"query": 2}, core="dense")
    config.save_pretrained(tmp_path)
    loaded = peft.PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, KasaConfig)
    assert loaded == config


@pytest.mark.process
def test_saved_bytes_do_not_depend_on_the_hash_seed(tmp_path):
    """In this process and in one with a fixed seed."""
    options = {"target_modules": ["value", "query", "key", "dense"], "exclude_modules": ["a", "b", "c"]}
    KasaConfig(**options).save_pretrained(tmp_path / "1")
    code = f"import sys, kasatune; kasatune.KasaConfig(**{options!r}).save_pretrained(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path / "2")]
    subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "2"}, check=True)
    files = [(tmp_path / name / "adapter_config.json").read_bytes() for name in "12"]
    assert files[0] == files[1]
    assert json.loads(files[0])["target_modules"] == ["dense", "key", "query", "value"]
    assert "check_base" not in json.loads(files[0])
