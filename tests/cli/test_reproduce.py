"""`kasatune reproduce`, on a tiny model and made-up rows in the form of the GLUE release."""

from __future__ import annotations

import json

import pytest

from tests.data.tasks.commonsense_toys import write_commonsense
from tests.text_toys import make_llama
from tests.toys import make_bert, rows

QUICK = ("--quick", "training.max_steps=2", "task.max_train=16", "task.max_length=16")


def write_glue(folder):
    """CoLA and SST-2 with the toys' words."""
    for name, line, head in (
        ("CoLA", "x\t{label}\t\t{text}\n", ""),
        ("SST-2", "{text}\t{label}\n", "sentence\tlabel\n"),
    ):
        (folder / name).mkdir(parents=True)
        for split, number in (("train", 16), ("dev", 12)):
            lines = [line.format(text=text, label=label[-1]) for text, label in rows(number, 2, seed=number)]
            (folder / name / f"{split}.tsv").write_text(head + "".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    return {"model": str(make_bert(folder / "bert")), "data": str(write_glue(folder / "glue"))}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("tables") / "glue"


@pytest.fixture
def reproduce(kasatune, toy):
    def reproduce(out, *more, name="glue"):
        return kasatune("reproduce", name, *QUICK, "--model", toy["model"], "--data", toy["data"], "--out", out, *more)

    return reproduce


def test_a_table_is_built_from_an_empty_directory(reproduce, out):
    done = reproduce(out)
    assert done.status == 0, done.err
    found = json.loads((out / "reproduction.json").read_text(encoding="utf-8"))
    figures = {(one["task"], one["method"], one["minus"]): one for one in found["figures"]}
    cola = figures["glue/cola", "kasa", None]
    assert cola["log"]["best"] == 65.82 and cola["paper"] is None
    low, high = cola["ours"]["interval"]
    assert -100 <= low <= cola["ours"]["score"] <= high <= 100
    assert cola["verdict"] == "not comparable"
    assert any(reason.startswith("model.name") for reason in cola["reasons"])
    assert "training.epochs: 3 (published: 100)" in cola["reasons"]
    gain = figures["glue/cola", "kasa", "lora"]["ours"]["score"]
    assert gain == pytest.approx(cola["ours"]["score"] - figures["glue/cola", "lora", None]["ours"]["score"])
    # what cannot be run here says why, and the average of six is none of two
    assert figures["glue/qnli", "kasa", None]["verdict"] == "not run"
    assert "has no QNLI" in figures["glue/qnli", "kasa", None]["reasons"][0]
    assert figures["average", "kasa", None]["reasons"] == ["2 of its 6 tasks have a score"]
    assert "reproduced" not in [one["verdict"] for one in found["figures"]]
    for folder in cola["ours"]["runs"]:
        assert json.loads((out / folder[len(str(out)) + 1 :] / "metrics.json").read_text(encoding="utf-8"))
    page = (out / "reproduction.md").read_text(encoding="utf-8")
    for words in ("86.3", "65.82 at 43", "62.57", found["rule"][1:], "scaled-down form", "has no QNLI"):
        assert words in page
    assert "not comparable" in done.out and "86.3" in done.out


def test_what_is_there_is_not_run_again_and_what_is_lost_is(reproduce, out):
    if not out.is_dir():
        reproduce(out)
    kept = out / "runs" / "cola-kasa-seed0" / "metrics.json"
    before = kept.read_bytes(), kept.stat().st_mtime_ns
    first = json.loads((out / "reproduction.json").read_text(encoding="utf-8"))
    (out / "runs" / "cola-lora-seed0" / "metrics.json").unlink()
    done = reproduce(out, "--json")
    assert done.status == 0
    assert (kept.read_bytes(), kept.stat().st_mtime_ns) == before
    second = json.loads(done.out)
    assert [one["ours"] and one["ours"]["score"] for one in second["figures"]] == [
        one["ours"] and one["ours"]["score"] for one in first["figures"]
    ]


def test_the_ablation_shows_every_part_and_the_differences(reproduce, tmp_path):
    done = reproduce(tmp_path / "out", "--tasks", "cola", "--json", name="ablation")
    assert done.status == 0, done.err
    figures = {(one["task"], one["method"], one["minus"]): one for one in json.loads(done.out)["figures"]}
    parts = [key[1] for key, one in figures.items() if key[2] is None and one["ours"]]
    assert len(parts) == 6
    assert figures["glue/cola", "kasa", "lora"]["paper"] == [2.05, 3.25]
    assert figures["glue/cola", "kasa", "lora"]["verdict"] == "not comparable"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("glu",), "did you mean glue"),
        (("glue", "--tasks", "boolq"), "'boolq' received"),
        (("glue", "--methods", "kasaa"), "did you mean"),
        (("glue", "--quick", "--data", "nowhere"), "no such folder"),
        (("glue", "--model", "./nowhere"), "model.name"),
        (("glue", "epochs"), "section.key=value"),
        (("glue", "training.epoks=3"), "training.epoks"),
        (("glue", "--questions", "q.jsonl"), "instruct, not glue"),
        (("instruct", "--judge-rate", "3"), "--judge-rate needs a judge"),
        (("instruct", "--questions", "nowhere.jsonl"), "no such file"),
        (("instruct", "--judge", "m", "--judge-url", "nowhere"), "not the address of a server"),
    ],
)
def test_input_errors_are_reported_and_nothing_is_written(arguments, words, kasatune, place):
    done = kasatune("reproduce", *arguments, "--out", "out")
    assert done.status == 2
    assert words in done.err
    assert "Traceback" not in done.err
    assert list(place.iterdir()) == []


