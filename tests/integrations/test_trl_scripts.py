"""KaSA in TRL's scripts: options, refusals, and SFT and DPO runs of the scripts themselves."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftConfig
from safetensors.torch import load_file

from kasatune import KasaConfig
from kasatune.errors import InputError, UnknownSettingError
from kasatune.integrations import trl_scripts
from tests.integrations import adapter_parity, tiny_llama
from tests.integrations.checkpoints import assert_penalized_once, assert_same_adapter

trl = pytest.importorskip("trl", reason="needs the extra kasatune[sft]")

RATE, BETA, GAMMA = 0.5, 1e-2, 1e-2


@pytest.fixture
def scripts(monkeypatch):
    """TRL with the names that the launcher replaces, restored afterwards."""
    monkeypatch.setattr(trl, "ModelConfig", trl.ModelConfig)
    monkeypatch.setattr(trl, "get_peft_config", trl.get_peft_config)
    trl_scripts.install()
    return trl


def parsed(scripts, *arguments):
    from trl.scripts import sft

    options = sft.make_parser().parse_args_and_config(
        ["--output_dir", "out", "--bf16", "false", "--use_cpu", "true", *arguments]
    )[2]
    return scripts.get_peft_config(options)


def test_options_of_lora_and_of_kasa_make_one_configuration(scripts):
    config = parsed(scripts, "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj", "--kasa_beta", "0.5")
    assert isinstance(config, KasaConfig)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 32, 0.05)
    assert (config.target_modules, config.beta, config.gamma) == ({"q_proj", "v_proj"}, 0.5, 1e-3)


def test_without_an_option_the_settings_are_those_of_kasa_config(scripts):
    config = parsed(scripts)
    for name in trl_scripts._FIELDS:
        assert getattr(config, name) == getattr(KasaConfig(), name)


def test_a_configuration_file_holds_the_same_options(scripts, tmp_path):
    (tmp_path / "sft.yaml").write_text("lora_r: 2\nkasa_truncate_by: activation\nkasa_drop: 1\n", encoding="utf-8")
    config = parsed(scripts, "--config", str(tmp_path / "sft.yaml"))
    assert (config.r, config.truncate_by, config.drop) == (2, "activation", 1)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["--use_dora", "true"], UnknownSettingError, "DoRA rescales"),
        (["--lora_target_parameters", "experts"], UnknownSettingError, "target_parameters"),
        (["--no_use_peft"], InputError, "full model"),
        (["--kasa_penalty", "loss"], InputError, "kasa_penalty: loss"),
        (["--kasa_gamma", "-1"], InputError, "gamma must be a number"),
    ],
)
def test_options_that_would_train_something_else_are_refused(scripts, arguments, kind, message):
    with pytest.raises(kind, match=message):
        parsed(scripts, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: no script: name one of TRL's scripts first: dpo, grpo"),
        (["stf"], "error: stf: name one of"),
        (["sft", "--kasa_betta", "1"], "error: kasa_betta: did you mean kasa_beta?"),
        (["sft", "--kasa_beta=1", "--config", "sft.yaml"], "error: kasa_dorp: did you mean kasa_drop?"),
    ],
)
def test_faults_of_the_command_line_are_one_message(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft.yaml").write_text("kasa_dorp: 1\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["trl_scripts", *arguments])
    assert trl_scripts.main() == 2
    assert capsys.readouterr().err.startswith(message)


def test_every_script_reads_the_two_names_that_are_replaced():
    fields = {field.name for field in dataclasses.fields(trl.ModelConfig)}
    assert fields >= {"use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_task_type"}
    for name in trl_scripts.SCRIPTS:
        source = Path(importlib.util.find_spec(f"trl.scripts.{name}").origin).read_text(encoding="utf-8")
        assert "from trl import" in source and "peft_config=get_peft_config(model_args)" in source, name
        assert "ModelConfig," in source, name


COMMON = {
    "model_name_or_path": "base",
    "dataset_name": "rows",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0,
    "kasa_beta": BETA,
    "kasa_gamma": GAMMA,
    "max_steps": 2,
    "save_steps": 1,
    "logging_steps": 1,
    "optim": "sgd",
    "learning_rate": RATE,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_length": 48,
    "report_to": "none",
    "bf16": "false",
    "use_cpu": "true",
    "seed": 3,
}


@pytest.fixture
def run(monkeypatch, tmp_path, scripts):
    """Runs a script of TRL in this process, in a folder with a model; its rows are in the folder `rows`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trl_scripts, "install", lambda: None)  # the fixture `scripts` has done it
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tiny_llama.write_model(tmp_path / "base")
    (tmp_path / "rows").mkdir()

    def start(script, output, **changes):
        options = {**COMMON, "output_dir": output, **changes}
        pairs = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        monkeypatch.setattr(sys, "argv", ["", script, *pairs, "--lora_target_modules", "q_proj", "up_proj"])
        torch.manual_seed(0)  # TRL draws the adapter before it seeds
        assert trl_scripts.main() == 0
        return tmp_path / output

    return start


def test_sft_trains_and_resumes_and_its_export_is_a_stock_lora(run, tmp_path):
    rows = [{"prompt": row["question"], "completion": row["answer"]} for row in tiny_llama.rows(24)]
    tiny_llama.write_lines(tmp_path / "rows" / "train.jsonl", rows)
    task = run("sft", "task", kasa_penalty="none", max_steps=1)
    first = run("sft", "first")
    assert_penalized_once(first / "checkpoint-1", task / "checkpoint-1", RATE, BETA, GAMMA)
    resumed = run("sft", "resumed", resume_from_checkpoint=first / "checkpoint-1")
    assert_same_adapter(first / "checkpoint-2", resumed / "checkpoint-2")
    assert_same_adapter(first / "checkpoint-2", first)
    base, lora = tmp_path / "base", tmp_path / "lora"
    adapter_parity.export(str(base), str(first), str(lora))
    assert PeftConfig.from_pretrained(lora).peft_type == "LORA"
    expected = load_file(lora / adapter_parity.LOGITS)["logits"]
    torch.testing.assert_close(adapter_parity.logits(str(base), str(lora)), expected, rtol=1e-5, atol=1e-5)


def test_dpo_starts_at_ln_2(run, tmp_path):
    pairs = [{"prompt": row["question"], "chosen": row["answer"], "rejected": "red red"} for row in tiny_llama.rows(8)]
    tiny_llama.write_lines(tmp_path / "rows" / "train.jsonl", pairs)
    output = run("dpo", "dpo", max_steps=1)
    state = json.loads((output / "checkpoint-1" / "trainer_state.json").read_text(encoding="utf-8"))
    assert abs(state["log_history"][0]["loss"] - math.log(2)) < 1e-4
    assert PeftConfig.from_pretrained(output).peft_type == "KASA"
