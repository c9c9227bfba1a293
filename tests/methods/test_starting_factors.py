"""LoRA that starts from data (EVA, LoRA-GA, LoRA-One, LoRA-Null), and updates confined to a subspace (OPLoRA, OSF)."""

from __future__ import annotations

import json

import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear

from kasatune import export_adapter, methods
from kasatune.errors import AdapterError, DataError, InputError, ModelError, RecipeError
from kasatune.methods.shared import starting_factors
from kasatune.methods.shared.trained_parameters import trainable
from kasatune.training.train import train
from tests.methods.toys import classifier, settings
from tests.toys import At, make_recipe

INPUTS = {
    "input_ids": torch.tensor([[2, 5, 6, 9, 3, 7], [2, 7, 8, 3, 0, 0]]),
    "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]]),
}
BATCHES = [{**INPUTS, "labels": torch.tensor([0, 1])}]
QUERY = "bert.encoder.layer.1.attention.self.query"
FROM_DATA = ["eva", "lora-ga", "lora-one", "lora-null"]


def attached(name, bert, **values):
    model = classifier(bert, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return methods.load(name).attach(model, settings(name, **values), "classification", ["classifier"]).eval()


def prepared(name, bert, batches=BATCHES, **values):
    wrapped = attached(name, bert, **values)
    methods.load(name).prepare(wrapped, settings(name, **values), batches)
    return wrapped


def layer_of(wrapped) -> LoraLinear:
    layer = wrapped.get_submodule(f"base_model.model.{QUERY}")
    assert isinstance(layer, LoraLinear)
    return layer


def factors(wrapped):
    layer = layer_of(wrapped)
    A, B = (getattr(layer, f"lora_{name}")["default"].weight.detach() for name in "AB")
    return A, B, layer.get_base_layer().weight.detach(), layer.scaling["default"]


@pytest.fixture
def plain(bert):
    """The untouched base."""
    return classifier(bert, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def inputs_of(plain):
    """The inputs of the query layer at the tokens that are not padding, (10, 32)."""
    seen = []
    hook = plain.get_submodule(QUERY).register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        plain(**INPUTS)
    hook.remove()
    return seen[0][INPUTS["attention_mask"].bool()]


def gradient_of(plain):
    plain(**BATCHES[0]).loss.backward()
    return plain.get_submodule(QUERY).weight.grad


def same_span(rows, expected, atol=1e-4):
    """Whether the rows of two matrices span the same space."""
    first, second = (torch.linalg.qr(m.double().T)[0] for m in (rows, expected))
    torch.testing.assert_close(first @ first.T, second @ second.T, atol=atol, rtol=0)


def test_eva_starts_in_the_leading_directions_of_the_inputs(bert, plain):
    A, B, W, _ = factors(prepared("eva", bert, options={"tau": 0.99999}))
    x = inputs_of(plain)
    same_span(A, torch.linalg.svd(x - x.mean(0), full_matrices=False)[2][:2], atol=1e-3)
    torch.testing.assert_close(A @ A.T, torch.eye(2), atol=1e-5, rtol=0)
    assert not B.any()
    assert torch.equal(W, plain.get_submodule(QUERY).weight)


def test_eva_gives_up_where_a_batch_has_fewer_tokens_than_directions(bert):
    with pytest.raises(DataError, match=r"have not settled.*at least r tokens"):
        prepared("eva", bert, r=12)


def test_lora_ga_starts_with_singular_vectors_of_the_gradient(bert, plain):
    A, B, W, s = factors(prepared("lora-ga", bert, r=1))
    U, S, Vh = torch.linalg.svd(gradient_of(plain))
    same_span(A, Vh[:1])
    same_span(B.T, U[:, 1:2].T)
    torch.testing.assert_close(B.norm(dim=0), S[1:2] * 32**0.25 / 4, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(W + s * B @ A, plain.get_submodule(QUERY).weight, atol=1e-6, rtol=0)


def test_lora_one_starts_after_one_gradient_step_of_rank_r(bert, plain):
    A, B, W, s = factors(prepared("lora-one", bert, options={"gamma": 8}))
    U, S, Vh = torch.linalg.svd(gradient_of(plain))
    step = (U[:, :2] * S[:2]) @ Vh[:2]
    torch.testing.assert_close(s * B @ A, -s / (8 * S[0]) * step, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(B.norm(dim=0), A.norm(dim=1), atol=1e-6, rtol=1e-4)
    assert torch.equal(W, plain.get_submodule(QUERY).weight)


def test_lora_one_lowers_the_loss_of_its_rows(bert, plain):
    wrapped = prepared("lora-one", bert)
    with torch.no_grad():
        assert wrapped(**BATCHES[0]).loss < plain(**BATCHES[0]).loss


@pytest.mark.parametrize("r", [2, 40])
def test_lora_null_moves_what_the_weight_does_in_unused_directions(r, bert, plain):
    if r == 40:
        with pytest.raises(ModelError, match=r"method.r: 40 received.*32 input directions"):
            attached("lora-null", bert, r=r)
        return
    A, B, W, s = factors(prepared("lora-null", bert))
    x = inputs_of(plain)
    original = plain.get_submodule(QUERY).weight.detach()
    torch.testing.assert_close(W + s * B @ A, original, atol=1e-6, rtol=0)
    torch.testing.assert_close(B.norm(dim=0), A.norm(dim=1), atol=1e-5, rtol=1e-4)
    N = torch.linalg.qr(A.T)[0]
    torch.testing.assert_close(s * B @ A, original @ N @ N.T, atol=1e-5, rtol=0)
    assert float((x @ N).norm()) < 1e-4 * float(x.norm())  # ten tokens leave 22 directions without energy


def test_lora_null_with_more_tokens_than_inputs_uses_the_smallest_eigenvectors():
    from kasatune.linalg.leading_directions import InputMoments
    from kasatune.methods.lora_null import least_used_directions

    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9)
    C = x.T.double() @ x.double() / 300
    for inputs in (InputMoments(x, None, 300), InputMoments(None, C, 300)):
        same_span(least_used_directions(inputs, 3).T, torch.linalg.eigh(C)[1][:, :3].T)


def test_lora_null_can_train_b_alone(bert):
    names = trainable(prepared("lora-null", bert, options={"freeze_a": True}))
    assert any(".lora_B." in name for name in names)
    assert not any(".lora_A." in name for name in names)


@pytest.mark.parametrize("name", ["eva", "lora-ga", "lora-one"])
def test_an_empty_training_set_is_refused(name, bert):
    with pytest.raises(DataError, match=rf"method '{name}'.*training rows"):
        prepared(name, bert, [])


def test_lora_null_names_the_missing_text(bert):
    with pytest.raises(InputError, match="never ran"):
        prepared("lora-null", bert, [])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("eva", {"samples": 0}),
        ("eva", {"tau": 1.5}),
        ("lora-ga", {"gamma": 0}),
        ("lora-one", {"gamma": 0.0}),
        ("lora-null", {"freeze_a": "yes"}),
        ("oplora", {"k": 0}),
        ("osf", {"preserved": 1.0}),
    ],
)
def test_options_out_of_range_are_refused(name, options, bert, tmp_path):
    with pytest.raises(RecipeError, match=f"method.options.{next(iter(options))}"):
        make_recipe(bert, tmp_path, method={"name": name, "options": options})


def test_oplora_leaves_the_leading_triplets_as_they_are(bert, plain):
    wrapped = attached("oplora", bert, options={"k": 5})
    with torch.no_grad():
        for parameter in trainable(wrapped).values():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    A, B, W, s = factors(wrapped)
    assert torch.equal(W, plain.get_submodule(QUERY).weight)
    U, S, Vh = torch.linalg.svd(W.double())
    tuned = (W + s * B @ A).double()
    torch.testing.assert_close(tuned @ Vh[:5].T, U[:, :5] * S[:5], atol=1e-4, rtol=0)
    torch.testing.assert_close(U[:, :5].T @ tuned, S[:5, None] * Vh[:5], atol=1e-4, rtol=0)
    assert float((B @ A).norm()) > 1


def test_oplora_refuses_to_preserve_everything(bert):
    with pytest.raises(ModelError, match=r"method.options.k: 32 received.*\[32, 32\]"):
        attached("oplora", bert, options={"k": 32})


def test_osf_refuses_a_share_that_preserves_nothing_and_is_no_plain_lora(bert, tmp_path):
    with pytest.raises(ModelError, match=r"osf.*effective_rank"):
        attached("osf", bert, options={"preserved": 0.01})
    wrapped = attached("osf", bert)
    methods.load("osf").save(wrapped, tmp_path, "some/base")
    with pytest.raises(AdapterError, match="peft_type 'OSF' is not supported"):
        export_adapter(tmp_path / "adapter", tmp_path / "lora", to="lora")


@pytest.mark.parametrize("name", FROM_DATA)
def test_a_resumed_run_ends_as_an_uninterrupted_one(name, bert, tmp_path):
    recipe = make_recipe(bert, tmp_path / "data", method={"name": name}, epochs=3, select="last")

    def interrupt():
        raise KeyboardInterrupt

    straight = train(recipe, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "resumed", display=At(7, interrupt))
    resumed = train(recipe, tmp_path / "resumed", resume=True)
    first, second = (json.loads((run / "metrics.json").read_text()) for run in (straight, resumed))
    assert first["metrics"] == second["metrics"]
    weights = [(run / "adapter" / "adapter_model.safetensors").read_bytes() for run in (straight, resumed)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("name", ["lora-ga", "lora-null"])
def test_a_run_that_is_resumed_elsewhere_keeps_the_factors_of_its_start(name, bert):
    method = methods.load(name)
    first = prepared(name, bert)
    state = {key: value.clone() for key, value in method.training_state(first).items()}
    other = [{**INPUTS, "input_ids": INPUTS["input_ids"].flip(1), "labels": torch.tensor([1, 1])}]
    second = prepared(name, bert, other)
    assert not torch.allclose(factors(first)[0], factors(second)[0])
    method.restore_training_state(second, state)
    for given, expected in zip(factors(second)[:3], factors(first)[:3], strict=True):
        torch.testing.assert_close(given, expected, atol=1e-6, rtol=0)
    assert all(torch.equal(value, method.training_state(second)[key]) for key, value in state.items())


def test_one_process_computes_for_all(monkeypatch):
    """Rank 0 computes and sends its result or its error; the others receive it and compute nothing."""
    sent = []
    monkeypatch.setattr(starting_factors, "are_decompositions_shared", lambda: True)
    monkeypatch.setattr(starting_factors, "broadcast_from_first", lambda value: sent.append(value) or sent[0])
    assert starting_factors.computed_once(lambda: 5) == 5
    monkeypatch.setattr(starting_factors, "is_main", lambda: False)
    assert starting_factors.computed_once(lambda: pytest.fail("computed twice")) == 5
    sent[:] = [DataError("no rows")]
    with pytest.raises(DataError, match="no rows"):
        starting_factors.computed_once(lambda: 7)