def test_a_nonempty_directory_is_refused(reproduce, tmp_path):
    (tmp_path / "mine.txt").touch()
    done = reproduce(tmp_path)
    assert done.status == 2 and "other than a reproduction" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_other_settings_in_the_same_directory_are_refused(reproduce, out):
    if not out.is_dir():
        reproduce(out)
    done = reproduce(out, "method.r=3")
    assert done.status == 2 and "method.r: 8 then, 3 now" in done.err


def test_commonsense_scores_every_task_of_the_mixture_by_both_protocols(kasatune, tmp_path):
    model, data = make_llama(tmp_path / "llama"), write_commonsense(tmp_path / "data")
    command = ("reproduce", "commonsense", "--quick", "--model", str(model), "--data", str(data))
    settings = ("training.max_steps=1", "task.max_length=56", "generation.max_new_tokens=4")
    done = kasatune(*command, "--out", tmp_path / "out", *settings, "--json")
    assert done.status == 0, done.err
    figures = {(one["task"], one["metric"]): one for one in json.loads(done.out)["figures"] if one["method"] == "kasa"}
    boolq = figures["boolq", "accuracy"]
    assert (boolq["paper"], boolq["log"]["best"], boolq["verdict"]) == (73.6, 73.64, "not comparable")
    assert any("beta and gamma" in reason for reason in boolq["reasons"])
    assert boolq["ours"]["interval"] is not None
    assert figures["boolq", "acc"]["ours"]["score"] >= 0 and figures["boolq", "acc"]["verdict"] == "nothing published"
    assert figures["hellaswag", "accuracy"]["verdict"] == "not run"
    assert "has no such rows" in figures["hellaswag", "accuracy"]["reasons"][0]
    assert figures["average", "accuracy"]["reasons"] == ["2 of its 8 tasks have a score"]
    kept = tmp_path / "out" / "runs" / "commonsense-kasa-seed0" / "scores" / "boolq.json"
    scores = json.loads(kept.read_text(encoding="utf-8"))["metrics"]
    assert scores["accuracy"] * 100 == boolq["ours"]["score"]
    # scores belong to the weights that they were measured with: of a run that is done again they are measured again
    kept.write_text("{}", encoding="utf-8")
    (kept.parents[1] / "metrics.json").unlink()
    again = kasatune(*command, "--out", tmp_path / "out", *settings)
    assert again.status == 0, again.err
    assert json.loads(kept.read_text(encoding="utf-8"))["metrics"] == scores


def test_e2e_is_scored_on_its_test_rows(kasatune, tmp_path):
    (tmp_path / "data").mkdir()
    for split in ("train", "valid", "test"):
        lines = [f"name : {word} | Type : pub||the {word} pub {split} one\n" for word in ("red", "blue", "green")]
        (tmp_path / "data" / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    model = make_llama(tmp_path / "llama")
    command = ("reproduce", "e2e", "--quick", "--model", str(model), "--data", str(tmp_path / "data"))
    done = kasatune(*command, "--out", tmp_path / "out", "task.max_length=32", "generation.max_new_tokens=5", "--json")
    assert done.status == 0, done.err
    figures = {(one["metric"], one["method"]): one for one in json.loads(done.out)["figures"]}
    assert figures["bleu", "kasa"]["verdict"] == "nothing published" and figures["bleu", "kasa"]["ours"]["score"] >= 0
    assert figures["nist", "lora"]["paper"] == 8.85 and figures["nist", "lora"]["verdict"] == "not comparable"
    kept = tmp_path / "out" / "runs" / "e2e-lora-seed0" / "scores" / "test.json"
    assert "test" in json.loads(kept.read_text(encoding="utf-8"))["labels"][0][0]


def test_a_quick_form_without_a_model_at_hand_asks_for_one(kasatune, place):
    done = kasatune("reproduce", "commonsense", "--quick")
    assert done.status == 2 and "--model" in done.err
    assert list(place.iterdir()) == []
