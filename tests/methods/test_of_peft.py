"""Methods computed by PEFT: their initialization, callbacks and saved adapters."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear

from kasatune import methods
from kasatune.errors import ModelError
from kasatune.methods.shared.trained_parameters import trainable
from kasatune.training.train import train
from tests.methods.toys import classifier, settings
from tests.toys import At, make_recipe

INPUTS = {
    "input_ids": torch.tensor([[2, 5, 6, 9, 3], [2, 7, 8, 3, 0]]),
    "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 1, 0]]),
}
QUERY = "bert.encoder.layer.1.attention.self.query"


def attach(name, bert, **values):
    model = classifier(bert)
    before = model.get_submodule(QUERY).weight.detach().clone()
    wrapped = methods.load(name).attach(model, settings(name, **values), "classification", ["classifier"])
    return wrapped, before


def factors(wrapped):
    layer = wrapped.get_submodule(f"base_model.model.{QUERY}")
    assert isinstance(layer, LoraLinear)
    A, B = (getattr(layer, f"lora_{name}")["default"].weight.detach() for name in "AB")
    return A, B, layer.get_base_layer().weight.detach(), layer.scaling["default"]


@pytest.mark.parametrize(("name", "kept"), [("pissa", slice(None, 2)), ("milora", slice(-2, None))])
def test_a_part_of_the_spectrum_moves_into_the_factors(name, kept, bert):
    wrapped, W = attach(name, bert)
    A, B, residual, s = factors(wrapped)
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    part = (U[:, kept] * S[kept] @ Vh[kept]).float()
    torch.testing.assert_close(s * B @ A, part, atol=1e-5, rtol=0)
    torch.testing.assert_close(residual, W - part, atol=1e-5, rtol=0)
    torch.testing.assert_close(B.norm(dim=0), A.norm(dim=1), atol=1e-5, rtol=1e-4)


def test_olora_starts_from_the_first_columns_of_a_qr_decomposition(bert):
    wrapped, W = attach("olora", bert)
    A, B, residual, s = factors(wrapped)
    torch.testing.assert_close(B.T @ B, torch.eye(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(B @ B.T @ W, B @ A, atol=1e-5, rtol=0)
    torch.testing.assert_close(residual, W - s * B @ A, atol=1e-5, rtol=0)


def test_olora_refuses_conv1d_layers():
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(vocab_size=13, n_embd=16, n_layer=1, n_head=2, n_positions=16, pad_token_id=0)
    with pytest.raises(ModelError, match=r"olora.*c_attn is a Conv1D"):
        methods.load("olora").attach(
            GPT2ForSequenceClassification(config), settings("olora"), "classification", ["score"]
        )


@pytest.mark.parametrize("components", ["ipm", "kpm"])
def test_corda_decomposes_the_weight_times_the_covariance_of_real_inputs(components, bert):
    options = {"components": components, "samples": 2}
    wrapped, W = attach("corda", bert, options=options)
    seen = []
    layer = wrapped.get_submodule(f"base_model.model.{QUERY}")
    hook = layer.base_layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    wrapped.eval()(**INPUTS)
    hook.remove()
    rows = [seen[0][0], seen[0][1, :4]]  # the second row without its padding
    C = torch.stack([(x / x.max().abs()).T @ (x / x.max().abs()) for x in rows]).mean(0)
    batches = [{**INPUTS, "labels": torch.tensor([0, 1])}] * 3
    methods.load("corda").prepare(wrapped, settings("corda", options=options), batches)
    A, B, residual, s = factors(wrapped)
    torch.testing.assert_close(residual, W - s * B @ A, atol=1e-5, rtol=0)
    found = None
    for damp in (0.01 * 2**power for power in range(8)):  # PEFT doubles it until the inverse is good
        damped = C + damp * C.diagonal().mean() * torch.eye(32)
        U, _, _ = torch.linalg.svd((W @ damped).double())
        span = U[:, :2] if components == "ipm" else U[:, -2:]
        projector = (span @ span.T).float()
        if torch.allclose(projector @ B, B, atol=1e-3):
            found = damp
    assert found is not None
    assert float(B.norm()) > 0


def test_corda_refuses_an_empty_training_set(bert):
    from kasatune.errors import DataError

    wrapped, _ = attach("corda", bert)
    with pytest.raises(DataError, match="training rows"):
        methods.load("corda").prepare(wrapped, settings("corda"), [])


@pytest.mark.parametrize("name", ["pissa", "milora", "olora", "corda"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_saved_adapter_is_a_plain_lora_of_twice_the_rank(name, use_rslora, bert, tmp_path):
    from peft import PeftModel

    wrapped, _ = attach(name, bert, use_rslora=use_rslora)
    methods.load(name).prepare(wrapped, settings(name), [{**INPUTS, "labels": torch.tensor([0, 1])}])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable(wrapped).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        expected = wrapped.eval()(**INPUTS).logits
    methods.load(name).save(wrapped, tmp_path, "some/base")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"], config["peft_type"]) == (4, True, "LORA")
    assert not config["corda_config"]
    base = classifier(bert)
    with torch.no_grad():
        before = base(**INPUTS).logits
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        torch.testing.assert_close(loaded(**INPUTS).logits, expected, atol=1e-5, rtol=0)
        with loaded.disable_adapter():
            assert torch.equal(loaded(**INPUTS).logits, before)


def test_rslora_ignores_use_rslora_of_the_recipe(bert):
    assert factors(attach("rslora", bert, r=4, alpha=6)[0])[3] == 3.0
    assert factors(attach("lora", bert, r=4, alpha=6)[0])[3] == 1.5


def test_ia3_does_not_scale_the_attention_output_projection(bert):
    names = [name for name in trainable(attach("ia3", bert)[0]) if "ia3" in name]
    assert {name.partition("layer.0.")[2] for name in names if "layer.0." in name} == {
        "attention.self.key.ia3_l.default",
        "attention.self.value.ia3_l.default",
        "output.dense.ia3_l.default",
    }


def test_top_layers_trains_complete_blocks_from_the_top(bert):
    model, _ = attach("top-layers", bert, options={"layers": 1})
    names = set(trainable(model))
    assert {name for name in names if "layer.1." in name} == {
        name for name, _ in model.named_parameters() if "layer.1." in name
    }
    assert names == {name for name in names if "layer.1." in name} | {"classifier.weight", "classifier.bias"}
    with pytest.raises(ModelError, match=r"layers: 3 received.*has 2 blocks"):
        attach("top-layers", bert, options={"layers": 3})


class TestAdaLora:
    @pytest.fixture(autouse=True)
    def show_ranks(self, monkeypatch):
        """History tells how many singular values are in use."""

        def ranks(method, model):
            return {
                "rank": sum(int((value != 0).sum()) for name, value in trainable(model).items() if "lora_E" in name)
            }

        monkeypatch.setattr(type(methods.load("adalora")), "penalty_terms", ranks)

    def recipe(self, bert, folder, **more):
        options = {"initial_r": 4, "initial_share": 0.2, "final_share": 0.2}
        method = {"name": "adalora", "r": 2, "target_modules": ["query", "value"], "options": options}
        training = {"train": 40, "epochs": 2, "schedule": "constant", "warmup_ratio": 0.0, **more}
        return make_recipe(bert, folder, method=method, model_options={"dropout": 0}, **training)

    def ranks(self, run):
        events = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
        return [event["rank"] for event in events if event["event"] == "train"]

    def test_ranks_decrease_to_the_target(self, bert, tmp_path):
        train(self.recipe(bert, tmp_path, select="last"), tmp_path / "run")
        ranks = self.ranks(tmp_path / "run")
        assert ranks[:2] == [16, 16]
        assert ranks == sorted(ranks, reverse=True)
        assert ranks[-3:] == [8, 8, 8]
        assert len(set(ranks)) > 3

    def test_only_nonzero_singular_values_are_saved(self, bert, tmp_path):
        from safetensors.torch import load_file

        train(self.recipe(bert, tmp_path, select="last"), tmp_path / "run")
        tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
        assert sum(len(value) for name, value in tensors.items() if "lora_E" in name) == 8
        assert sum(len(value) for name, value in tensors.items() if "lora_A" in name) == 8

    def test_a_resumed_run_equals_an_uninterrupted_one(self, bert, tmp_path):
        recipe = self.recipe(bert, tmp_path)
        train(recipe, tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "cut", display=At(5, lambda: signal.raise_signal(signal.SIGINT)))
        train(recipe, tmp_path / "cut", resume=True)
        whole, cut = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("whole", "cut"))
        assert whole["last"] == cut["last"]
        assert self.ranks(tmp_path / "whole") == self.ranks(tmp_path / "cut")

    def test_the_penalty_is_the_mean_defect_of_every_factor(self, bert):
        model, _ = attach("adalora", bert, options={"orthogonality": 0.25})
        defects = []
        for name, factor in trainable(model).items():
            if "lora_A" in name or "lora_B" in name:
                gram = factor @ factor.T if "lora_A" in name else factor.T @ factor
                defects.append(torch.linalg.matrix_norm(gram - torch.eye(3)))
        loss = methods.load("adalora").step_penalty(model, settings("adalora"))
        assert loss is not None and loss.requires_grad
        torch.testing.assert_close(loss, 0.25 * sum(defects) / len(defects))
        assert len(defects) == 8
