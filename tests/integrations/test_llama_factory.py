"""KaSA in LLaMA-Factory: the launcher by contract, and its runs in an environment with LLaMA-Factory."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from kasatune import KasaConfig
from kasatune.errors import InputError, UnknownSettingError
from kasatune.integrations import llama_factory
from tests.integrations import tiny_llama
from tests.integrations.checkpoints import (
    assert_different_adapters,
    assert_loads_in_plain_peft,
    assert_penalized_once,
    assert_same_adapter,
    export_command,
)
from tests.integrations.environments import foreign_python, run_in_one_process

RATE, BETA, GAMMA = 0.5, 1e-2, 1e-2
LORA = {
    "task_type": "CAUSAL_LM",
    "inference_mode": False,
    "r": 4,
    "target_modules": ["q_proj"],
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": None,
}
MODEL = {"use_unsloth": False, "use_kt": False}
TUNING = {"finetuning_type": "lora", "loraplus_lr_ratio": None}


@pytest.fixture
def factory(monkeypatch):
    """The modules and names of LLaMA-Factory 0.9.5 that the launcher uses, `read_args` reading `parser.file`."""
    names = "launcher extras extras.logging hparams hparams.parser model model.adapter model.loader train train.tuner"
    modules = {name: ModuleType(f"llamafactory.{name}") for name in names.split()}
    monkeypatch.setitem(sys.modules, "llamafactory", ModuleType("llamafactory"))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"llamafactory.{name}", module)
        parent, _, child = f"llamafactory.{name}".rpartition(".")
        setattr(sys.modules[parent], child, module)
    tree = SimpleNamespace(**{name.rpartition(".")[2]: module for name, module in modules.items()}, file={}, log=[])
    tree.logging.get_logger = lambda name: SimpleNamespace(info_rank0=tree.log.append)
    tree.parser.read_args = tree.tuner.read_args = lambda args=None: tree.file if args is None else args
    tree.adapter.LoraConfig = lambda **options: options
    tree.loader.init_adapter = lambda config, model, model_args, finetuning_args, is_trainable: "adapted"
    tree.tuner.run_exp = lambda: tree.log.append(("run_exp", sys.argv[1:]))
    tree.launcher.__file__ = "launcher.py"
    tree.launcher.launch = lambda: tree.log.append(("launch", sys.argv[1:]))
    for variable in ("USE_V1", "USE_RAY", "USE_KT", "USE_MCA"):
        monkeypatch.delenv(variable, raising=False)
    return tree


def test_the_configuration_file_and_the_options_of_lora_make_one_kasa_config(factory):
    factory.file = {"stage": "sft", "kasa": {"beta": 0.5, "drop": 1}}
    llama_factory.install()
    values = factory.tuner.read_args()
    assert values == {"stage": "sft"}
    assert factory.parser.read_args(values) == values
    assert factory.file["kasa"] == {"beta": 0.5, "drop": 1}
    config = factory.adapter.LoraConfig(**{**LORA, "modules_to_save": {"lm_head", "embed_tokens"}})
    assert isinstance(config, KasaConfig)
    assert (config.r, config.lora_alpha, config.target_modules) == (4, 8, {"q_proj"})
    assert (config.beta, config.drop, config.gamma) == (0.5, 1, 1e-3)
    assert config.modules_to_save == ["embed_tokens", "lm_head"]
    assert "beta=0.5" in factory.log[-1]


def test_arguments_without_a_file_train_with_the_defaults_of_kasa(factory):
    llama_factory.install()
    assert factory.tuner.read_args(["--stage", "sft"]) == ["--stage", "sft"]
    assert factory.adapter.LoraConfig(**LORA).beta == KasaConfig().beta


@pytest.mark.parametrize(
    ("section", "kind", "message"),
    [
        (3, InputError, "3 must be a mapping"),
        ({1: 2}, InputError, "must be a mapping"),
        ({"betta": 1}, UnknownSettingError, "did you mean 'beta'"),
        ({"gamma": -1}, InputError, "gamma must be a number"),
    ],
)
def test_a_faulty_section_is_refused_before_anything_is_loaded(factory, section, kind, message):
    factory.file = {"kasa": section}
    llama_factory.install()
    with pytest.raises(kind, match=message):
        factory.parser.read_args()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"use_dora": True}, "DoRA rescales"), ({"init_lora_weights": "pissa"}, "init_lora_weights")],
)
def test_an_option_of_lora_that_kasa_does_not_have_is_refused(factory, options, message):
    llama_factory.install()
    with pytest.raises(UnknownSettingError, match=message):
        factory.adapter.LoraConfig(**{**LORA, **options})


@pytest.mark.parametrize(
    ("model", "tuning", "message"),
    [
        ({}, {"finetuning_type": "full"}, "finetuning_type: full"),
        ({}, {"loraplus_lr_ratio": 16.0}, "loraplus_lr_ratio: 16.0"),
        ({"use_unsloth": True}, {}, "use_unsloth"),
        ({"use_kt": True}, {}, "use_kt"),
    ],
)
def test_options_that_would_train_something_else_are_refused_in_training_alone(factory, model, tuning, message):
    llama_factory.install()
    arguments = (None, None, SimpleNamespace(**{**MODEL, **model}), SimpleNamespace(**{**TUNING, **tuning}))
    with pytest.raises(InputError, match=message):
        factory.loader.init_adapter(*arguments, True)
    assert factory.loader.init_adapter(*arguments, False) == "adapted"
    assert (
        factory.loader.init_adapter(None, None, SimpleNamespace(**MODEL), SimpleNamespace(**TUNING), True) == "adapted"
    )


def test_the_processes_that_torchrun_starts_run_the_launcher(factory, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["launcher", "train", "kasa.yaml"])
    assert llama_factory.main() == 0
    assert factory.log == [("launch", ["train", "kasa.yaml"])]
    module, name, *worker = f"{factory.launcher.__file__} kasa.yaml".split()
    assert (module, name) == ("-m", llama_factory.__name__)
    monkeypatch.setattr(sys, "argv", ["launcher", *worker])
    assert llama_factory.main() == 0
    assert factory.log[-1] == ("run_exp", ["kasa.yaml"])


@pytest.mark.parametrize(
    ("arguments", "variable", "message"),
    [
        (["webui"], None, "webui: LLaMA Board"),
        (["train", "a.yaml"], "USE_RAY", "USE_RAY=1"),
        (["train"], "USE_V1", "USE_V1=1"),
    ],
)
def test_processes_that_would_train_lora_are_refused(factory, monkeypatch, capsys, arguments, variable, message):
    monkeypatch.setattr(sys, "argv", ["launcher", *arguments])
    if variable:
        monkeypatch.setenv(variable, "1")
    assert llama_factory.main() == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert factory.log == []


RECIPE = f"""
stage: sft
do_train: true
model_name_or_path: base
template: default
finetuning_type: lora
lora_rank: 4
lora_alpha: 8
lora_target: all
kasa: {{beta: {BETA}, gamma: {GAMMA}}}
dataset_dir: .
dataset: tiny
cutoff_len: 48
max_steps: 2
save_steps: 1
logging_steps: 1
optim: sgd
learning_rate: {RATE}
lr_scheduler_type: constant
per_device_train_batch_size: 4
gradient_accumulation_steps: 2
report_to: none
seed: 3
"""


def losses(folder):
    lines = (folder / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def test_llama_factory_trains_and_resumes_and_its_adapter_loads_in_plain_peft(tmp_path):
    python = foreign_python("llama-factory")
    base = tiny_llama.write_model(tmp_path / "base")
    alpaca = [{"instruction": row["question"], "input": "", "output": row["answer"]} for row in tiny_llama.rows(24)]
    (tmp_path / "tiny.json").write_text(json.dumps(alpaca), encoding="utf-8")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"tiny": {"file_name": "tiny.json"}}), encoding="utf-8")
    (tmp_path / "kasa.yaml").write_text(RECIPE, encoding="utf-8")

    def command(output, *more):
        return ["-m", "kasatune.integrations.llama_factory", "train", "kasa.yaml", f"output_dir={output}", *more]

    first, task, resumed, lora = (tmp_path / name for name in ("first", "task", "resumed", "lora"))
    run_in_one_process(
        python,
        command(task, "kasa.penalty=none", "max_steps=1"),
        command(first),
        command(resumed, f"resume_from_checkpoint={first / 'checkpoint-1'}"),
        export_command(base, first, lora),
        cwd=tmp_path,
    )
    assert_penalized_once(first / "checkpoint-1", task / "checkpoint-1", RATE, BETA, GAMMA)
    assert losses(first)[0] == losses(task)[0]
    assert_different_adapters(first / "checkpoint-1", first / "checkpoint-2")
    assert not (resumed / "checkpoint-1").exists()
    assert_same_adapter(first / "checkpoint-2", resumed / "checkpoint-2")
    assert_same_adapter(first / "checkpoint-2", first)
    assert_loads_in_plain_peft(python, base, lora)
