"""Judging a run from the command line over HTTP: answers, grades, and no request sent twice."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from kasatune.cli.main import run as command_line
from kasatune.evaluation.judge import read_conversations
from kasatune.evaluation.predict import predict
from kasatune.training.train import train
from tests.llm_client.scripted import Answer, ScriptedServer
from tests.training.test_instruction_runs import recipe

pytest.importorskip("trl")

QUESTIONS = [
    {"question_id": 7, "category": "math", "turns": ["red blue", "green"]},
    {"question_id": 8, "category": "writing", "turns": ["one two", "three"]},
    {"question_id": 9, "category": "writing", "turns": ["pub"]},
]


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture(scope="module")
def trained(llama, tmp_path_factory):
    place = tmp_path_factory.mktemp("judged")
    return train(recipe(llama, place / "data", max_steps=1), place / "run")


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "question.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    return path


def last(body):
    return body["messages"][-1]["content"]


def seven(body, number):
    return Answer("Rating: [[7]]")


def evaluate(run, server, *options):
    return command_line(["evaluate", str(run), "--judge", "judge", "--judge-url", server.url, *options])


def test_mt_bench_from_answers_to_scores(run, questions, capsys):
    with ScriptedServer(lambda body, number: Answer(f"[[{number + 1}]]")) as server:
        assert evaluate(run, server, "--questions", str(questions), "--judge-prices", "1000,2000", "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert len(server.bodies) == 5
        # In the order of the questions: turns 1 and 2 of the first, of the second, turn 1 of the third.
        assert found["metrics"] == {"mt_bench": 3.0, "mt_bench_turn_1": 3.0, "mt_bench_turn_2": 3.0}
        assert found["judge"]["by_category"] == {"math": 1.5, "writing": 4.0}
        assert found["judge"]["cost"]["money"] == pytest.approx(5 * (10 * 1000 + 4 * 2000) / 1e6)
        assert found["task"] == "instruction" and found["judge"]["asked_now"] == 5
        written = (run / "judge" / "answers.jsonl").read_text()
        assert evaluate(run, server, "--questions", str(questions)) == 0
        assert len(server.bodies) == 5 and (run / "judge" / "answers.jsonl").read_text() == written
    shown = capsys.readouterr().out
    assert "mt_bench" in shown and "counted: 5, not counted: 0" in shown and "asked now: 0" in shown


def test_second_turn_sees_the_first_answer(run, questions):
    with ScriptedServer(seven) as server:
        evaluate(run, server, "--questions", str(questions))
    lines = [json.loads(line) for line in (run / "judge" / "answers.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["messages"] == [["user", "red blue"]])
    second = next(line for line in lines if line["messages"][-1] == ["user", "green"])
    assert second["messages"] == [["user", "red blue"], ["assistant", first["answer"]], ["user", "green"]]
    assert predict(run, ["red blue"])[0]["prediction"]["text"] == first["answer"]
    told = read_conversations(run / "judge" / "conversations.jsonl")
    assert told["7"].turns == (first["answer"], second["answer"]) and len(told["9"].turns) == 1


def test_the_runs_own_rows_are_scored_from_0_to_10(run, capsys):
    with ScriptedServer(lambda body, number: Answer(f"[[{number}]]")) as server:
        assert evaluate(run, server, "--json") == 0
        assert len(server.bodies) == 9  # two of the ten rows are alike
        assert all("<reference>" in last(body) for body in server.bodies)
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"] == {"judge_score": (sum(range(9)) + 3) / 10}
    assert (found["judge"]["graded"], found["judge"]["cost"]["answers"]) == (10, 9)


def test_against_another_run_and_against_a_file(run, questions, tmp_path, capsys):
    other = tmp_path / "other.jsonl"
    rows = [
        {"question_id": one["question_id"], "choices": [{"turns": ["better"] * len(one["turns"])}]} for one in QUESTIONS
    ]
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def prefers_better(body, number):
        text = last(body)
        return Answer("[[A]]" if text.find("better") < text.find("<assistant B") else "[[B]]")

    with ScriptedServer(prefers_better) as server:
        assert evaluate(run, server, "--questions", str(questions), "--against", str(other), "--json") == 0
        found = json.loads(capsys.readouterr().out)["judge"]
        assert (found["wins"], found["losses"], found["ties"], found["failed"]) == (0, 5, 0, 0)
        assert len(server.bodies) == 10
        other.write_text(json.dumps(rows[0]) + "\n")
        assert evaluate(run, server, "--questions", str(questions), "--against", str(other)) == 2
        assert "2 of 3 questions have no answer in it (8, 9)" in capsys.readouterr().err
    with ScriptedServer(lambda body, number: Answer("[[A]]")) as server:
        assert evaluate(run, server, "--questions", str(questions), "--against", str(run), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"] == {"win_rate": 0.5} and found["judge"]["swayed"] == 5


def test_replies_without_a_valid_grade_are_counted_as_failed(run, questions, capsys):
    with ScriptedServer(lambda body, number: Answer("[[4]]" if number == 2 else "fine")) as server:
        assert evaluate(run, server, "--questions", str(questions)) == 0
        shown = capsys.readouterr().out
        assert "counted: 1, not counted: 4" in shown and "question 7, turn 1: no single rating" in shown
    shutil.rmtree(run / "judge")
    with ScriptedServer(lambda body, number: Answer("fine")) as server:
        assert evaluate(run, server, "--questions", str(questions)) == 1
    assert "none of 5 replies has a valid grade" in capsys.readouterr().err
    assert len((run / "judge" / "replies.jsonl").read_text().splitlines()) == 5


def test_kill_while_judging_sends_no_request_twice(run, questions):
    free = threading.Event()

    def script(body, number):
        if number == 2:
            free.wait(100)
        return Answer("[[6]]")

    with ScriptedServer(script) as server:
        command = [
            sys.executable,
            "-m",
            "kasatune",
            "evaluate",
            str(run),
            "--judge",
            "judge",
            "--judge-url",
            server.url,
        ]
        command += ["--questions", str(questions), "--json"]
        killed = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and len(server.bodies) < 3:
            time.sleep(0.02)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        answers = (run / "judge" / "answers.jsonl").read_bytes()
        assert (run / "judge" / "replies.jsonl").read_bytes().count(b"\n") == 2
        free.set()
        assert evaluate(run, server, "--questions", str(questions)) == 0
        asked = [last(body) for body in server.bodies]
    assert len(asked) == 6 and len(set(asked)) == 5 and asked[2] == asked[3]
    assert (run / "judge" / "answers.jsonl").read_bytes() == answers


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--questions", "q.jsonl"], "--questions needs a judge"),
        (["--judge-url", "http://x/v1"], "--judge-url needs a judge"),
        (["--judge", "m", "--judge-url", "nowhere"], "not the address"),
        (["--judge", "m"], "set OPENAI_API_KEY"),
        (["--judge", "m", "--judge-url", "http://127.0.0.1:9/v1", "--against", "x"], "--questions"),
        (["--judge", "m", "--judge-url", "http://127.0.0.1:9/v1", "--questions", "none.jsonl"], "no such file"),
        (["--judge", "m", "--judge-url", "http://127.0.0.1:9/v1", "--judge-prices", "1"], "two numbers"),
        (["--judge", "m", "--judge-url", "http://127.0.0.1:9/v1", "--judge-prompts", "none"], "no such file"),
    ],
)
def test_user_errors_are_reported(run, options, word, capsys):
    assert command_line(["evaluate", str(run), *options]) == 2
    assert re.search(re.escape(word), capsys.readouterr().err)
    assert not (run / "judge").exists()


def test_a_real_server_of_the_protocol(run, real_server, tmp_path, capsys):
    """transformers' own server with a real language model: its replies are no ratings, which is what must be told."""
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps({"question_id": 1, "turns": ["one"]}) + "\n")
    options = ["--judge", real_server.model, "--judge-url", real_server.url, "--questions", str(one)]
    status = command_line(["evaluate", str(run), *options])
    assert status in (0, 1), capsys.readouterr().err
    (line,) = (run / "judge" / "replies.jsonl").read_text().splitlines()
    reply = json.loads(line)["reply"]
    assert reply["text"] and reply["completion_tokens"] > 0 and reply["url"].startswith(real_server.url)
