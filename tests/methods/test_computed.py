"""DyLoRA, SARA, CLoRA, LoRA-Mini and LoRA-XS compared with their equations in float64."""

from __future__ import annotations

import json
import math

import peft
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file

from kasatune import methods
from kasatune.errors import InputError
from kasatune.linalg import leading_triplets
from kasatune.methods.clora import subspace_penalty
from kasatune.methods.sara import rank_of_share
from kasatune.methods.shared.trained_parameters import trainable
from kasatune.recipes.schema import MethodSection
from tests.methods.bottleneck.models import IDS, make
from tests.methods.low_rank import LAYER, attached, begin, end

COMPUTED = ("dylora", "sara", "lora-mini", "lora-xs")


def parts(model, *names):
    """Tensors of the layer, by the ends of their names."""
    layer = model.get_submodule(LAYER)
    every = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    return [next(value.detach() for key, value in every.items() if key.endswith(name)) for name in names]


def update_of(model, x):
    """The adapter's contribution to the layer's output for x."""
    layer = model.get_submodule(LAYER)
    with torch.no_grad():
        return layer(x) - layer.base_layer(x)


def inputs():
    return torch.randn(5, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class TestDyLora:
    def test_a_step_uses_the_first_b_rows_scaled(self):
        model = attached("dylora")
        A, B = parts(model, "lora_A.default.factor", "lora_B.default.factor")
        (callback,) = methods.load("dylora").callbacks(model, MethodSection(name="dylora", r=4))
        x, seen = inputs(), set()
        for step in range(30):
            begin(callback, step)
            b = model.get_submodule(LAYER).lora_A["default"].drawn
            assert {m.drawn for m in model.modules() if hasattr(m, "drawn")} == {b}
            seen.add(b)
            s = 8 / 4
            expected = s * (4 / b) * (x @ A[:b].T) @ B[:, :b].T
            torch.testing.assert_close(update_of(model, x), expected)
            end(callback, step)
        assert seen == {1, 2, 3, 4}
        torch.testing.assert_close(update_of(model, x), (8 / 4) * x @ A.T @ B.T)

    def test_all_ranks_are_equally_likely(self):
        model = attached("dylora")
        (callback,) = methods.load("dylora").callbacks(model, MethodSection(name="dylora", r=4))
        drawn = []
        for step in range(400):
            begin(callback, step)
            drawn.append(model.get_submodule(LAYER).lora_A["default"].drawn)
        assert min(drawn.count(b) for b in (1, 2, 3, 4)) > 70

    @pytest.mark.parametrize("frozen", [True, False])
    def test_the_rows_that_a_step_trains(self, frozen):
        model = attached("dylora", frozen=frozen)
        layer = model.get_submodule(LAYER)
        for factor in (layer.lora_A["default"], layer.lora_B["default"]):
            factor.drawn = 3
        x = inputs().requires_grad_()
        layer(x).square().sum().backward()
        rows = layer.lora_A["default"].factor.grad.abs().sum(1) > 0
        columns = layer.lora_B["default"].factor.grad.abs().sum(0) > 0
        expected = [False, False, True, False] if frozen else [True, True, True, False]
        assert rows.tolist() == columns.tolist() == expected
        through = x.grad.clone()
        x.grad = None
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
        layer(x).square().sum().backward()
        torch.testing.assert_close(x.grad, through)

    def test_it_can_be_evaluated_and_saved_at_any_rank(self, tmp_path):
        model = attached("dylora", rank=2)
        A, B = parts(model, "lora_A.default.factor", "lora_B.default.factor")
        x = inputs()
        expected = (8 / 4) * (4 / 2) * (x @ A[:2].T) @ B[:, :2].T
        torch.testing.assert_close(update_of(model, x), expected)
        methods.load("dylora").save(model, tmp_path, "some/base")
        again = peft.PeftModel.from_pretrained(make("bert").double(), tmp_path / "adapter").eval()
        torch.testing.assert_close(update_of(again, x), expected, rtol=1e-6, atol=1e-6)

    def test_a_rank_above_r_is_refused(self):
        with pytest.raises(InputError, match=r"rank: 5 received, above method.r = 4"):
            attached("dylora", rank=5)


class TestSara:
    def test_the_rank_is_the_fewest_singular_values_that_reach_the_share(self):
        S = torch.tensor([5.0, 3.0, 1.0, 1.0])
        assert [rank_of_share(S, share) for share in (0.01, 0.5, 0.51, 0.8, 0.81, 1.0)] == [1, 1, 2, 2, 3, 4]

    def test_every_layer_has_the_rank_of_its_own_weight(self):
        model = attached("sara", share=0.3)
        ranks = {}
        for name, layer in model.named_modules():
            if hasattr(layer, "lora_A"):
                S = torch.linalg.svdvals(layer.base_layer.weight)
                ranks[name] = next(k for k in range(1, 17) if S[:k].sum() >= 0.3 * S.sum())
                assert layer.lora_A["default"].weight.shape[0] == ranks[name]
        assert max(ranks.values()) > 1

    def test_it_is_lora_with_a_diagonal(self):
        model = attached("sara", share=0.3)
        A, diagonal, B = parts(model, "lora_A.default.A", "lora_A.default.diagonal", "lora_B.default.weight")
        k, x = len(diagonal), inputs()
        expected = torch.einsum("ok,k,ki,ni->no", B, diagonal, A, x) * 8 / k
        torch.testing.assert_close(update_of(model, x), expected)

    def test_the_number_of_parameters_is_not_known_without_weights(self):
        with torch.device("meta"):
            model = tf.BertForSequenceClassification(tf.BertConfig())
        section = MethodSection(name="sara")
        assert methods.load("sara").trained_parameters(model, section, "classification", ["classifier"]) is None


class TestLoraMini:
    def test_it_is_a_product_of_four_matrices_of_which_two_are_trained(self):
        model = attached("lora-mini", inner=6)
        A, A_aux, B, B_aux = parts(
            model, "lora_A.default.train_part", "lora_A.default.aux", "lora_B.default.train_part", "lora_B.default.aux"
        )
        assert [list(t.shape) for t in (A, A_aux, B, B_aux)] == [[4, 6], [6, 16], [6, 4], [16, 6]]
        expected = torch.einsum("ob,br,ra,ai,ni->no", B_aux, B, A, A_aux, inputs()) * 8 / 4
        torch.testing.assert_close(update_of(model, inputs()), expected)
        names = [name for name in trainable(model) if LAYER in name]
        assert sum(trainable(model)[name].numel() for name in names) == 4 * (6 + 6)

    def test_both_trained_matrices_get_a_gradient(self):
        model = attached("lora-mini", inner=6, drawn=False)
        model(input_ids=IDS, labels=torch.tensor([0, 1])).loss.backward()
        gradients = {name: bool(p.grad.any()) for name, p in trainable(model).items() if LAYER in name}
        assert sorted(gradients.values()) == [False, True]

    def test_the_frozen_matrices_preserve_lengths(self):
        model = attached("lora-mini", inner=64)
        aux = parts(model, "lora_A.default.aux", "lora_B.default.aux")
        spread = [float(matrix.std()) for matrix in aux]
        assert spread == pytest.approx([1 / math.sqrt(16), 1 / math.sqrt(64)], rel=0.1)

    def test_a_width_below_the_rank_is_refused(self):
        with pytest.raises(InputError, match="inner: 3 received"):
            attached("lora-mini", inner=3)


class TestLoraXs:
    def test_the_core_lies_between_the_leading_singular_vectors(self):
        model = attached("lora-xs", r=3, alpha=6)
        W = model.get_submodule(LAYER).base_layer.weight.detach()
        U, S, Vh = torch.linalg.svd(W)
        (R,) = parts(model, "lora_B.default.R")
        A, B = parts(model, "lora_A.default.fixed", "lora_B.default.U")
        torch.testing.assert_close(B @ A, U[:, :3] * S[:3] @ Vh[:3], atol=1e-6, rtol=0)
        signs = (U[:, :3] * B).sum(0)
        expected = (2 * U[:, :3] * signs) @ R @ ((S[:3] * signs)[:, None] * Vh[:3]) @ inputs().T
        torch.testing.assert_close(update_of(model, inputs()), expected.T, atol=1e-5, rtol=0)

    def test_only_the_core_is_trained_and_it_starts_small(self):
        model = attached("lora-xs", drawn=False)
        names = [name for name in trainable(model) if "classifier" not in name]
        assert all(name.endswith("lora_B.default.R") for name in names)
        values = torch.cat([trainable(model)[name].flatten() for name in names])
        assert float(values.std()) == pytest.approx(1e-5, rel=0.3)

    def test_its_parameter_count_is_the_published_one(self):
        """60K, table 1 of the paper: r = 25 on queries, values and the outputs of both sublayers of RoBERTa-large."""
        config = tf.RobertaConfig(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
        )
        with torch.device("meta"):
            model = tf.RobertaForSequenceClassification(config)
        targets = ["query", "value", "attention.output.dense", "output.dense"]
        section = MethodSection(name="lora-xs", r=25, target_modules=targets)
        found = methods.load("lora-xs").trained_parameters(model, section, "classification", ["classifier"])
        assert found == 24 * 4 * 25**2 == 60_000

    def test_a_rank_beyond_a_narrow_layer_adds_nothing(self):
        model = attached("lora-xs", r=20)
        assert torch.isfinite(update_of(model, inputs())).all()

    @pytest.mark.parametrize("shape", [(40, 30), (30, 40)])
    def test_leading_triplets_are_those_of_the_svd(self, shape):
        generator = torch.Generator().manual_seed(0)
        W = torch.randn(shape, generator=generator, dtype=torch.float64)
        before = torch.get_rng_state()
        U, S, Vh = leading_triplets(W, 4)
        assert torch.equal(torch.get_rng_state(), before)
        torch.testing.assert_close(S, torch.linalg.svdvals(W)[:4], rtol=1e-6, atol=0)
        torch.testing.assert_close(W @ Vh.T, U * S, rtol=0, atol=1e-3)
        torch.testing.assert_close(U.T @ U, torch.eye(4).double())


class TestCLora:
    def test_the_term_is_half_the_squared_products_summed_over_layers(self):
        model = attached("clora", k=5, weight=0.5)
        expected = 0.0
        for layer in (m for m in model.modules() if hasattr(m, "clora_V")):
            A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            V, U = layer.clora_V.double(), layer.clora_U.double()
            for M in (A @ V, B.T @ U):
                expected += 0.5 * 0.5 * sum(float(entry) ** 2 for entry in M.flatten())
        found = methods.load("clora").step_penalty(model, MethodSection(name="clora"))
        assert float(found) == pytest.approx(expected, rel=1e-5)
        assert methods.load("clora").penalty_terms(model) == {"penalty_subspace": pytest.approx(expected, rel=1e-5)}

    def test_the_subspaces_are_orthonormal_random_and_neither_trained_nor_saved(self, tmp_path):
        model = attached("clora", k=5)
        layers = [m for m in model.modules() if hasattr(m, "clora_V")]
        for layer in layers:
            for subspace in (layer.clora_V, layer.clora_U):
                torch.testing.assert_close(subspace.T @ subspace, torch.eye(5))
        assert not torch.equal(layers[0].clora_V, layers[1].clora_V)
        assert not [name for name in trainable(model) if "clora" in name]
        methods.load("clora").save(model, tmp_path, "some/base")
        assert not [name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors") if "clora" in name]
        again = attached("clora", k=5)
        assert torch.equal(next(m for m in again.modules() if hasattr(m, "clora_V")).clora_V, layers[0].clora_V)
        other = attached("clora", k=5, seed=1)
        assert not torch.equal(next(m for m in other.modules() if hasattr(m, "clora_V")).clora_V, layers[0].clora_V)

    def test_the_penalty_acts_on_a_from_the_start_and_on_b_once_it_is_nonzero(self):
        model = attached("clora", k=5, drawn=False)
        subspace_penalty(model).backward()
        pushed = {name: bool(p.grad.any()) for name, p in trainable(model).items() if p.grad is not None}
        assert all(moved == ("lora_A" in name) for name, moved in pushed.items())


@pytest.mark.parametrize("name", COMPUTED)
def test_the_saved_adapter_is_a_stock_lora(name, tmp_path):
    model = attached(name).float()
    method = methods.load(name)
    method.save(model, tmp_path, "some/base")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {key.rsplit(".", 2)[1] for key in tensors if "classifier" not in key} == {"lora_A", "lora_B"}
    again = peft.PeftModel.from_pretrained(make("bert"), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
    with torch.no_grad():  # and the model can go on training
        before = model(input_ids=IDS).logits
    assert any("default" in key for key in trainable(model))
    assert torch.equal(model(input_ids=IDS).logits, before)


@pytest.mark.parametrize("name", [*COMPUTED, "clora"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_it_starts_as_the_base_and_merges_into_it(name, architecture):
    options = {"lora-xs": {"sigma": 0.0}}.get(name, {})
    base = make(architecture).double()
    with torch.no_grad():
        expected = base(input_ids=IDS).logits
        model = attached(name, architecture, drawn=False, **options)
        torch.testing.assert_close(model(input_ids=IDS).logits, expected)
        model = attached(name, architecture)
        own = model(input_ids=IDS).logits
        assert not torch.allclose(own, expected)
        with methods.load(name).disabled(model):
            assert torch.equal(model(input_ids=IDS).logits, expected)
        merged = methods.load(name).merge(model)
        torch.testing.assert_close(merged(input_ids=IDS).logits, own, rtol=1e-6, atol=1e-6)
