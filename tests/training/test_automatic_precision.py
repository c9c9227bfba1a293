"""training.precision: auto: what it chooses on which device, where it says so, and that a resumed run keeps it."""

from __future__ import annotations

import pytest
import torch

from kasatune.experiments.compare.run_id import plan_run
from kasatune.experiments.compare.spec import make_spec
from kasatune.experiments.compare.variants import parse_variants
from kasatune.io import environment
from kasatune.models import precision
from kasatune.models.precision import with_precision
from kasatune.runs.directory import read_recipe
from kasatune.training.plan import make_plan
from kasatune.training.train import train
from tests.toys import At, Recorder, make_recipe
from tests.training.test_resume import ctrl_c


@pytest.fixture
def features(monkeypatch):
    return lambda *names: monkeypatch.setattr(precision, "processor_features", lambda: frozenset(names))


@pytest.mark.parametrize(
    ("names", "expected", "reason"),
    [
        (("avx512f", "amx_bf16", "avx512_bf16"), "bfloat16", "this processor has AMX-BF16"),
        (("avx512f", "avx512_bf16"), "bfloat16", "this processor has AVX512-BF16"),
        (("avx512f", "avx2"), "float32", "this processor has neither AVX512-BF16 nor AMX-BF16"),
        ((), "float32", "this processor has neither AVX512-BF16 nor AMX-BF16"),
    ],
)
def test_what_is_chosen_for_a_processor(bert, tmp_path, features, names, expected, reason):
    features(*names)
    recipe, message = with_precision(make_recipe(bert, tmp_path, precision="auto"))
    assert recipe.training.precision == expected
    assert message == f"training.precision: auto chose {expected}: {reason}"
    assert with_precision(recipe) == (recipe, None)


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), "bfloat16"), ((9, 0), "bfloat16"), ((7, 5), "float32")])
def test_what_is_chosen_for_a_gpu(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert precision._choose(torch.device("cuda"))[0] == expected


def test_features_are_those_that_linux_lists(monkeypatch, tmp_path):
    listed = tmp_path / "cpuinfo"
    listed.write_text("processor\t: 0\nmodel name\t: CPU: 9\nflags\t\t: fpu amx_bf16\n\nprocessor\t: 1\nflags\t: x\n")
    monkeypatch.setattr(environment, "_PROCESSORS", listed)
    assert environment.processor_features() == {"fpu", "amx_bf16"}
    assert environment.processor() == "CPU: 9"
    monkeypatch.setattr(environment, "_PROCESSORS", tmp_path / "none")
    assert environment.processor_features() == frozenset()


def test_a_run_says_and_records_it_and_a_resumed_one_keeps_it(bert, tmp_path, features):
    features("avx512_bf16")
    recipe = make_recipe(bert, tmp_path, precision="auto")
    assert any("auto chose bfloat16" in note for note in make_plan(recipe).notes)
    display = At(1, ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=display)
    assert sum("auto chose bfloat16" in message for message in display.messages) == 1
    assert read_recipe(tmp_path / "run").training.precision == "bfloat16"
    features()
    again = Recorder()
    train(recipe, tmp_path / "run", resume=True, display=again)
    assert read_recipe(tmp_path / "run").training.precision == "bfloat16"
    assert not any("auto chose" in message for message in again.messages)


def test_a_comparison_plans_with_what_was_chosen(bert, tmp_path, features):
    features("amx_bf16")
    recipe = make_recipe(bert, tmp_path, precision="auto")
    spec = make_spec([(tmp_path / "toy.yaml", recipe)], parse_variants("kasa,lora"), [0])
    made = spec.recipe(spec.tasks[0], spec.variants[0], 0, {})
    assert made.training.precision == "bfloat16"
    assert plan_run(made, "0", search=False).identity["training"]["precision"] == "bfloat16"
