"""KaSA on whole models: what is adapted, what is refused, and that the base is never lost."""

from __future__ import annotations

import copy
import warnings

import peft
import pytest
import torch
from peft import get_peft_model

from kasatune import KasaConfig, export_adapter, tail_svd
from kasatune.errors import CheckError, InputError, ModelError
from kasatune.kasa import KasaLayer
from tests.kasa.models import bert, gpt2, labels, llama, shaken, token_ids


def logits(model, ids=None):
    with torch.no_grad():
        return model(token_ids() if ids is None else ids).logits


def adapted(model) -> dict[str, KasaLayer]:
    return {name.removeprefix("base_model.model."): m for name, m in model.named_modules() if isinstance(m, KasaLayer)}


MODELS = {"bert": bert, "gpt2": gpt2, "llama": llama}


# What is adapted


@pytest.mark.parametrize("name", MODELS)
def test_default_targets_of_the_model_type_are_adapted(name):
    model = get_peft_model(MODELS[name](), KasaConfig(r=2))
    assert {layer.rsplit(".", 1)[-1] for layer in adapted(model)} == {
        "bert": {"query", "value"},
        "gpt2": {"c_attn"},
        "llama": {"q_proj", "v_proj"},
    }[name]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target_modules": ["query"]}, [f"bert.encoder.layer.{i}.attention.self.query" for i in (0, 1)]),
        (
            {"target_modules": r".*layer\.1.*(query|key)"},
            [f"bert.encoder.layer.1.attention.self.{k}" for k in ("key", "query")],
        ),
        ({"target_modules": ["query"], "layers_to_transform": [1]}, ["bert.encoder.layer.1.attention.self.query"]),
        (
            {"target_modules": ["query"], "exclude_modules": ["bert.encoder.layer.0.attention.self.query"]},
            ["bert.encoder.layer.1.attention.self.query"],
        ),
    ],
)
def test_targets_by_list_pattern_layer_and_exclusion(options, expected):
    assert sorted(adapted(get_peft_model(bert(), KasaConfig(r=2, **options)))) == expected


