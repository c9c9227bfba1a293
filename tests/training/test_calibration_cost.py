"""The estimate of what a calibration costs: matrices that are held, operations, and where the plan states it."""

from __future__ import annotations

import json

import pytest

from kasatune.methods.shared.capabilities import CalibrationNeeds
from kasatune.recipes.schema import Recipe
from kasatune.training.calibration_cost import calibration_cost
from kasatune.training.parameter_count import LayerPlan
from kasatune.training.plan import make_plan

EIGHT_BILLION = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 8192, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
RATES = (1e9, 1e9)


def layer(name, *shape):
    return LayerPlan(name, "Linear", shape, 8)


def cost(layers, rates=RATES, **changes):
    values = {"source": "task", "rows": 10, "drop": 8, "protect": 0.0, "gradients": False, **changes}
    return calibration_cost(CalibrationNeeds(**values), layers, 1000, 4000, 20, rates)


def test_memory_is_that_of_the_smaller_side_and_inputs_are_shared_within_a_block():
    attention = [layer("0.attn.q", 100, 100), layer("0.attn.v", 30, 100)]
    mlp = [layer("0.mlp.up", 300, 100), layer("0.mlp.down", 100, 300)]
    assert cost(attention + mlp).memory_bytes == 8 * (100**2 + 30**2 + 100**2 + 100**2)
    # 200 tokens: 100 x 100 moments where there are more tokens than inputs, the 200 rows themselves where fewer
    inputs = 8 * 100**2 + 8 * 100**2 + 4 * 200 * 300
    assert cost(attention + mlp, drop=0, protect=0.02).memory_bytes == inputs
    assert cost([], drop=0, protect=0.02).memory_bytes == 0


def test_gradients_and_slow_machines_cost_more():
    layers = [layer("0.attn.q", 100, 100)]
    assert cost(layers, gradients=True).seconds > 2 * cost(layers).reading_seconds
    assert cost(layers, rates=(1e8, 1e8)).seconds == pytest.approx(10 * cost(layers).seconds)


@pytest.mark.parametrize(
    ("method", "memory"),
    [
        # q and v of 32 blocks: 4096^2 and 1024^2 doubles
        ({"truncate_by": "activation", "target_modules": ["q_proj", "v_proj"]}, 32 * 8 * (4096**2 + 1024**2)),
        # the 1,520 tokens themselves, once for both
        ({"name": "akasa", "target_modules": ["q_proj", "v_proj"]}, 32 * 4 * 1520 * 4096),
        ({"name": "kasa"}, None),
        ({"name": "lora"}, None),
    ],
)
def test_the_plan_of_an_8b_model_states_it(tmp_path, method, memory):
    (tmp_path / "config.json").write_text(json.dumps(EIGHT_BILLION))
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text('{"question": "a", "answer": "b"}\n' * 4)
    task = {"name": "text-generation", "prompt": "question", "completion": "answer"} | {
        name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation")
    }
    sections = {"model": {"name": str(tmp_path), "dtype": "bfloat16"}, "task": task, "method": method}
    plan = make_plan(Recipe.model_validate(sections))
    if memory is None:
        assert plan.calibration is None
        return
    assert plan.calibration.memory_bytes == memory
    assert (plan.calibration.source, plan.calibration.tokens) == ("generated", 1520)
    assert json.dumps(plan.as_dict())
    assert plan.as_dict()["calibration"]["choosing_seconds"] > 0
