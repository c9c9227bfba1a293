"""Rows from a scripted teacher over HTTP: accepted rows, rows left out, and no request sent twice."""

import json
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml

from kasatune.cli.main import run
from kasatune.errors import RecipeError
from kasatune.synthesis.recipe import load_synthesis
from kasatune.synthesis.teacher_prompts import Row, parse_rows
from tests.llm_client.scripted import Answer, ScriptedServer

WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath")


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def row(number):
    """No two of these are alike."""
    return {"instruction": " ".join(f"{word}{number}" for word in WORDS[:6]), "output": f"out {number}"}


def reply(*rows):
    return Answer(json.dumps({"rows": list(rows)}))


def recipe(folder, server, **sections):
    seeds = [{"instruction": f"Seed {word}", "output": word} for word in WORDS[:8]]
    (folder / "seeds.json").write_text(json.dumps(seeds))
    values = {
        "teacher": {"model": "teacher", "url": getattr(server, "url", server), **sections.pop("teacher", {})},
        "seeds": {"file": str(folder / "seeds.json"), "shown": 2},
        "data": {"subject": "closed_qa", "count": 4, "per_request": 2, **sections.pop("data", {})},
        **sections,
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(values))
    return str(folder / "r.yaml")


def rows(out):
    return [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]


def two_each(body, number):
    return reply(row(2 * number), row(2 * number + 1))


def test_rows_card_and_cost(tmp_path, capsys):
    out = tmp_path / "out"
    with ScriptedServer(two_each) as server:
        path = recipe(tmp_path, server, teacher={"prompt_price": 100.0, "completion_price": 1000.0})
        assert run(["synthesize", path, "--out", str(out)]) == 0
        bodies = server.bodies
    assert rows(out) == [row(n) for n in range(4)]
    assert {body["seed"] for body in bodies} == {0, 1} and bodies[0]["temperature"] == 1.0
    asked = bodies[0]["messages"][1]["content"]
    assert asked.count('"Seed ') == 2 and "answer a question from a given passage" in asked and "Write 2 new" in asked
    report = json.loads((out / "synthesis.json").read_text())
    assert report["cost"]["prompt_tokens"] == 20 and report["cost"]["money"] == pytest.approx(0.002 + 0.008)
    card = (out / "README.md").read_text()
    assert "4 rows, each" in card and "Nobody has read" in card and report["sha256"] in card and "amber0" in card
    assert re.search(r"4 rows in .*train.jsonl, from 2 requests \(2 now\)", capsys.readouterr().out)


def test_rows_left_out_are_counted_by_reason(tmp_path):
    near = {"instruction": row(0)["instruction"].replace("amber0", "other"), "output": "x"}
    script = {
        0: reply(row(0), {"instruction": row(0)["instruction"].upper() + "!", "output": "again"}, near),
        1: Answer("I would rather not."),
        2: reply({"instruction": "", "output": "x"}, {"instruction": "x"}, "x", row(1)),
        3: reply({"instruction": "seed AMBER?", "output": "x"}, row(2)),
        4: Answer('{"rows": [{"instr', finish_reason="length"),
        5: Answer("no", status=400),
        6: reply(row(3), row(4), row(5)),
    }
    with ScriptedServer(lambda body, number: script[number]) as server:
        path = recipe(tmp_path, server)
        assert run(["synthesize", path, "--out", str(tmp_path / "out")]) == 0
    assert rows(tmp_path / "out") == [row(n) for n in range(4)]
    report = json.loads((tmp_path / "out" / "synthesis.json").read_text())
    assert report["left_out"] == {
        "rows whose instruction occurred before": 2,
        "rows too similar to another (ROUGE-L of 0.7 or more)": 1,
        "replies without the requested JSON": 1,
        "rows without instruction or output": 3,
        "replies cut off at max_tokens": 1,
        "replies refused by the server": 1,
        "rows beyond the number requested": 2,
    }


def test_similarity_threshold_is_configurable(tmp_path):
    near = {"instruction": row(0)["instruction"].replace("amber0", "other"), "output": "x"}
    with ScriptedServer(lambda body, number: reply(row(0), near)) as server:
        path = recipe(tmp_path, server, data={"count": 2}, filter={"similarity": 0.9})
        assert run(["synthesize", path, "--out", str(tmp_path / "out")]) == 0
    assert rows(tmp_path / "out") == [row(0), near]


def test_too_few_rows_are_reported(tmp_path, capsys):
    with ScriptedServer(lambda body, number: reply(row(number % 2))) as server:
        assert run(["synthesize", recipe(tmp_path, server), "--out", str(tmp_path / "out")]) == 0
        assert len(server.bodies) == 8  # four times as many as would do
    assert "2 rows of 4 wanted" in capsys.readouterr().out
    assert "(4 were requested)" in (tmp_path / "out" / "README.md").read_text()
    with ScriptedServer(lambda body, number: Answer("no")) as server:
        assert run(["synthesize", recipe(tmp_path, server), "--out", str(tmp_path / "none")]) == 1
    assert "gave no valid row (8 replies without the requested JSON" in capsys.readouterr().err
    assert not (tmp_path / "none" / "train.jsonl").exists()


