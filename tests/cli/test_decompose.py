"""kasatune decompose through the real entry."""

from __future__ import annotations

import json

import pytest

from tests.toys import make_bert, make_recipe


@pytest.fixture
def base(place):
    return make_bert(place / "base")


def test_tails_for_training(kasatune, base, place):
    from kasatune.recipes.schema import to_yaml

    done = kasatune("decompose", "base", "--rank", "2", "--target", "query", "--target", "value", "--out", "tails")
    assert done.status == 0, done.err
    assert done.out.startswith("tails: tails of 4 layers, rank 2, ")
    assert len(done.out.splitlines()) == 1 and done.err == ""
    (place / "r.yaml").write_text(to_yaml(make_recipe("base", place / "data", max_steps=1)))
    trained = kasatune("train", "r.yaml", "method.tails=tails", "--out", "run")
    assert trained.status == 0, trained.err
    assert "tails: tails" in (place / "run" / "recipe.yaml").read_text()
    planned = kasatune("plan", "r.yaml", "method.tails=tails", "method.name=lora")
    assert "note: method.tails is not used by lora" in planned.out


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["base", "--rank", "40", "--out", "tails"], "rank 40 must be below min(out, in) = 32"),
        (["nowhere/at/all", "--rank", "2", "--out", "tails"], "MODEL: nowhere/at/all: no such folder"),
        (["base", "--rank", "2", "--out", "base"], "base is not empty"),
        (["base", "--rank", "2", "--out", "base", "--resume"], "base holds no decomposition to resume"),
        (["base", "--rank", "2", "--out", "base/config.json"], "is a file"),
        (["base", "--rank", "2", "--out", "tails", "--target", "word_embeddings"], "is an Embedding"),
        (["base", "--rank", "2", "--out", "tails", "--device", "abacus"], "--device abacus is not available"),
        (["base", "--rank", "2", "--out", "tails", "--resume", "--overwrite"], "exclude each other"),
        (["base", "--out", "tails"], "--rank"),
    ],
)
def test_wrong_input_is_one_message_and_writes_nothing(kasatune, base, place, options, fault):
    before = sorted(path.name for path in base.iterdir())
    done = kasatune("decompose", *options)
    assert done.status == 2
    assert done.out == ""
    assert fault in done.err and "Traceback" not in done.err
    assert not (place / "tails").exists()
    assert sorted(path.name for path in base.iterdir()) == before


def test_ctrl_c_says_how_to_go_on(kasatune, base, place, monkeypatch):
    from kasatune.adapter_tools import decompose

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(decompose, "write_tail", interrupted)
        done = kasatune("decompose", "base", "--rank", "2", "--out", "tails")
    assert done.status == 130
    assert "continue with the same command and --resume" in done.err
    done = kasatune("decompose", "base", "--rank", "2", "--out", "tails", "--resume")
    assert done.status == 0
    assert len(json.loads((place / "tails" / "index.json").read_text())["layers"]) == 4


def test_a_full_disk_is_told(kasatune, base, monkeypatch):
    from kasatune.adapter_tools import decompose

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decompose, "write_tail", full)
    done = kasatune("decompose", "base", "--rank", "2", "--out", "tails")
    assert done.status == 1
    assert "No space left on device; free some space, then continue with --resume" in done.err
