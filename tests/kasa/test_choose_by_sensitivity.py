"""KaSA with the components whose removal lowers the task's loss: a closed form, a language model, and refusals."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import nn

from kasatune import KasaConfig, export_adapter
from kasatune.errors import InputError
from kasatune.kasa import KasaLayer, calibrate
from kasatune.kasa.truncation.choose_by_sensitivity import CANDIDATE_SHARE, measure_sensitivity
from kasatune.weights.quantized_weight import weight_of
from tests.kasa.models import bert, gpt2, labels, llama, squeezebert, token_ids

ROWS = 100


class Regression(nn.Module):
    """L = mean ||W x - t||^2 / 2 over rows."""

    def __init__(self, W):
        super().__init__()
        self.layer = nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=W.dtype)
        self.layer.weight.data = W.clone()

    def forward(self, x, labels=None):
        y = self.layer(x)
        loss = None if labels is None else (y - labels).square().sum(-1).mean() / 2
        return SimpleNamespace(loss=loss, logits=y)


def noisy_problem(rows, columns, noise=0.02):
    """Inputs with C = I, and W = clean + noise u v^T, whose smallest triplet is the noise; targets are clean x."""
    draw = torch.Generator().manual_seed(0)
    k = min(rows, columns)
    U = torch.linalg.qr(torch.randn(rows, k, generator=draw, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(columns, k, generator=draw, dtype=torch.float64)).Q
    S = torch.linspace(3, 1, k, dtype=torch.float64)
    S[-1], S[-2] = noise, 0.04
    x = torch.linalg.qr(torch.randn(ROWS, columns, generator=draw, dtype=torch.float64)).Q * ROWS**0.5
    x = x.repeat(4, 1)  # the rows that are held back have the moments of the others
    clean = (U[:, :-1] * S[:-1]) @ V[:, :-1].mT
    return (U * S) @ V.mT, noise * torch.outer(U[:, -1], V[:, -1]), x, x @ clean.mT


def config(**changes):
    return KasaConfig(**{"r": 2, "lora_alpha": 4, "truncate_by": "sensitivity", **changes})


def layers(model):
    return {name.removeprefix("base_model.model."): m for name, m in model.named_modules() if isinstance(m, KasaLayer)}


def batches(rows=8):
    ids = token_ids(rows)
    return [{"input_ids": ids[n : n + 2], "labels": ids[n : n + 2]} for n in range(0, rows, 2)]


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (6, 6)], ids=["outputs", "inputs", "square"])
def test_the_noise_in_a_weight_is_dropped_and_nothing_else(shape):
    W, noise, x, targets = noisy_problem(*shape)
    model = Regression(W)
    calibrated = calibrate(model, config(target_modules=["layer"]), [{"x": x, "labels": targets}])
    components = calibrated.activations.components
    assert components.layers["layer"]["dropped"] == 1
    # L = E||noise x||^2 / 2, so that the first order predicts -E||noise x||^2, twice what removal gives
    assert components.layers["layer"]["predicted"] == pytest.approx(-2 * components.losses[0], rel=0.01)
    assert components.losses[1] < 0.01 * components.losses[0]
    layer = layers(get_peft_model(model, calibrated))["layer"]
    torch.testing.assert_close(layer.tail("default"), noise, atol=1e-3, rtol=0.05)
    assert layer.kasa_tail_U["default"].shape == (shape[0], 2)
    assert not layer.kasa_tail_U["default"][:, 1].any()


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_nothing_is_dropped_where_every_removal_raises_the_loss(shape):
    W, _, x, _ = noisy_problem(*shape)
    model = Regression(W)
    calibrated = calibrate(model, config(target_modules=["layer"]), [{"x": x, "labels": x @ W.mT}])
    assert calibrated.activations.components.tails == {}
    adapted = get_peft_model(model, calibrated)
    assert not layers(adapted)["layer"].tail("default").any()
    assert adapted.peft_config["default"].calibration_used["layers"] == {}
    torch.testing.assert_close(adapted(x[:5]).logits, x[:5] @ W.mT)


@pytest.mark.parametrize("make", [llama, gpt2, bert, squeezebert])
def test_predictions_are_derivatives_of_the_loss(make):
    """d/dt L(W - t T_i) at t = 0, by differences, of every candidate of two layers."""
    model = make()
    ids = token_ids(4)
    batch = {"input_ids": ids, "labels": ids if make in (llama, gpt2) else labels(4)}
    model = model.double()
    names = [name for name, module in model.named_modules() if _is_target(module, name)]
    chosen = {name: weight_of(model.get_submodule(name)) for name in (names[0], names[-1])}
    measured = {}
    from kasatune.kasa.truncation import choose_by_sensitivity as module

    def remember(*arguments):
        measured["predicted"] = predict(*arguments)
        measured["triplets"] = arguments[2]
        return measured["predicted"]

    predict = module._predicted_changes
    module._predicted_changes = remember
    try:
        measure_sensitivity(model, chosen, [batch, batch], dict.fromkeys(chosen, 2))
    finally:
        module._predicted_changes = predict
    assert sum(len(changes) for changes in measured["predicted"].values()) >= 2
    for name, changes in measured["predicted"].items():
        triplets = measured["triplets"][name]
        assert float(triplets.energy.sum()) <= CANDIDATE_SHARE * triplets.total * (1 + 1e-9)
        for number, change in enumerate(changes.tolist()):
            # a step that is large enough for the norms and softmaxes that models compute in float32
            T = 0.02 * torch.outer(triplets.left[:, number], triplets.right[number])
            difference = (loss_without(model, name, T, batch) - loss_without(model, name, -T, batch)) / 0.04
            assert change == pytest.approx(difference, rel=0.02, abs=2e-5)


def _is_target(module, name):
    kind = type(module).__name__
    return kind in ("Linear", "Conv1D", "Conv1d") and not any(part in name for part in ("head", "pooler", "classifier"))


def loss_without(model, name, T, batch):
    changed = copy.deepcopy(model)
    weight = weight_of(changed.get_submodule(name))
    weight.layer.weight.data = weight.aligned(weight.read() - T).contiguous()
    with torch.no_grad():
        logits = changed(**batch).logits
    if logits.ndim == 2:
        return float(F.cross_entropy(logits, batch["labels"]))
    # transformers computes the loss of a language model in float32
    return float(F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()))


def test_a_language_model_starts_at_the_measured_loss_and_is_saved_with_its_tails(tmp_path):
    base = llama()
    given = batches(16)
    calibrated = calibrate(base, config(target_modules="all-linear"), given)
    components = calibrated.activations.components
    model = get_peft_model(base, copy.deepcopy(calibrated))
    held_back = given[3::4]
    with torch.no_grad():
        losses = [float(model(**batch).loss) for batch in held_back]
    length = min(components.losses, key=lambda tried: (components.losses[tried], tried))
    assert sum(losses) / len(losses) == pytest.approx(components.losses[length], rel=1e-5)
    assert sum(entry["dropped"] for entry in components.layers.values()) == length
    assert all(layer.kasa_tail_U["default"].shape[1] == 2 for layer in layers(model).values())

    model.save_pretrained(tmp_path / "kasa")
    saved = json.loads((tmp_path / "kasa" / "adapter_config.json").read_text())
    assert saved["truncate_by"] == "sensitivity"
    assert saved["calibration_used"]["source"] == "batches"
    assert saved["calibration_used"]["losses"]["0"] == components.losses[0]
    ids = token_ids(2)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        loaded = PeftModel.from_pretrained(llama(), tmp_path / "kasa")
        assert torch.equal(loaded(input_ids=ids).logits, expected)
        export_adapter(model, tmp_path / "lora", to="lora")
        stock = PeftModel.from_pretrained(llama(), tmp_path / "lora")
        torch.testing.assert_close(stock(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-4)
        with model.disable_adapter():
            assert torch.equal(model(input_ids=ids).logits, llama()(input_ids=ids).logits)
    with pytest.raises(InputError, match=r"truncate_by='sensitivity'.*export to 'lora' or 'kasa'"):
        export_adapter(model, tmp_path / "peft", to="peft-kasa")


def test_calibration_leaves_the_model_as_it_was():
    base = llama()
    base.train()
    base.model.layers[0].eval()
    base.model.norm.weight.requires_grad = False
    flags = [(p.requires_grad, p.grad) for p in base.parameters()]
    modes = [module.training for module in base.modules()]
    weights, random = copy.deepcopy(base.state_dict()), torch.get_rng_state()
    calibrate(base, config(target_modules=["q_proj", "up_proj"]), batches())
    assert [(p.requires_grad, p.grad) for p in base.parameters()] == flags
    assert [module.training for module in base.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(weights[key], value) for key, value in base.state_dict().items())
    assert not any(module._forward_hooks for module in base.modules())


def test_one_batch_is_split_by_its_rows_and_one_row_is_refused():
    ids = token_ids(4)
    calibrated = calibrate(llama(), config(target_modules=["v_proj"]), [{"input_ids": ids, "labels": ids}])
    assert calibrated.activations.tokens == 3 * ids.shape[1]
    for too_few in ([], [{"input_ids": ids[:1], "labels": ids[:1]}]):
        with pytest.raises(InputError, match="pass at least two"):
            calibrate(llama(), config(target_modules=["v_proj"]), too_few)


def test_labelled_rows_are_required_and_calibrate_is_named():
    with pytest.raises(InputError, match=r"labelled rows.*calibrate\(base, config, batches\)"):
        get_peft_model(llama(), config(target_modules=["v_proj"]))
    with pytest.raises(InputError, match=r"labelled rows.*calibrate\(base, config, batches\)"):
        calibrate(llama(), config(target_modules=["v_proj"]))
    unlabelled = [{"input_ids": token_ids(2)}, {"input_ids": token_ids(2)}]
    with pytest.raises(InputError, match=r"returned none for a batch with input_ids.*hold labels"):
        calibrate(llama(), config(target_modules=["v_proj"]), unlabelled)


def test_another_base_layer_count_or_choice_than_calibrated_is_refused():
    calibrated = calibrate(llama(), config(target_modules=["v_proj"]), batches())
    other = llama()
    other.model.layers[0].self_attn.v_proj.weight.data.mul_(1.5)
    with pytest.raises(InputError, match="calibrated on another base model"):
        get_peft_model(other, copy.deepcopy(calibrated))
    by_activation = calibrate(llama(), config(target_modules=["v_proj"], truncate_by="activation"), batches())
    by_activation.truncate_by = "sensitivity"
    with pytest.raises(InputError, match="call calibrate"):
        get_peft_model(llama(), by_activation)
    W, _, x, targets = noisy_problem(6, 9)
    fewer = calibrate(Regression(W), config(target_modules=["layer"]), [{"x": x, "labels": targets}])
    fewer.drop = 0
    assert not layers(get_peft_model(Regression(W), fewer))["layer"].tail("default").any()


@pytest.mark.parametrize("settings", [{"convention": "authors"}, {"tails": "folder"}])
def test_settings_that_contradict_it_are_refused(settings):
    with pytest.raises(InputError, match=r"convention='authors' fixes|tails holds"):
        config(**settings)


def test_layers_without_a_backward_pass_are_refused_by_name():
    class Frozen(nn.Linear):
        def forward(self, x):
            return F.linear(x.detach(), self.weight.detach())

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(8, 8), Frozen(8, 8)

        def forward(self, x, labels):
            return SimpleNamespace(loss=(self.second(self.first(x)) - labels).square().mean())

    x = torch.randn(16, 8)
    with pytest.raises(InputError, match=r"second \(Frozen\) passes no gradient.*truncate_by='activation'"):
        calibrate(Model(), config(target_modules=["first", "second"]), [{"x": x, "labels": x}])
