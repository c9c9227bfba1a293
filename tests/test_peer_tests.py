"""`make peer-tests` without a checkout of PEFT: twins of LoRA cases, outcomes, the table, a run on a small suite."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import peft
import pytest
import transformers
from peer_tests import __main__ as command
from peer_tests.outcomes import REFUSALS, Outcome, classify, describe
from peer_tests.page import render, write_page
from peer_tests.tiny_models import MODELS, write_models
from peer_tests.twins import TWINS, twins_of
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from kasatune import KasaConfig
from kasatune.errors import InputError
from kasatune.methods.bottleneck import BottleneckConfig
from kasatune.mixtures import MaloraConfig, MiloraMoeConfig, MoeLoraConfig, MorConfig

CUSTOM = ["test_name", "model_id", "config_cls", "config_kwargs"]

# Twins


def test_every_tuner_of_this_project_has_a_twin():
    ours = {config for config in PEFT_TYPE_TO_CONFIG_MAPPING.values() if config.__module__.startswith("kasatune")}
    assert ours == {twin.config_class for twin in TWINS}


def test_a_plain_case_has_a_twin_of_every_tuner():
    cases = twins_of(CUSTOM, [("MLP LoRA", "MLP", peft.LoraConfig, {"target_modules": ["lin0"]})])
    assert [case.twin for case in cases] == [twin.name for twin in TWINS if not twin.transformers_only]
    name, model, config_class, settings = cases[0].values
    assert (name, model, config_class) == ("KaSA of MLP LoRA", "MLP", KasaConfig)
    assert settings == {"target_modules": ["lin0"], "r": 1}
    assert cases[1].values[3] == {**settings, "truncation": "fold"}
    by_name = {case.twin: case.values for case in cases}
    assert by_name["bottleneck"][2:] == (BottleneckConfig, {"r": 4, "places": {"lin0": "output"}})
    assert by_name["MoR"][2:] == (MorConfig, {"num_experts": 3, "target_modules": ["lin0"], "r": 1})
    for case in cases:
        case.values[2](**case.values[3])


def test_a_case_of_another_tuner_has_no_twin():
    assert twins_of(CUSTOM, [("IA3", "MLP", peft.IA3Config, {"target_modules": ["lin0"]})]) == []


def test_a_variant_of_lora_has_the_twin_that_must_refuse_it():
    (case,) = twins_of(CUSTOM, [("DoRA", "MLP", peft.LoraConfig, {"target_modules": ["lin0"], "use_dora": True})])
    with pytest.raises(InputError, match="use_dora"):
        case.values[2](**case.values[3])


def test_weights_that_are_not_initial_are_asked_for_by_pefts_common_name():
    settings = {"target_modules": ["lin0"], "init_lora_weights": False}
    cases = twins_of(["config_cls", "config_kwargs"], [(peft.LoraConfig, settings)])
    assert all(case.values[1]["init_weights"] is False for case in cases)
    assert not any("init_lora_weights" in case.values[1] for case in cases)


def test_lists_of_classes_and_of_configurations_have_twins_too():
    classes = [case.values[0] for case in twins_of(["config_cls"], [peft.LoraConfig])]
    assert classes == [KasaConfig, BottleneckConfig, MoeLoraConfig, MorConfig, MaloraConfig, MiloraMoeConfig]
    (entry,) = [pytest.param("x", peft.LoraConfig(target_modules=["lin0"], r=2), id="any")]
    built = twins_of(["test_name", "config0"], [entry])
    assert built[0].values[1] == KasaConfig(target_modules=["lin0"], r=2)


def test_a_default_of_lora_that_a_mixture_has_no_setting_for_is_left_out():
    names = ["model_id", "config_cls", "config_kwargs"]
    (plain, *_), (biased, *_) = (
        [
            case
            for case in twins_of(names, [("gpt2", peft.LoraConfig, {"r": 8, "bias": bias})])
            if case.twin == "MiLoRA (mixture)"
        ]
        for bias in ("none", "all")
    )
    assert plain.values[2] == {"r": 8}
    with pytest.raises(InputError, match="biases of the base stay frozen"):
        biased.values[1](**biased.values[2])


# Outcomes


def record(error=None, *, pytest_outcome="failed", twin="KaSA", **others):
    return {"pytest": pytest_outcome, "test": "test_x[MLP]", "twin": twin, **describe(error), **others}


STARTS_EQUAL = {"line": "assert torch.allclose(outputs_base, outputs_before)", "test": "test_disable_adapters[MLP]"}


def failing_line():
    try:
        assert STARTS_EQUAL == {}
    except AssertionError as error:
        return error


def test_the_line_that_failed_is_recorded():
    assert describe(failing_line())["line"] == "assert STARTS_EQUAL == {}"


def chained(error, cause):
    error.__cause__ = cause
    return error


def raised(action):
    with pytest.raises(InputError) as caught:
        action()
    return caught.value


OUTCOMES = {
    "passed": (record(pytest_outcome="passed"), Outcome.PASSED),
    "skipped": (record(RuntimeError("not for this"), pytest_outcome="skipped"), Outcome.SKIPPED),
    "expected to fail": (record(AssertionError(), pytest_outcome="xfailed"), Outcome.SKIPPED),
    "a refusal": (record(raised(lambda: KasaConfig(use_dora=True))), Outcome.REFUSED),
    "a refusal that the test did not expect": (
        record(chained(AssertionError("no match"), raised(lambda: KasaConfig(use_dora=True)))),
        Outcome.REFUSED,
    ),
    "a refusal without a row": (record(InputError("this is new")), Outcome.FAILED),
    "an assertion with a row": (record(AssertionError(), **STARTS_EQUAL), Outcome.REFUSED),
    "the same for a tuner without it": (record(AssertionError(), **STARTS_EQUAL, twin="KaSA, drop 0"), Outcome.FAILED),
    "the same line of another test": (record(AssertionError(), line=STARTS_EQUAL["line"]), Outcome.FAILED),
    "an exception in that line": (record(RuntimeError(), **STARTS_EQUAL), Outcome.FAILED),
    "an assertion": (record(AssertionError()), Outcome.FAILED),
    "an exception": (record(KeyError("lin0")), Outcome.FAILED),
    "no file": (record(OSError("We couldn't connect to the hub")), Outcome.NO_FILE),
    "another OSError": (record(OSError("disk full")), Outcome.FAILED),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_an_outcome_is_refused_by_a_row_only(name):
    line, expected = OUTCOMES[name]
    assert classify(line)[0] == expected


def test_the_page_counts_every_outcome_and_names_failures(tmp_path):
    lines = [line for line, _ in OUTCOMES.values()]
    page = render({"test_custom_models": lines}, {"test_custom_models": 16}, "0.0.1")
    assert "Not run when this table was written: 2 of `test_custom_models.py`." in page
    assert "| `test_custom_models.py` | KaSA, drop 0 | 0 | 0 | 0 | 0 | 1 |" in page
    assert "| all | | 1 | 3 | 2 | 1 | 7 |" in page
    assert page.count("KeyError: 'lin0'") == 1
    assert f"| {REFUSALS[0].title} | 2 |" in page
    assert write_page(tmp_path, tmp_path / "page.md", "0.0.1") == 1
    (tmp_path / "test_a.count").write_text("1")
    assert write_page(tmp_path, tmp_path / "page.md", "0.0.1") == 1
    (tmp_path / "test_a.jsonl").write_text(json.dumps(record(KeyError("lin0"))) + "\n")
    assert write_page(tmp_path, tmp_path / "page.md", "0.0.1") == 1
    (tmp_path / "test_a.jsonl").write_text(json.dumps(record(pytest_outcome="passed")) + "\n")
    assert write_page(tmp_path, tmp_path / "page.md", "0.0.1") == 0
    assert "## Failures" not in (tmp_path / "page.md").read_text()


# The checkout, and the models that stand in for those of the hub


def checkout(folder: Path, stated: str) -> Path:
    """The shape of a checkout of PEFT, with a suite of two tests."""
    (folder / "src" / "peft").mkdir(parents=True)
    (folder / "src" / "peft" / "__init__.py").write_text(f'__version__ = "{stated}"\n')
    (folder / "tests").mkdir()
    (folder / "tests" / "testing_common.py").touch()
    (folder / "tests" / "testing_utils.py").write_text(
        "def set_init_weights_false(config_cls, kwargs):\n    return {**kwargs, 'init_lora_weights': False}\n"
    )
    (folder / "tests" / "test_custom_models.py").write_text(SUITE)
    return folder


SUITE = """
import pytest, torch
from diffusers import StableDiffusionPipeline
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import AutoModel
from .testing_utils import set_init_weights_false

