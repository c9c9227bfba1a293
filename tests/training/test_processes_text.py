"""Text on two processes (gloo, CPU), through either Trainer: the losses and the adapter of one process."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from kasatune.recipes.schema import load_recipe, to_yaml
from kasatune.training.train import train
from tests import processes
from tests.processes import together
from tests.training.test_instruction_runs import events, recipe

pytest.importorskip("trl")
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="needs PyTorch with torch.distributed")


def assert_same(run, alone):
    ours, theirs = ([event["loss"] for event in events(one, "train")] for one in (run, alone))
    assert ours == pytest.approx(theirs, abs=1e-5) and len(theirs) > 2
    found, wanted = (json.loads((one / "metrics.json").read_text())["metrics"] for one in (run, alone))
    assert found == pytest.approx(wanted, abs=1e-4)
    a, b = (load_file(one / "adapter" / "adapter_model.safetensors") for one in (run, alone))
    assert a.keys() == b.keys()
    for name, tensor in b.items():
        torch.testing.assert_close(a[name], tensor, atol=1e-4, rtol=0)


@pytest.mark.parametrize("packing", [False, True], ids=["apart", "packed"])
def test_instructions_on_two_processes_give_what_one_gives(llama, tmp_path, packing):
    """In the last step of an epoch are fewer rows than the two pieces of two processes hold."""
    made = recipe(
        llama,
        tmp_path / "data",
        number=29,
        method={"gamma": 0.1, "beta": 0.1},
        batch_size=4 if packing else 8,
        gradient_accumulation=1 if packing else 2,
        epochs=2,
        packing=packing,
    )
    (tmp_path / "recipe.yaml").write_text(to_yaml(made))
    alone = train(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "alone")
    together(2, processes.train, str(tmp_path / "recipe.yaml"), str(tmp_path / "run"))
    assert_same(tmp_path / "run", alone)


def test_instructions_with_a_sharded_model_give_what_one_gives(llama, tmp_path):
    made = recipe(llama, tmp_path / "data", number=19, method={"gamma": 0.1, "beta": 0.1})
    (tmp_path / "recipe.yaml").write_text(to_yaml(made))
    alone = train(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "alone")
    together(2, processes.train_sharded, str(tmp_path / "recipe.yaml"), str(tmp_path / "run"))
    assert_same(tmp_path / "run", alone)