@pytest.mark.parametrize("workers", [1, 3])
def test_resume_adds_rows_without_repeating_requests(tmp_path, workers):
    out = tmp_path / "out"
    seen = {}

    def by_seed(body, number):
        return seen.setdefault(body["seed"], reply(row(2 * body["seed"]), row(2 * body["seed"] + 1)))

    with ScriptedServer(by_seed) as server:
        path = recipe(tmp_path, server, teacher={"workers": workers})
        assert run(["synthesize", path, "--out", str(out)]) == 0
        assert run(["synthesize", path, "--out", str(out)]) == 2
        assert run(["synthesize", path, "data.count=12", "--out", str(out), "--resume"]) == 0
        assert sorted(body["seed"] for body in server.bodies) == [0, 1, 2, 3, 4, 5]
        assert rows(out) == [row(n) for n in range(12)]
        assert run(["synthesize", path, "data.seed=9", "--out", str(out), "--resume"]) == 2
        assert run(["synthesize", path, "--out", str(out), "--overwrite"]) == 0
        assert len(server.bodies) == 8 and rows(out) == [row(n) for n in range(4)]


def test_after_a_kill_no_answered_request_is_sent_again(tmp_path):
    out, free = tmp_path / "out", threading.Event()

    def script(body, number):
        if number == 3:
            free.wait(60)
        return reply(row(2 * body["seed"]), row(2 * body["seed"] + 1))

    with ScriptedServer(script) as server:
        path = recipe(tmp_path, server, data={"count": 12})
        command = [sys.executable, "-m", "kasatune", "synthesize", path, "--out", str(out)]
        killed = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(server.bodies) < 4:
            time.sleep(0.02)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert (out / "replies.jsonl").read_bytes().count(b"\n") == 3
        assert not (out / "train.jsonl").exists()
        free.set()
        done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert [body["seed"] for body in server.bodies] == [0, 1, 2, 3, 3, 4, 5]
    assert rows(out) == [row(n) for n in range(12)]
    assert "from 6 requests (3 now)" in done.stdout


@pytest.mark.parametrize(
    "text",
    [
        '{"rows": [{"instruction": "a", "output": "b"}]}',
        'Here you are:\n```json\n{"rows": [{"instruction": "a", "output": "b"}]}\n```\nEnjoy!',
        '[{"instruction": "a ", "input": "", "output": " b"}]',
        'Sure. {"rows": [{"instruction": "a", "output": "b"}]} Anything else?',
    ],
)
def test_rows_are_parsed_from_a_reply(text):
    assert parse_rows(text) == ([Row("a", "b")], 0)


def test_input_is_appended_to_its_instruction():
    assert parse_rows('[{"instruction": "a", "input": "c", "output": "b"}, 1]') == ([Row("a\n\nc", "b")], 1)


@pytest.mark.parametrize("text", ["", "no", '{"rows": 1}', '{"instruction": "a"}', "[" * 5000, '{"rows": [{"a"'])
def test_a_reply_without_rows(text):
    assert parse_rows(text) is None


def test_every_fault_of_a_recipe_is_listed(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "teacher: {temperature: 3, price: 1}\nseeds: {file: none.json}\ndata: {subject: closedqa, count: 0}\n"
        "filter: {similarity: 0}\nextra: 1\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_synthesis(path, check_inputs=True)
    found = "\n".join(caught.value.faults)
    for part in (
        "teacher.model: missing",
        "teacher.temperature: 3 received",
        "teacher.price: not a key",
        "data.subject",
        "did you mean closed_qa?",
        "data.count: 0 received",
        "filter.similarity: 0 received",
        "extra: not a section",
        'seeds.file: "none.json": no such file',
    ):
        assert part in found, found
    assert len(caught.value.faults) == 8


@pytest.mark.parametrize("text", ["", "[1]", "{", "teacher: 3\nseeds: null\n"])
def test_file_that_is_not_a_recipe_is_refused(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError):
        load_synthesis(tmp_path / "r.yaml")


def test_faults_of_the_command_line(tmp_path, capsys):
    assert run(["synthesize", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "o")]) == 2
    path = recipe(tmp_path, "http://127.0.0.1:9/v1")
    (tmp_path / "seeds.json").write_text('[{"question": "x"}]')
    assert run(["synthesize", path, "--out", str(tmp_path / "o")]) == 2
    assert "the columns are 'question'" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    path = recipe(tmp_path, None)
    assert run(["synthesize", path, "--out", str(tmp_path / "o")]) == 2
    assert "OPENAI_API_KEY" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_real_server_of_the_protocol(tmp_path, real_server, capsys):
    """transformers' own server with a model of children's stories as teacher: it writes no JSON, and that is told."""
    teacher = {"model": real_server.model, "max_tokens": 8}
    path = recipe(tmp_path, real_server, teacher=teacher, data={"count": 1, "per_request": 1, "max_requests": 2})
    out = tmp_path / "out"
    assert run(["synthesize", path, "--out", str(out)]) == 1
    told = capsys.readouterr().err
    assert "2 requests gave no valid row" in told and "Traceback" not in told
    kept = (out / "replies.jsonl").read_text()
    replies = [json.loads(line)["reply"] for line in kept.splitlines()]
    assert len(replies) == 2
    for one in replies:
        assert one["text"] and 0 < one["completion_tokens"] <= 8 and one["url"].startswith(real_server.url)
    assert run(["synthesize", path, "--out", str(out), "--resume"]) == 1
    assert (out / "replies.jsonl").read_text() == kept