def test_all_linear_leaves_the_head_alone():
    names = adapted(get_peft_model(bert(), KasaConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS")))
    assert len(names) == 13
    assert "classifier" not in names


def test_rank_and_alpha_patterns_reach_their_layers():
    config = KasaConfig(
        r=2, lora_alpha=4, target_modules=["query", "value"], rank_pattern={"query": 3}, alpha_pattern={"query": 12}
    )
    for name, layer in adapted(get_peft_model(bert(), config)).items():
        expected = (3, 4.0) if name.endswith("query") else (2, 2.0)
        assert (layer.kasa_A["default"].shape[0], layer.scaling["default"]) == expected


def test_rank_stabilized_scaling():
    layer = next(iter(adapted(get_peft_model(bert(), KasaConfig(r=4, lora_alpha=8, use_rslora=True))).values()))
    assert layer.scaling["default"] == pytest.approx(4.0)


def test_the_tail_is_the_smallest_triplets_of_the_weight_and_is_frozen():
    base = bert()
    weight = base.bert.encoder.layer[0].attention.self.query.weight.detach().clone()
    model = get_peft_model(base, KasaConfig(r=4))
    layer = adapted(model)["bert.encoder.layer.0.attention.self.query"]
    U, S, Vh = tail_svd(weight, 4)
    torch.testing.assert_close(layer.tail("default"), (U * S) @ Vh)
    trained = {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"kasa_A", "kasa_B", "kasa_sigma"}


def test_forward_is_the_literal_equation():
    base = bert()
    layer = adapted(shaken(get_peft_model(base, KasaConfig(r=4, lora_alpha=8))))[
        "bert.encoder.layer.0.attention.self.query"
    ]
    x = torch.randn(3, 5, 32)
    A, sigma, B = (f.detach().double() for f in layer.factors("default"))
    W = layer.base_layer.weight.double() - layer.tail("default").double() + 2.0 * B @ torch.diag(sigma) @ A
    expected = x.double() @ W.T + layer.base_layer.bias.double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_dropout_acts_on_the_path_of_A_alone():
    model = get_peft_model(bert(), KasaConfig(r=4, lora_dropout=0.5)).train()
    layer = next(iter(adapted(model).values()))
    x = torch.randn(4, 32)
    expected = layer.base_layer(x) - x @ layer.tail("default").T
    # B is zero at the start, so all that is left of the adapter is its tail.
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("shape", [(5, 32), (2, 5, 32), (2, 3, 5, 32)])
def test_inputs_of_two_to_four_dimensions(shape):
    layer = next(iter(adapted(shaken(get_peft_model(bert(), KasaConfig(r=4)))).values()))
    x = torch.randn(shape)
    torch.testing.assert_close(layer(x).reshape(-1, 32), layer(x.reshape(-1, 32)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("truncation", ["attach", "fold"])
def test_sixteen_bit_bases_have_float32_adapters_and_train(dtype, truncation):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(bert(dtype=dtype), KasaConfig(r=4, truncation=truncation)).train()
    assert {p.dtype for n, p in model.named_parameters() if ".kasa_" in n} == {torch.float32}
    out = model(input_ids=token_ids(), labels=labels())
    assert out.logits.dtype == dtype
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() for n, p in model.named_parameters() if p.requires_grad)


def test_folding_a_sixteen_bit_base_states_its_rounding_error():
    with pytest.warns(UserWarning, match=r"rounding W - tail loses up to 0\.\d\d of the tail's own norm"):
        get_peft_model(bert(dtype=torch.bfloat16), KasaConfig(r=4, truncation="fold"))


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = shaken(get_peft_model(bert(), KasaConfig(r=4))).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        model(input_ids=token_ids(), labels=labels()).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("truncation", ["attach", "fold"])
def test_compiles_without_a_graph_break_of_ours(truncation):
    layer = next(iter(adapted(shaken(get_peft_model(bert(), KasaConfig(r=4, truncation=truncation)))).values())).train()
    x = torch.randn(3, 32)
    expected = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected)


def test_modules_to_save_and_bias_train_with_the_adapter():
    model = get_peft_model(bert(), KasaConfig(r=4, bias="lora_only", modules_to_save=["classifier"]))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert any("classifier.modules_to_save.default.weight" in name for name in trained)
    assert sum(name.endswith("query.base_layer.bias") for name in trained) == 2


def test_tied_weights_stay_tied():
    base = llama(tied=True)
    model = get_peft_model(base, KasaConfig(r=4, target_modules=["q_proj", "lm_head"]))
    embedding = base.model.embed_tokens.weight
    assert base.lm_head.base_layer.weight is embedding
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(llama(tied=True)))


# What is refused


def test_unsuitable_targets_are_refused_by_name_and_the_model_is_untouched():
    base = bert()
    with pytest.raises(
        ModelError, match=r"bert\.embeddings\.LayerNorm is a LayerNorm.*bert\.encoder\.layer\.0\.attention is a"
    ):
        get_peft_model(base, KasaConfig(r=4, target_modules=["query", "LayerNorm", "attention"]))
    assert not adapted(base)
    assert torch.equal(logits(base), logits(bert()))


def test_rank_too_large_names_every_layer_and_its_limit():
    base = bert()
    with pytest.raises(ModelError, match=r"query: rank 32 must be below min\(out, in\) = 32"):
        get_peft_model(base, KasaConfig(r=32))
    assert not adapted(base)


def test_a_weight_that_is_not_finite_is_refused_by_name_and_the_model_is_untouched():
    base = bert()
    base.bert.encoder.layer[1].attention.self.value.weight.data[3, 3] = float("nan")
    with pytest.raises(ModelError, match=r"layer\.1\.attention\.self\.value"):
        get_peft_model(base, KasaConfig(r=4))
    assert not adapted(base)


def test_the_projection_that_multihead_attention_reads_past_is_refused():
    base = torch.nn.TransformerEncoderLayer(16, 2)
    with pytest.raises(ModelError, match=r"self_attn\.out_proj is the output projection of nn\.MultiheadAttention"):
        get_peft_model(base, KasaConfig(r=2, target_modules=["out_proj"]))


def test_folding_tied_weights_is_refused():
    with pytest.raises(ModelError, match="lm_head: its weight is tied"):
        get_peft_model(llama(tied=True), KasaConfig(r=4, target_modules=["lm_head"], truncation="fold"))


def test_a_target_that_matches_nothing_is_told():
    with pytest.warns(RuntimeWarning, match="qeury matched no layer"):
        get_peft_model(bert(), KasaConfig(r=4, target_modules=["query", "qeury"]))


def test_mixed_batches_and_weighted_sums_are_refused_with_the_remedy():
    model = get_peft_model(bert(), KasaConfig(r=4, task_type="SEQ_CLS"))
    with pytest.raises(InputError, match="export each adapter"):
        model(input_ids=token_ids(), adapter_names=["default"] * 8)
    with pytest.raises(InputError, match="export each adapter"):
        model.base_model.add_weighted_adapter(["default"], [1.0], "sum")


# The base is never lost


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("truncation", ["attach", "fold"])
def test_disabling_gives_the_base_bit_for_bit(name, truncation):
    expected = logits(MODELS[name]())
    model = shaken(get_peft_model(MODELS[name](), KasaConfig(r=4, truncation=truncation)))
    with_adapter = logits(model)
    assert not torch.equal(with_adapter, expected)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model), with_adapter)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("truncation", ["attach", "fold"])