CASES = [
    ("LoRA", "MLP", LoraConfig, {"target_modules": ["0"]}),
    ("DoRA", "MLP", LoraConfig, {"target_modules": ["0"], "use_dora": True}),
    ("IA3", "MLP", IA3Config, {"target_modules": ["0"], "feedforward_modules": []}),
]

@pytest.mark.parametrize("test_name, model_id, config_cls, config_kwargs", CASES)
def test_the_adapter_is_not_at_its_start(test_name, model_id, config_cls, config_kwargs):
    base = torch.nn.Sequential(torch.nn.Linear(8, 8))
    expected = base(torch.ones(1, 8))
    model = get_peft_model(base, config_cls(**set_init_weights_false(config_cls, config_kwargs))).eval()
    assert not torch.equal(model(torch.ones(1, 8)), expected)

@pytest.mark.parametrize("config_cls", [LoraConfig, IA3Config])
def test_hub(config_cls):
    AutoModel.from_pretrained("peft-internal-testing/tiny-random-BertModel")
    AutoModel.from_pretrained("peft-internal-testing/no-such-model")

def test_of_something_else():
    raise AssertionError
"""


def test_a_checkout_of_another_version_is_refused(tmp_path):
    folder = checkout(tmp_path / "peft", "0.1.0")
    assert "is PEFT 0.1.0, and 0.21.2 is installed" in command.checkout_fault(folder, "0.21.2")
    assert command.checkout_fault(folder, "0.1.0") is None
    assert "no checkout of PEFT" in command.checkout_fault(tmp_path, "0.1.0")


def test_every_name_of_the_hub_has_a_model_that_can_be_built():
    for kind, config in MODELS.values():
        assert hasattr(transformers, kind)
        assert config().hidden_size == 32


def test_models_are_written_once_where_their_names_are_paths(tmp_path, monkeypatch):
    name = "peft-internal-testing/tiny-random-BertModel"
    monkeypatch.setattr("peer_tests.tiny_models.MODELS", {name: MODELS[name]})
    write_models(tmp_path)
    written = (tmp_path / name / "model.safetensors").stat().st_mtime_ns
    write_models(tmp_path)
    assert (tmp_path / name / "model.safetensors").stat().st_mtime_ns == written
    monkeypatch.chdir(tmp_path)
    assert transformers.AutoModel.from_pretrained(name).config.hidden_size == 32


@pytest.mark.process
def test_a_small_suite_is_run_on_the_twins_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "WORK", tmp_path / "work")
    folder = checkout(tmp_path / "peft", version("peft"))
    command.prepare(folder)
    for name in MODELS.keys() - {"peft-internal-testing/tiny-random-BertModel"}:
        # Written already, as far as the plug-in is concerned: building all of them takes seconds.
        (tmp_path / "work" / "models" / name).mkdir(parents=True)
        (tmp_path / "work" / "models" / name / "config.json").touch()
    command.run(["test_custom_models.py"], [])
    lines = (tmp_path / "work" / "records" / "test_custom_models.jsonl").read_text().splitlines()
    outcomes = {}
    for line in map(json.loads, lines):
        outcomes.setdefault(line["test"].partition("[")[0], []).append((line["twin"], classify(line)[0].value))
    plain = [(twin.name, "passed") for twin in TWINS if not twin.transformers_only]
    assert sorted(outcomes.pop("test_the_adapter_is_not_at_its_start")) == sorted([*plain, ("KaSA", "refused")])
    names = ["KaSA", "bottleneck", "MoE-LoRA", "MoR", "MALoRA", "MiLoRA (mixture)"]
    assert outcomes == {"test_hub": [(name, "no file") for name in names]}


def test_the_command_needs_a_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peer_tests", str(tmp_path)])
    assert command.main() == 2
    assert "no checkout of PEFT" in capsys.readouterr().err
