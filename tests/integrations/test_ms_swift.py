"""KaSA in ms-swift: the plug-in by contract, and a run of `swift sft` in an environment with ms-swift."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from kasatune.errors import InputError, UnknownSettingError
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
ARGUMENTS = {
    "task_type": "causal_lm",
    "lora_rank": 2,
    "lora_alpha": 32.0,
    "lora_dropout": 0.05,
    "lora_bias": "none",
    "lora_dtype": None,
    "lorap_lr_ratio": None,
    "use_rslora": False,
    "use_dora": False,
    "use_swift_lora": False,
    "init_weights": True,
    "target_parameters": None,
    "tuner_backend": "peft",
}


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.q_proj(x))


@pytest.fixture
def swift(monkeypatch):
    """The modules and names of ms-swift 4.6 that the plug-in uses; the table of tuners."""
    plugin, train = ModuleType("swift.tuner_plugin"), ModuleType("swift.pipelines.train.tuner")
    plugin.PeftTuner, plugin.tuners_map = type("PeftTuner", (), {}), {}
    train.get_target_modules = lambda args, model: ["q_proj"]
    train.get_modules_to_save = lambda args, model, task_type: ["head"] if task_type == "seq_cls" else []
    for name in ("swift", "swift.pipelines", "swift.pipelines.train"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "swift.tuner_plugin", plugin)
    monkeypatch.setitem(sys.modules, "swift.pipelines.train.tuner", train)
    return plugin


def prepared(swift, settings, **changes):
    from kasatune.integrations.ms_swift import register

    register(**settings)
    torch.manual_seed(0)
    return swift.tuners_map["kasa"].prepare_model(SimpleNamespace(**{**ARGUMENTS, **changes}), Toy())


def test_options_of_lora_and_settings_of_kasa_make_one_adapter(swift):
    config = prepared(swift, {"beta": 0.5, "drop": 1}, task_type="embedding", use_rslora=True).peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (2, 32.0, 0.05, True)
    assert (config.beta, config.drop, config.target_modules, config.task_type) == (0.5, 1, {"q_proj"}, None)
    assert issubclass(swift.tuners_map["kasa"], swift.PeftTuner)


def test_modules_to_save_and_the_kind_of_task_are_passed_on(swift):
    config = prepared(swift, {}, task_type="seq_cls").peft_config["default"]
    assert config.task_type == "SEQ_CLS"
    assert "head" in config.modules_to_save


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"init_weights": "pissa"}, "init_lora_weights"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"tuner_backend": "unsloth"}, "--tuner_backend unsloth"),
        ({"lora_dtype": "bfloat16"}, "--lora_dtype bfloat16"),
        ({"lorap_lr_ratio": 16.0}, "--lorap_lr_ratio 16.0"),
        ({"use_swift_lora": True}, "--use_swift_lora True"),
        ({"lora_rank": 0}, "r must be a whole number"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused_by_name(swift, changes, message):
    with pytest.raises(InputError, match=message):
        prepared(swift, {}, **changes)


@pytest.mark.parametrize(("settings", "kind"), [({"betta": 1}, UnknownSettingError), ({"beta": -1}, InputError)])
def test_faulty_settings_are_refused_when_the_plug_in_is_imported(swift, settings, kind):
    with pytest.raises(kind, match="beta"):
        prepared(swift, settings)
    assert swift.tuners_map == {}


def test_a_setting_that_an_option_of_the_trainer_decides_is_refused(swift):
    with pytest.raises(InputError, match="name r, which the trainer's own options"):
        prepared(swift, {"r": 4})


SFT = [
    *("--model", "base", "--model_type", "llama", "--template", "dummy", "--use_hf", "true"),
    *("--torch_dtype", "float32", "--attn_impl", "eager"),
    *("--dataset", "rows.jsonl", "--split_dataset_ratio", 0, "--load_from_cache_file", "false"),
    *("--tuner_type", "kasa", "--lora_rank", 4, "--lora_alpha", 8, "--lora_dropout", 0),
    *("--max_steps", 2, "--save_steps", 1, "--logging_steps", 1, "--seed", 3),
    *("--optim", "sgd", "--learning_rate", RATE, "--lr_scheduler_type", "constant", "--warmup_ratio", 0),
    *("--weight_decay", 0),  # ms-swift has 0.1
    *("--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2),
    *("--add_version", "false", "--report_to", "none"),
]


def losses(folder):
    lines = (folder / "logging.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def test_swift_trains_resumes_and_its_adapter_loads_in_plain_peft(tmp_path):
    python = foreign_python("ms-swift")
    (sft,) = python.parents[1].glob("lib/python*/site-packages/swift/cli/sft.py")
    base = tiny_llama.write_model(tmp_path / "base")
    keys = {"user": "question", "assistant": "answer"}
    conversations = [
        {"messages": [{"role": role, "content": row[key]} for role, key in keys.items()]} for row in tiny_llama.rows(24)
    ]
    tiny_llama.write_lines(tmp_path / "rows.jsonl", conversations)
    for name, settings in {"kasa": "", "task": ', penalty="none"'}.items():
        (tmp_path / f"{name}_plugin.py").write_text(
            f"from kasatune.integrations.ms_swift import register\n\nregister(beta={BETA}, gamma={GAMMA}{settings})\n",
            encoding="utf-8",
        )

    def command(output, *more, plugin="kasa"):
        """What `swift sft ...` starts."""
        return [sft, *SFT, "--external_plugins", f"{plugin}_plugin.py", "--output_dir", output, *more]

    first, task, resumed, lora = (tmp_path / name for name in ("first", "task", "resumed", "lora"))
    run_in_one_process(
        python,
        command(task, "--max_steps", 1, plugin="task"),
        command(first),
        command(resumed, "--resume_from_checkpoint", first / "checkpoint-1"),
        export_command(base, first / "checkpoint-2", lora),
        cwd=tmp_path,
    )
    assert_penalized_once(first / "checkpoint-1", task / "checkpoint-1", RATE, BETA, GAMMA)
    assert losses(first)[0] == losses(task)[0]
    assert_different_adapters(first / "checkpoint-1", first / "checkpoint-2")
    assert not (resumed / "checkpoint-1").exists()
    assert_same_adapter(first / "checkpoint-2", resumed / "checkpoint-2")
    assert_loads_in_plain_peft(python, base, lora)
