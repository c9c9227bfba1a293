from __future__ import annotations

import json
import re

import pytest
import yaml
from transformers import AutoTokenizer

from kasatune.cli.commands import demo
from kasatune.cli.demo_directory import check_replaceable, replace
from kasatune.data.tasks import function_summary
from kasatune.errors import OutputError
from kasatune.recipes.catalogue import built_in
from tests.text_toys import make_llama


def finished(folder, **files):
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "adapter").mkdir()
    return folder


def test_a_demo_replaces_what_an_earlier_one_wrote_and_nothing_else(tmp_path):
    out = tmp_path / "runs" / "demo"
    replace(out, finished(tmp_path / "a", metrics="1", old="1"), later=["report.html"])
    (out / "report.html").write_text("1")
    (out / "notes.txt").write_text("mine")
    check_replaceable(out)
    replace(out, finished(tmp_path / "b", metrics="2"), later=["report.html"])
    assert {path.name for path in out.iterdir()} == {".kasatune-demo.json", "adapter", "metrics", "notes.txt"}
    assert (out / "metrics").read_text() == "2"
    assert (out / "notes.txt").read_text() == "mine"


def test_what_stands_in_the_way_is_left_alone(tmp_path):
    out = tmp_path / "demo"
    replace(out, finished(tmp_path / "a", metrics="1"))
    (out / "report.html").write_text("mine")
    with pytest.raises(OutputError, match=r"report\.html"):
        replace(out, finished(tmp_path / "b", metrics="2"), later=["report.html"])
    assert (out / "report.html").read_text() == "mine"
    assert (out / "metrics").read_text() == "1"


@pytest.mark.parametrize("marker", [None, "not json", "[]", '{"entries": 3}', '{"entries": []}'])
def test_a_foreign_directory_is_refused(tmp_path, marker):
    (tmp_path / "metrics.json").touch()
    if marker is not None:
        (tmp_path / ".kasatune-demo.json").write_text(marker)
    with pytest.raises(OutputError, match="no demo wrote"):
        check_replaceable(tmp_path)


def test_a_marker_cannot_reach_outside_its_directory(tmp_path):
    (tmp_path / "precious").touch()
    out = tmp_path / "demo"
    out.mkdir()
    (out / ".kasatune-demo.json").write_text(json.dumps({"entries": ["../precious", "..", "x"]}))
    replace(out, finished(tmp_path / "a"))
    assert (tmp_path / "precious").exists()


def fake_train(accuracy_by_method, monkeypatch):
    """Stands in for the training: writes the files that the demo's table is made from."""
    trained = []

    def train(recipe, out, *, display, **_):
        name = recipe.method.name
        trained.append((name, recipe.output))
        out.mkdir(parents=True, exist_ok=True)
        right = accuracy_by_method[name]
        labels = [0, 1] * 50
        predictions = [label if index < right else 1 - label for index, label in enumerate(labels)]
        scores = {"split": "validation", "labels": labels, "predictions": predictions}
        (out / "predictions.json").write_text(json.dumps(scores))
        counts = {"trainable_parameters": 5 if name == "kasa" else 0, "head_parameters": 2}
        told = {"task": "demo", "kind": "classification", "split": "validation"}
        metrics = {**told, "metrics": {"accuracy": right / 100}, **counts}
        (out / "metrics.json").write_text(json.dumps(metrics))
        return out

    monkeypatch.setattr("kasatune.training.train.train", train)
    monkeypatch.setattr(demo, "write_pages", lambda run: (run / "report.html").write_text("page"))
    return trained


@pytest.fixture
def installed(monkeypatch):
    """The demo's recipe without a look at what is installed here."""
    from kasatune.recipes import schema as recipe

    load = recipe.load_recipe
    monkeypatch.setattr(recipe, "load_recipe", lambda path, overrides=(), check_inputs=False: load(path, overrides))


def test_the_demo_shows_both_methods_and_the_interval_of_their_difference(kasatune, place, monkeypatch, installed):
    trained = fake_train({"kasa": 90, "head": 60}, monkeypatch)
    done = kasatune("demo")
    assert (done.status, done.err) == (0, "")
    assert trained == [("kasa", "runs/demo"), ("head", "runs/demo/head")]
    assert "0.9000" in done.out
    assert "0.6000" in done.out
    assert "+0.3000, 95 % interval +0.2" in done.out
    assert {path.name for path in (place / "runs").iterdir()} == {"demo"}
    assert (place / "runs/demo/head/report.html").exists()
    fake_train({"kasa": 80, "head": 60}, monkeypatch)
    (place / "runs/demo/mine.txt").touch()
    assert kasatune("demo").status == 0
    assert json.loads((place / "runs/demo/metrics.json").read_text())["metrics"] == {"accuracy": 0.8}
    assert (place / "runs/demo/mine.txt").exists()