def test_unloading_and_deleting_give_the_base_bit_for_bit(name, truncation):
    expected = MODELS[name]().state_dict()
    unloaded = shaken(get_peft_model(MODELS[name](), KasaConfig(r=4, truncation=truncation))).unload()
    assert all(torch.equal(value, expected[key]) for key, value in unloaded.state_dict().items())
    model = shaken(get_peft_model(MODELS[name](), KasaConfig(r=4, truncation=truncation)))
    model.add_adapter("other", KasaConfig(r=2, truncation=truncation))
    model.set_adapter("other")
    model.delete_adapter("default")
    model.delete_adapter("other")
    # Without any adapter PEFT's own wrapper cannot be called; the model under it can.
    assert torch.equal(logits(model.base_model), logits(MODELS[name]()))


@pytest.mark.parametrize("first", ["attach", "fold"])
@pytest.mark.parametrize("second", ["attach", "fold"])
def test_two_adapters_of_different_rank_leave_each_other_alone(first, second):
    alone = {}
    for name, rank, truncation in (("default", 4, first), ("other", 7, second)):
        base = bert()
        torch.manual_seed(5)
        alone[name] = logits(shaken(get_peft_model(base, KasaConfig(r=rank, truncation=truncation), name), name))
    base = bert()
    torch.manual_seed(5)
    model = get_peft_model(base, KasaConfig(r=4, truncation=first))
    torch.manual_seed(5)
    model.add_adapter("other", KasaConfig(r=7, truncation=second))
    shaken(shaken(model, "default"), "other")
    for name in ("default", "other", "default", "other"):
        model.set_adapter(name)
        assert torch.equal(logits(model), alone[name])
        with model.disable_adapter():
            assert torch.equal(logits(model), logits(bert()))
    model.delete_adapter("other")
    model.set_adapter("default")
    assert torch.equal(logits(model), alone["default"])


def test_several_active_adapters_are_refused_with_the_remedy():
    model = get_peft_model(bert(), KasaConfig(r=4))
    model.add_adapter("other", KasaConfig(r=2))
    with pytest.raises(InputError, match=r"one KaSA adapter can be active.*export each adapter"):
        model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match="KASA"):
        model.add_adapter("lora", peft.LoraConfig(target_modules=["query"]))


def test_the_exported_lora_stands_beside_another_lora(tmp_path):
    trained = shaken(get_peft_model(bert(), KasaConfig(r=4)))
    expected = logits(trained)
    export_adapter(trained, tmp_path / "lora")
    model = peft.PeftModel.from_pretrained(bert(), tmp_path / "lora", adapter_name="kasa").eval()
    model.add_adapter("plain", peft.LoraConfig(target_modules=["query"], init_lora_weights=False))
    model.base_model.set_adapter(["kasa", "plain"])
    both = logits(model)
    model.base_model.set_adapter(["kasa"])
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(both, expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("truncation", ["attach", "fold"])
def test_merged_equals_unmerged_and_unmerging_returns_to_the_base(name, truncation):
    model = shaken(get_peft_model(MODELS[name](), KasaConfig(r=4, truncation=truncation)))
    expected = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    assert torch.equal(logits(model), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(MODELS[name]()))
    merged = model.merge_and_unload()
    assert not any(isinstance(m, KasaLayer) for m in merged.modules())
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)


def test_disabling_while_merged_gives_the_base():
    model = shaken(get_peft_model(bert(), KasaConfig(r=4)))
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(bert()))


def test_safe_merge_refuses_what_is_not_finite_and_changes_nothing():
    model = get_peft_model(bert(), KasaConfig(r=4))
    layer = next(iter(adapted(model).values()))
    before = layer.base_layer.weight.clone()
    with torch.no_grad():
        layer.kasa_B["default"].fill_(float("inf"))
    # The type and the words of PEFT's own tuners.
    with pytest.raises(ValueError, match=r"NaNs detected in the merged weights\. The adapter default seems") as caught:
        model.merge_adapter(safe_merge=True)
    assert isinstance(caught.value, CheckError)
    assert torch.equal(layer.base_layer.weight, before)


@pytest.mark.parametrize("truncation", ["attach", "fold"])
def test_a_deep_copy_is_a_model_of_its_own(truncation):
    model = shaken(get_peft_model(bert(), KasaConfig(r=4, truncation=truncation)))
    expected = logits(model)
    twin = copy.deepcopy(model)
    twin.unload()
    assert torch.equal(logits(twin.base_model), logits(bert()))
    assert torch.equal(logits(model), expected)


def test_a_folded_model_that_moves_to_another_dtype_takes_its_original_along():
    model = get_peft_model(bert(), KasaConfig(r=4, truncation="fold")).double()
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(bert(dtype=torch.float64)))
