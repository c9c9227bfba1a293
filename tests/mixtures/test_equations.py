"""The updates of the mixtures against sums over experts, written out, and what their routers choose."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kasatune.mixtures import layer as layers
from kasatune.mixtures import malora
from kasatune.mixtures.balance import routers
from kasatune.mixtures.config import MoeLoraConfig
from kasatune.mixtures.layer import AddProduct, MixtureLayer
from kasatune.mixtures.malora import MaloraLayer
from kasatune.mixtures.milora_moe import PromptRouter
from kasatune.mixtures.moe_lora import MoeLoraLayer
from tests.mixtures.models import CHOOSING, KINDS, TOKENS, adapted, base, batch, part, trained

NAME = "base_model.model.model.layers.0.mlp.up_proj"


def written_out(kind: str, layer: MixtureLayer, x: torch.Tensor) -> torch.Tensor:
    """The update, token by token and expert by expert."""
    p = {name.removeprefix("mixture_"): getattr(layer, name)["default"] for name in layer.adapter_layer_names}
    config = layer.settings["default"]
    N, r, s = config.num_experts, config.r, config.lora_alpha / config.r
    result = torch.zeros(*x.shape[:-1], layer.out_features)
    for index in range(x.shape[0] * x.shape[1]):
        row, column = divmod(index, x.shape[1])
        token = x[row, column]
        G = (p["router"] @ token).softmax(0)
        chosen = range(N) if kind == "mor" else G.topk(config.top_k).indices.tolist()
        total = 1.0 if kind == "mor" or len(chosen) == 1 else float(G[list(chosen)].sum())
        for i in chosen:
            if kind == "moe-lora":
                change = p["B"][:, i * r : (i + 1) * r] @ p["A"][i * r : (i + 1) * r] @ token
            elif kind == "mor":
                change = p["scale_B"][i] * (p["B"] @ (p["scale_A"][i] * (p["A"] @ token)))
            else:
                wide = config.wide_rank
                change = p["B"][:, i * wide : (i + 1) * wide] @ p["P"][i] @ p["S"] @ token
            result[row, column] += s * G[i] / total * change
    return result


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(("top_k", "settings"), [(1, {}), (2, {}), (8, {}), (2, {"num_experts": 16})])
def test_both_forms_of_moe_lora_are_equal(dropout, top_k, settings, monkeypatch):
    """The product for all experts and the loop over experts: losses and all gradients; some experts have no token."""
    results = []
    for loops in (False, True):
        monkeypatch.setattr(MoeLoraLayer, "loops", lambda self, config, x, loops=loops: loops)
        model = adapted("moe-lora", dtype=torch.float64, top_k=top_k, lora_dropout=dropout, **settings).train()
        torch.manual_seed(0)
        loss = model(**part(batch(), 0, 2)).loss
        loss.backward()
        results.append((loss, {name: p.grad for name, p in trained(model).items()}))
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-5)


def test_the_loop_is_chosen_for_wide_mixtures_on_a_cpu_with_many_tokens():
    layer = adapted("moe-lora").get_submodule(NAME)
    many, few = torch.zeros(1, 64, 16), torch.zeros(1, 8, 16)
    narrow, wide = (MoeLoraConfig(num_experts=8, top_k=2, r=r) for r in (8, 64))
    assert layer.loops(wide, many)
    assert not layer.loops(wide, few)
    assert not layer.loops(narrow, many)
    assert not layer.loops(wide, many.to("meta")), "on a GPU, the loop would wait for the numbers of tokens"


@pytest.mark.parametrize("kind", TOKENS)
def test_an_update_in_place_changes_no_result_and_no_gradient(kind, monkeypatch):
    results = []
    for allowed in (True, False):
        model = adapted(kind).train()
        x = torch.randn(2, 30, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
        layer = model.get_submodule(NAME)
        if not allowed:
            monkeypatch.setattr(type(layer), "may_overwrite", lambda self, result: False)
        layer(x).square().sum().backward()
        results.append([x.grad, *(p.grad for p in layer.parameters() if p.requires_grad)])
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_of_the_base_is_left_alone_where_others_may_hold_it(kind):
    """A hook on the base layer sees, and may keep, the output without the update."""
    model, seen = adapted(kind), {}
    for name, layer in model.named_modules():
        if isinstance(layer, MixtureLayer):
            layer.base_layer.register_forward_hook(lambda m, args, out, n=name: seen.update({n: (m, args[0], out)}))
    model(**batch())
    assert len(seen) == 14
    for module, x, out in seen.values():
        torch.testing.assert_close(out, torch.nn.functional.linear(x, module.weight, module.bias))


@pytest.mark.parametrize("kind", KINDS)
def test_backward_hooks_on_base_layers_are_called(kind):
    model, seen = adapted(kind).train(), []
    for layer in model.modules():
        if isinstance(layer, MixtureLayer):
            layer.base_layer.register_full_backward_hook(lambda *_: seen.append(1))
    model(**batch()).loss.backward()
    assert len(seen) == 11, "all but q, k and v of the first block, whose input has no gradient"


def test_second_derivatives_pass_through_an_update_in_place():
    factors = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((2, 3, 4), (2, 3, 5), (5, 4))]
    assert torch.autograd.gradgradcheck(lambda y, E, F: AddProduct.apply(y * 1, E, F).square(), factors)


@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize("tokens", [(2, 30), (1, 1)], ids=["many tokens", "one token"])
@pytest.mark.parametrize("top_k", [2, 1])
def test_the_update_is_the_sum_over_experts(kind, tokens, top_k):
    settings = {"top_k": top_k} if kind in CHOOSING else {}
    layer = adapted(kind, **settings).get_submodule(NAME)
    x = torch.randn(*tokens, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x) - layer.base_layer(x), written_out(kind, layer, x), atol=1e-5, rtol=1e-4)


def test_a_wrong_group_of_layers_changes_no_result(monkeypatch):
    """o_proj reads another tensor than q_proj: its product with q_proj's input is dropped."""
    expected = adapted("malora")(**batch()).logits
    monkeypatch.setattr(malora, "SAME_INPUT", (("q_proj", "k_proj", "o_proj"), ("up_proj", "down_proj")))
    torch.testing.assert_close(adapted("malora")(**batch()).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_of_the_same_input_share_one_product(dtype, monkeypatch):
    model, products = adapted("malora", dtype=dtype), []
    plain = malora.linear_together
    monkeypatch.setattr(malora, "linear_together", lambda x, *w: products.append(len(w) - 1) or plain(x, *w))
    model(**batch())
    assert products == [3, 1, 2, 1] * 2  # q k v, o, gate up, down
    layer = next(m for m in model.modules() if isinstance(m, MaloraLayer))
    assert layer.shared_input._source is None, "no activation is kept"


def gradients_of_unselected_experts_are_zero(model) -> None:
    """One token chooses top_k experts in each layer; the others get no gradient, and those do."""
    layer = model.get_submodule(NAME)
    with torch.no_grad():
        layer.mixture_router["default"].copy_(torch.eye(4, 16) * 50)
    x = torch.zeros(1, 1, 16)
    x[0, 0, 1], x[0, 0, 3] = 1.0, 1.1
    model.train()
    layer(x).sum().backward()
    reached = {int(i) for i in layer.mixture_B["default"].grad.unflatten(1, (4, -1)).abs().sum((0, 2)).nonzero()}
    assert reached == {1, 3}
    experts = layer.mixture_A["default"] if hasattr(layer, "mixture_A") else layer.mixture_P["default"]
    reached = {int(i) for i in experts.grad.reshape(4, -1).abs().sum(1).nonzero()}
    assert reached == {1, 3}


@pytest.mark.parametrize("kind", CHOOSING)
def test_experts_that_are_not_selected_get_no_gradient(kind):
    gradients_of_unselected_experts_are_zero(adapted(kind, num_experts=4))


@pytest.mark.parametrize("kind", CHOOSING)
def test_a_router_that_leaks_into_other_experts_fails_that_law(kind, monkeypatch):
    from kasatune.mixtures import moe_lora

    plain = layers.top_k_weights
    monkeypatch.setattr(moe_lora, "top_k_weights", lambda s, k: (plain(s, k)[0] + 1e-3, plain(s, k)[1]))
    with pytest.raises(AssertionError):
        gradients_of_unselected_experts_are_zero(adapted(kind, num_experts=4))


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_the_base_and_every_tensor_is_trained(kind):
    model, rows = (
        adapted(kind, seed=None, balance_weight=1.0) if kind in CHOOSING else adapted(kind, seed=None),
        batch(),
    )
    torch.testing.assert_close(model(**rows).logits, base()(**rows).logits, atol=1e-6, rtol=0)
    kinds = {name.split(".")[-2] for name in trained(model)}
    router = [m for m in model.modules() if isinstance(m, PromptRouter)]
    own = router[0].adapter_layer_names if router else ()
    assert kinds == {*model.get_submodule(NAME).adapter_layer_names, *own}


def test_the_shared_subspace_can_be_frozen(tmp_path):
    model = adapted("malora", train_shared=False)
    assert not [name for name in trained(model) if "mixture_S" in name]
    model.save_pretrained(tmp_path)
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(base(), tmp_path, is_trainable=True)
    assert set(trained(loaded)) == set(trained(model))
    torch.testing.assert_close(loaded(**batch()).logits, model(**batch()).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_acts_on_the_experts_and_not_on_the_router(kind):
    model = adapted(kind, lora_dropout=0.5)
    rows = part(batch(), 0, 2)
    first, second = (probabilities(model.train(), rows) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(model(**rows).logits, model(**rows).logits)


def probabilities(model: nn.Module, rows: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean entropy and loads of the first layer, whose input no dropout has changed."""
    load = next(load for name, load in routers(model) if name.startswith("model.layers.0"))
    load.reset()
    model(**rows)
    return torch.cat([load.counts, load.entropy.reshape(1)])