def test_an_interrupted_demo_leaves_the_earlier_one(kasatune, place, monkeypatch, installed):
    fake_train({"kasa": 90, "head": 60}, monkeypatch)
    kasatune("demo")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}

    def train(recipe, out, **_):
        out.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("kasatune.training.train.train", train)
    done = kasatune("demo")
    assert (done.status, done.out) == (130, "")
    assert "nothing was kept" in done.err
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    assert [path.name for path in (place / "runs").iterdir()] == ["demo"]


@pytest.mark.parametrize("earlier", [False, True])
def test_ctrl_c_keeps_what_train_would_keep(kasatune, place, monkeypatch, installed, earlier):
    if earlier:
        fake_train({"kasa": 90, "head": 60}, monkeypatch)
        kasatune("demo")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}

    def train(recipe, out, **_):
        (out / "unfinished").mkdir(parents=True)
        (out / "recipe.yaml").write_text("model: x")
        (out / "unfinished" / "state").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("kasatune.training.train.train", train)
    kept = "runs/demo-interrupted" if earlier else "runs/demo"
    for _ in range(2):  # the second replaces what the first one kept
        done = kasatune("demo")
        assert done.status == 130
        assert f"continue with `kasatune train demo --out {kept} --resume`" in done.err
    assert (place / kept / "unfinished" / "state").exists()
    after = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert after.items() >= before.items()
    # What a resumed training adds there belongs to the demo too.
    (place / kept / "metrics.json").touch()
    fake_train({"kasa": 80, "head": 60}, monkeypatch)
    assert kasatune("demo", "--out", kept).status == 0


def test_what_a_killed_demo_left_is_cleared_away(kasatune, place, monkeypatch, installed):
    fake_train({"kasa": 90, "head": 60}, monkeypatch)
    left = place / "runs" / ".demo.unfinished" / "metrics.json"
    left.parent.mkdir(parents=True)
    left.touch()
    assert kasatune("demo").status == 0
    assert {path.name for path in (place / "runs").iterdir()} == {"demo"}


def test_a_foreign_runs_demo_is_refused(kasatune, place, monkeypatch, installed):
    (place / "runs" / "demo").mkdir(parents=True)
    (place / "runs" / "demo" / "thesis.txt").touch()
    monkeypatch.setattr("kasatune.training.train.train", lambda *_, **__: pytest.fail("trained"))
    done = kasatune("demo")
    assert (done.status, done.out) == (2, "")
    assert "no demo wrote" in done.err


def test_a_missing_model_names_the_extra(kasatune, place, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = kasatune("demo")
    assert done.status == 2
    assert "kasatune[demo]" in done.err
    assert list(place.iterdir()) == []


def test_the_language_model_demo_shows_losses_and_answers_of_both_models(kasatune, place, monkeypatch):
    make_llama(place / "model")
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + ' ' }}{% endfor %}"
    tokenizer.save_pretrained(place / "model")
    recipe = yaml.safe_load(built_in()["demo-lm"].read_text())
    recipe["model"]["name"] = str(place / "model")
    recipe["task"] |= {"max_train": 8, "max_eval": 4, "max_length": 24}
    recipe["generation"] = {"max_new_tokens": 3}
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(demo, "built_in", lambda: {"demo-lm": place / "recipe.yaml"})
    monkeypatch.setattr(function_summary, "LIBRARIES", {"networkx": "networkx"})
    monkeypatch.setattr(function_summary, "MAX_TRAIN", 30)
    monkeypatch.setattr(function_summary, "MAX_HELD_OUT", 20)
    done = kasatune("demo", "--language-model")
    assert done.status == 0, done.err
    metrics = json.loads((place / "runs" / "demo-lm" / "metrics.json").read_text())
    losses = [f"{metrics['start']['base']['unrelated_loss']:.4f}", f"{metrics['end']['unrelated_loss']:.4f}"]
    assert re.search(rf"loss on unrelated text \(forgetting\) +{losses[0]} +{losses[1]}", done.out)
    assert done.out.count("  base: ") == done.out.count("  tuned: ") == 4
    assert (place / "runs" / "demo-lm" / "report.html").is_file()
    assert "loss on unrelated text after training" in (place / "runs" / "demo-lm" / "report.html").read_text()
