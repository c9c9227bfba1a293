"""`kasatune reproduce instruct`: training, answers, grades by a scripted judge over HTTP, and what is missing."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.llm_client.scripted import Answer, ScriptedServer
from tests.text_toys import make_llama
from tests.training.test_instruction_runs import rows

pytest.importorskip("trl")

ROWS = 30  # of which a tenth is judged
QUICK = ("--quick", "training.max_steps=1", "task.max_length=24", "method.r=2", "generation.max_new_tokens=3")


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("instruct")
    make_llama(folder / "llama")
    (folder / "data").mkdir()
    for seed, name in enumerate(("closed_qa.jsonl", "alpaca_toy.jsonl"), start=1):
        (folder / "data" / name).write_text("".join(json.dumps(row) + "\n" for row in rows(ROWS, seed)))
    questions = ({"question_id": 1, "turns": ["red", "two"]}, {"question_id": 2, "turns": ["one"]})
    (folder / "question.jsonl").write_text("".join(json.dumps(one) + "\n" for one in questions))
    return folder


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    """The runs without a judge, made once."""
    from kasatune.cli.main import run

    out = tmp_path_factory.mktemp("table") / "out"
    assert run(command(toy, out, "--questions", str(toy / "question.jsonl"))) == 0
    return out


@pytest.fixture
def out(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "out")


def command(toy, out, *more):
    place = ["--model", str(toy / "llama"), "--data", str(toy / "data"), "--out", str(out)]
    return ["reproduce", "instruct", *QUICK, *place, *map(str, more)]


def figures(found):
    return {(one["task"], one["metric"], one["method"]): one for one in found["figures"]}


def test_without_a_judge_runs_are_trained_and_answer(trained):
    found = figures(json.loads((trained / "reproduction.json").read_text()))
    loss = found["closed_qa", "loss", "kasa"]
    assert loss["ours"]["score"] > 0 and loss["verdict"] == "nothing published"
    missing = found["closed_qa", "judge", "kasa"]
    assert (missing["paper"], missing["verdict"]) == (6.81, "not run")
    assert missing["reasons"][0].startswith("name a judge with --judge MODEL; the answers are in ")
    # the published figures of full fine-tuning are shown though it is not run
    assert found["closed_qa", "judge", "full"]["paper"] == 8.90
    assert found["closed_qa", "judge", "full"]["reasons"] == ["not selected; --methods full runs it"]
    assert "has no file coding*" in found["coding", "judge", "kasa"]["reasons"][0]
    for task, number in (("closed_qa", 3), ("mt-bench", 2)):
        kept = trained / "runs" / f"{task}-kasa-seed0" / "judge" / "conversations.jsonl"
        assert len(kept.read_text().splitlines()) == number
    assert not list(trained.rglob("replies.jsonl"))


def test_answers_are_graded_and_stand_beside_the_papers_number(kasatune, toy, out):
    shared = [out / "runs" / "closed_qa-kasa-seed0" / name for name in ("metrics.json", "judge/answers.jsonl")]
    before = [path.read_bytes() for path in shared]
    options = ("--judge", "mine", "--questions", toy / "question.jsonl", "--judge-prices", "1000,2000", "--json")

    def script(body, number):
        asked = body["messages"][-1]["content"]
        return Answer("no rating" if "<reference>" in asked and number == 0 else f"Rating: [[{number + 1}]]")

    with ScriptedServer(script) as server:
        done = kasatune(*command(toy, out, *options, "--judge-url", server.url))
        assert done.status == 0, done.err
        assert len(server.bodies) == 6  # three rows of closed QA, then three turns of two questions
        again = kasatune(*command(toy, out, *options, "--judge-url", server.url))
        assert len(server.bodies) == 6 and json.loads(again.out)["figures"] == json.loads(done.out)["figures"]
    assert [path.read_bytes() for path in shared] == before
    found = json.loads(done.out)
    rated = figures(found)["closed_qa", "judge", "kasa"]
    assert rated["ours"]["score"] == 2.5 and rated["ours"]["interval"] == [2.0, 3.0]
    assert rated["verdict"] == "not comparable"
    assert "judge: mine (published: gpt-4o)" in rated["reasons"]
    assert (
        "training.max_steps: 1 (recipe: none)" in rated["reasons"]
    )  # the recipe's settings are nobody's published ones
    assert any(reason.startswith("no setting of the published runs is known") for reason in rated["reasons"])
    assert figures(found)["mt-bench", "mt_bench", "kasa"]["ours"]["score"] == 5.0
    assert figures(found)["mt-bench", "mt_bench", "kasa"]["verdict"] == "nothing published"
    page = (out / "reproduction.md").read_text()
    assert "2 answers graded by mine with kasatune's own prompts, 1 not counted" in page
    assert "30 prompt and 12 completion tokens, 0.0540 by the prices given" in page
    assert "6.81" in page and "8.90" in page


def test_a_judge_that_is_away_costs_the_grades_alone(kasatune, toy, out):
    with ScriptedServer(lambda body, number: Answer("fine")) as server:
        options = ("--tasks", "closed_qa", "--judge", "mine", "--judge-url", server.url, "--json")
        done = kasatune(*command(toy, out, *options))
    assert done.status == 1 and "continue with the same command" in done.err
    found = figures(json.loads(done.out))
    assert "none of 3 replies has a valid grade" in found["closed_qa", "judge", "kasa"]["reasons"][0]
    assert found["closed_qa", "loss", "kasa"]["ours"]["score"] > 0


def test_a_key_that_is_refused_ends_the_command(kasatune, toy, out):
    with ScriptedServer(lambda body, number: Answer("who are you", status=401)) as server:
        done = kasatune(*command(toy, out, "--tasks", "closed_qa", "--judge", "mine", "--judge-url", server.url))
    assert done.status == 2 and "the key was refused" in done.err and "Traceback" not in done.err


def test_two_files_for_one_task_are_not_chosen_from(kasatune, toy, tmp_path):
    data = shutil.copytree(toy / "data", tmp_path / "data")
    shutil.copyfile(data / "alpaca_toy.jsonl", data / "alpaca.json")
    place = ("--model", toy / "llama", "--data", data, "--out", tmp_path / "out", "--json")
    done = kasatune("reproduce", "instruct", *QUICK, *place, "--tasks", "mt-bench")
    assert done.status == 0, done.err
    reason = figures(json.loads(done.out))["mt-bench", "mt_bench", "kasa"]["reasons"][0]
    assert "several files alpaca*: alpaca.json, alpaca_toy.jsonl" in reason
