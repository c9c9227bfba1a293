"""The mixtures on quantized bases: switched off, saved, loaded and trained."""

from __future__ import annotations

import peft
import pytest
import torch

from tests.kasa.quantized import llama_folder, loaded
from tests.mixtures.models import KINDS, config, shake, trained

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])
LABELS = IDS.masked_fill(torch.arange(6) < 3, -100)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    """Without gradients, for which a quantized layer has another kernel."""
    return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("quantization", ["nf4", "forward-only"])
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_quantized_base(kind, quantization, tmp_path, monkeypatch):
    folder = llama_folder(tmp_path / "base")
    model = peft.get_peft_model(loaded(folder, quantization, monkeypatch), config(kind))
    with model.disable_adapter():
        untouched = logits(model)
    torch.testing.assert_close(logits(model), untouched, atol=1e-6, rtol=0)
    shake(model)
    expected = logits(model)
    assert not torch.allclose(expected, untouched, atol=1e-2)
    with model.disable_adapter():
        assert torch.equal(logits(model), untouched)
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(loaded(folder, quantization, monkeypatch), tmp_path / "adapter")
    torch.testing.assert_close(logits(again), expected, atol=1e-5, rtol=1e-5)
    model.train()(input_ids=IDS, labels=LABELS).loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained(model).values())
