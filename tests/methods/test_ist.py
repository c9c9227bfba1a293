"""Importance-aware sparse tuning: the scores' equation, what a step trains, and any adapter underneath."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.data import DataLoader

from kasatune import methods
from kasatune.methods.ist import (
    adapted_blocks,
    draw_blocks,
    draw_candidates,
    suppressed,
    updated_scores,
)
from kasatune.methods.shared.trained_parameters import trainable
from kasatune.recipes.schema import MethodSection
from kasatune.training.train import train
from tests.methods.bottleneck.models import BLOCKS, IDS
from tests.methods.low_rank import attached, begin, end
from tests.toys import make_recipe

IST = methods.load("ist")
OVER = IST.info.options[0].choices


def callback_of(model, **options):
    section = MethodSection(name="ist", r=4, options=options)
    return IST.callbacks(model, section)[-1]


def trained_blocks(model):
    return [
        index
        for index, block in enumerate(adapted_blocks(model))
        if all(parameter.requires_grad for parameter in block.parameters) and block.parameters
    ]


def loader():
    rows = [{"input_ids": IDS[index % 2], "labels": torch.tensor(index % 2)} for index in range(6)]
    return DataLoader(rows, batch_size=2)  # type: ignore[arg-type]


def test_the_scores_follow_the_equation():
    scores = torch.tensor([0.0, 1.0, -2.0, 0.5], dtype=torch.float64)
    sets, losses, rate = [[0, 1], [1, 3], [0, 2]], [0.3, 1.2, 0.7], 10.0
    gains = [math.exp(-loss) for loss in losses]
    rewards = [gain - sum(gains) / 3 for gain in gains]
    p = [1 / (1 + math.exp(-score)) for score in scores.tolist()]
    expected = scores.tolist()
    for S, reward in zip(sets, rewards, strict=True):
        for i in S:
            expected[i] += rate * reward * p[i] * (1 - p[i])
    assert updated_scores(scores, sets, losses, rate).tolist() == pytest.approx(expected)


def test_a_dispensable_block_gets_a_higher_score_and_less_training():
    scores = updated_scores(torch.zeros(4).double(), [[0, 1], [2, 3]], [0.1, 2.0], 10.0)
    assert float(scores[0]) > 0 > float(scores[2])
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_blocks((-scores).sigmoid(), 1, generator)[0] for _ in range(300)]
    assert drawn.count(2) > 1.5 * drawn.count(0)


def test_candidates_are_different_sets_and_as_many_as_there_are():
    generator = torch.Generator().manual_seed(0)
    found = draw_candidates(torch.zeros(6).double(), 3, 3, generator)
    assert len({tuple(S) for S in found}) == 3
    assert all(len(set(S)) == 3 for S in found)
    assert len(draw_candidates(torch.zeros(2).double(), 3, 1, generator)) == 2


@pytest.mark.parametrize("over", OVER)
def test_a_step_trains_a_share_of_the_blocks_of_any_adapter(over):
    model = attached("ist", over=over, update_share=0.67)
    names = set(trainable(model))
    callback = callback_of(model, over=over, update_share=0.67)
    seen = set()
    for step in range(10):
        begin(callback, step)
        blocks = trained_blocks(model)
        assert len(blocks) == 2
        seen.update(blocks)
        assert [name for name in trainable(model) if "classifier" in name]
        end(callback, step)
        assert set(trainable(model)) == names
    assert seen == set(range(BLOCKS))


def test_blocks_that_are_not_trained_do_not_move_with_weight_decay_and_momentum():
    model = attached("ist").train()
    callback = callback_of(model)
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.1, weight_decay=0.5)
    for step in range(4):
        begin(callback, step)
        trained = trained_blocks(model)
        before = [[p.detach().clone() for p in block.parameters] for block in callback._blocks]
        model(input_ids=IDS, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for index, block in enumerate(callback._blocks):
            same = all(torch.equal(p, q) for p, q in zip(block.parameters, before[index], strict=True))
            assert same == (index not in trained)
        end(callback, step)


@pytest.mark.parametrize("over", OVER)
def test_a_trial_suppresses_blocks_and_restores_them(over):
    model = attached("ist", over=over)
    blocks = adapted_blocks(model)
    with torch.no_grad():
        own = model(input_ids=IDS).logits
        with suppressed(blocks, 1.0):
            assert torch.equal(model(input_ids=IDS).logits, own)
        with suppressed(blocks[:1], 0.25):
            assert not torch.allclose(model(input_ids=IDS).logits, own)
        assert torch.equal(model(input_ids=IDS).logits, own)


def test_trials_happen_every_interval_on_training_rows_and_change_the_scores():
    model = attached("ist", interval=5).train()
    callback = callback_of(model, interval=5)
    scores = model.ist_scores
    for step in range(12):
        before = scores.clone()
        begin(callback, step, train_dataloader=loader())
        assert torch.equal(scores, before) == (step not in (5, 10))
        assert model.training
        end(callback, step)


def test_the_losses_of_a_trial_are_those_of_the_suppressed_model():
    model = attached("ist", interval=1, rows=6, candidates=3).train()
    callback = callback_of(model, interval=1, rows=6, candidates=3)
    begin(callback, 1, train_dataloader=loader())
    found = model.ist_scores.clone()
    model.eval()
    generator = torch.Generator().manual_seed(1)
    sets = draw_candidates(torch.zeros(BLOCKS).double(), 3, 1, generator)
    batch = {"input_ids": IDS.repeat(3, 1), "labels": torch.tensor([0, 1] * 3)}
    losses = []
    for S in sets:
        layers = [layer for i in S for layer in adapted_blocks(model)[i].layers]
        for layer in layers:
            layer.scaling["default"] *= 0.25
        with torch.no_grad():
            losses.append(float(model(**batch).loss))
        for layer in layers:
            layer.scaling["default"] /= 0.25
    expected = updated_scores(torch.zeros(BLOCKS).double(), sets, losses, 10.0)
    torch.testing.assert_close(found, expected)


def test_blocks_of_low_scores_are_trained():
    model = attached("ist")
    model.ist_scores.copy_(torch.tensor([30.0, -30.0, 30.0]))
    callback = callback_of(model)
    for step in range(1, 10):
        begin(callback, step)
        assert trained_blocks(model) == [1]
        end(callback, step)


def test_random_choice_makes_no_trials():
    model = attached("ist", interval=1, random=True)
    callback = callback_of(model, interval=1, random=True)
    begin(callback, 1)
    assert not model.ist_scores.any()


def test_draws_depend_on_seed_and_step_only():
    found = []
    for seed in (0, 0, 1):
        model = attached("ist")
        callback = callback_of(model)
        chosen = []
        for step in range(15):
            begin(callback, step, seed, train_dataloader=loader())
            chosen.append(trained_blocks(model))
            end(callback, step)
        found.append(chosen)
    assert found[0] == found[1] != found[2]


def test_the_scores_are_part_of_a_checkpoint():
    model, again = attached("ist"), attached("ist")
    model.ist_scores.copy_(torch.tensor([1.0, -2.0, 3.0]))
    IST.restore_training_state(again, IST.training_state(model))
    assert torch.equal(again.ist_scores, model.ist_scores)


@pytest.mark.parametrize("over", ["lora", "kasa", "pfeiffer"])
def test_a_run_saves_the_files_of_the_method_underneath(over, bert, tmp_path):
    method = {"name": "ist", "r": 2, "options": {"over": over, "interval": 1}}
    run = train(make_recipe(bert, tmp_path, train=8, method=method, epochs=2), tmp_path / "run")
    folders = {path.name for path in run.iterdir() if path.is_dir()}
    assert {"adapter", "kasa"} & folders == ({"adapter", "kasa"} if over == "kasa" else {"adapter"})
