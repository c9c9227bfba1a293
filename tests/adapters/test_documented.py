"""The table of docs/formats.md: every cell is tried."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from peft import get_peft_model

from kasatune import KasaConfig, export_adapter, load_adapter
from kasatune.errors import InputError
from tests.kasa.models import bert, gpt2, llama, shaken, squeezebert, token_ids

SQUARE, WIDE = ["q_proj", "o_proj", "gate_proj"], ["k_proj", "down_proj"]


def quantized(model):
    """As if the base had been quantized: what the adapter remembers of it is what decides."""
    for entry in model.peft_config["default"].base_fingerprint.values():
        entry["held_as"] = "bnb4bit"
    return model


ROWS = {
    "a diagonal core": (bert, {}),
    "a dense core (r x r)": (bert, {"core": "dense"}),
    'convention "paper", layers with out >= in': (llama, {"target_modules": SQUARE}),
    'convention "paper", layers with out < in': (llama, {"target_modules": WIDE}),
    'convention "authors", layers with out >= in': (llama, {"target_modules": SQUARE, "convention": "authors"}),
    'convention "authors", layers with out < in': (llama, {"target_modules": WIDE, "convention": "authors"}),
    "ranks and alphas by layer": (bert, {"rank_pattern": {"layer.1.*query": 2}, "alpha_pattern": {"value": 5}}),
    "rank stabilization": (bert, {"use_rslora": True, "lora_alpha": 3}),
    "Conv1D layers (GPT-2)": (gpt2, {}),
    "convolutions of kernel 1": (squeezebert, {"target_modules": ["query", "conv1d"]}),
    "a quantized base": (bert, {}),
    "trained biases": (bert, {"bias": "all"}),
    "a head or other modules saved in full": (bert, {"task_type": "SEQ_CLS", "modules_to_save": ["pooler"]}),
    "excluded modules": (bert, {"exclude_modules": ["bert.encoder.layer.0.attention.self.query"]}),
    "a folded tail": (bert, {"truncation": "fold"}),
}


def documented():
    lines = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| an adapter with |"))
    head = cells(lines[start])[1:]
    rows = [cells(line) for line in lines[start + 2 :]]
    rows = rows[: next((number for number, row in enumerate(rows) if len(row) < 2), len(rows))]
    return {(row[0], to): claim for row in rows for to, claim in zip(head, row[1:], strict=True)}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


TABLE = documented()


def logits(model):
    with torch.no_grad():
        return model.eval()(token_ids()).logits


def test_the_table_has_the_rows_and_columns_that_are_tried():
    assert {row for row, _ in TABLE} == set(ROWS)
    assert {to for _, to in TABLE} == {"kasa", "lora", "peft-kasa", "authors"}


@pytest.mark.parametrize(("row", "to"), TABLE)
def test_a_cell_of_the_table(tmp_path, row, to):
    base, options = ROWS[row]
    torch.manual_seed(5)
    model = shaken(get_peft_model(base(), KasaConfig(**{"r": 4, **options})))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "kasa_" not in name:
                parameter.add_(0.3)
    if row == "a quantized base":
        quantized(model)
    if TABLE[row, to] == "refused":
        with pytest.raises(InputError, match=r"layers|layer"):
            export_adapter(model, tmp_path / "out", to=to)
        assert not (tmp_path / "out").exists()
        return
    assert TABLE[row, to] == "exact"
    if to == "peft-kasa" and not hasattr(peft, "KasaConfig"):
        pytest.skip("PEFT has a KaSA since 0.21")
    expected = logits(model)
    export_adapter(model, tmp_path / "out", to=to)
    found = logits(load_adapter(base(), tmp_path / "out"))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
