"""Requests over HTTP: caching, retries, and errors that stop the work."""

import json
import threading
import time

import pytest

from kasatune.errors import InputError, OutputError, WorkError
from kasatune.llm_client import (
    AnswerCache,
    CachedClient,
    ChatRequest,
    Cost,
    Endpoint,
    Prices,
    Refusal,
    Reply,
    total_cost,
)
from tests.llm_client.scripted import Answer, ScriptedServer

AT_ONCE = {"retry-after-ms": "1"}


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def requests(*texts, **further):
    return [ChatRequest("m", (("user", text),), 0.0, 16, **further) for text in texts]


def ask(server, folder, asked, **options):
    endpoint = Endpoint("m", server.url, **options)
    with AnswerCache(folder / "answers.jsonl") as ledger, CachedClient(endpoint, ledger) as client:
        return client.ask_all(asked), client.requests_sent


def echo(body, number):
    return Answer(f"re: {body['messages'][-1]['content']}")


@pytest.mark.parametrize("workers", [1, 4])
def test_each_request_is_sent_once(tmp_path, workers):
    wanted = requests("a", "b", "a", "c")
    with ScriptedServer(echo) as server:
        first, asked = ask(server, tmp_path, wanted, workers=workers)
        again, asked_again = ask(server, tmp_path, wanted + requests("d"), workers=workers)
    assert [reply.text for reply in first] == ["re: a", "re: b", "re: a", "re: c"]
    assert (asked, asked_again) == (3, 1)
    assert [reply.text for reply in again] == ["re: a", "re: b", "re: a", "re: c", "re: d"]
    assert sorted(body["messages"][0]["content"] for body in server.bodies) == ["a", "b", "c", "d"]


def test_body_of_a_request(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-1")
    asked = [ChatRequest("m", (("system", "s"), ("user", "u")), 0.7, 32, seed=5)]
    with ScriptedServer(echo) as server:
        ask(server, tmp_path, asked)
    assert server.bodies == [
        {
            "model": "m",
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
            "temperature": 0.7,
            "max_tokens": 32,
            "seed": 5,
        }
    ]
    assert server.keys == ["Bearer secret-1"]
    assert "secret-1" not in (tmp_path / "answers.jsonl").read_text()


@pytest.mark.parametrize(
    "fault",
    [
        Answer(status=429, headers=AT_ONCE),
        Answer(status=500, headers=AT_ONCE),
        Answer(status=503, headers=AT_ONCE),
        Answer(drop=True),
    ],
    ids=["429", "500", "503", "dropped"],
)
def test_temporary_errors_are_retried(tmp_path, fault):
    with ScriptedServer(lambda body, number: fault if number == 0 else Answer("x")) as server:
        (reply,), asked = ask(server, tmp_path, requests("a"))
    assert (reply.text, reply.retries, asked, len(server.bodies)) == ("x", 1, 1, 2)


def test_permanent_error_stops_and_keeps_earlier_answers(tmp_path):
    wanted = requests("a", "b", "c")

    def fails_at_b(body, number):
        return Answer(status=429, headers=AT_ONCE) if body["messages"][0]["content"] == "b" else echo(body, number)

    with ScriptedServer(fails_at_b) as server:
        with pytest.raises(WorkError, match=r"status 429 after 2 retries .*same command to resume"):
            ask(server, tmp_path, wanted, retries=2)
        assert len(server.bodies) == 1 + 3
        server.script = echo
        _, asked = ask(server, tmp_path, wanted)
    assert asked == 2


def test_unreachable_server_is_a_work_error(tmp_path):
    with ScriptedServer(echo) as server:
        pass
    with pytest.raises(WorkError, match="no answer"):
        ask(server, tmp_path, requests("a"), retries=0)


@pytest.mark.parametrize(("status", "word"), [(401, "the key was refused"), (403, "refused"), (404, "no model 'm'")])
def test_wrong_key_or_model_is_an_input_error_without_retries(tmp_path, status, word):
    with ScriptedServer(lambda body, number: Answer("what it says", status=status)) as server:
        with pytest.raises(InputError, match=rf"{word}.*what it says"):
            ask(server, tmp_path, requests("a", "b"))
        assert len(server.bodies) == 1


def test_refused_request_is_reported_and_not_cached(tmp_path):
    def too_long(body, number):
        return Answer("too long", status=400) if body["messages"][0]["content"] == "b" else echo(body, number)

    with ScriptedServer(too_long) as server:
        replies, _ = ask(server, tmp_path, requests("a", "b", "c"))
        assert [type(reply) for reply in replies] == [Reply, Refusal, Reply]
        assert "400 (" in replies[1].reason and "too long" in replies[1].reason
        _, asked = ask(server, tmp_path, requests("a", "b", "c"))
    assert asked == 1


@pytest.mark.parametrize(
    "raw", ["", "[]", "no json", '{"choices": []}', '{"choices": [{"message": {"content": [1]}}]}', "null", "{}"]
)
def test_reply_other_than_a_chat_completion_is_a_refusal(tmp_path, raw):
    with ScriptedServer(lambda body, number: Answer(raw=raw)) as server:
        (reply,), _ = ask(server, tmp_path, requests("a"))
    assert isinstance(reply, Refusal), reply
    assert (tmp_path / "answers.jsonl").read_text() == ""


def test_empty_answer_is_a_reply(tmp_path):
    with ScriptedServer(lambda body, number: Answer(None, finish_reason="content_filter", usage=None)) as server:
        (reply,), _ = ask(server, tmp_path, requests("a"))
    assert (reply.text, reply.finish_reason, reply.prompt_tokens) == ("", "content_filter", None)


def test_rate_limit_includes_retries_and_threads(tmp_path):
    def first_fails(body, number):
        return Answer(status=429, headers=AT_ONCE) if number == 0 else echo(body, number)

    with ScriptedServer(first_fails) as server:
        begun = time.monotonic()
        ask(server, tmp_path, requests("a", "b", "c", "d"), rate=1200, workers=4)
    assert len(server.times) == 5
    assert server.times[-1] - begun >= 4 * 60 / 1200


def test_truncated_last_line_is_removed_and_requested_again(tmp_path):
    path = tmp_path / "answers.jsonl"
    with ScriptedServer(echo) as server:
        ask(server, tmp_path, requests("a", "b"))
        path.write_bytes(path.read_bytes()[:-20])
        replies, asked = ask(server, tmp_path, requests("a", "b"))
    assert (asked, replies[1].text) == (1, "re: b")
    assert [json.loads(line)["reply"]["text"] for line in path.read_text().splitlines()] == ["re: a", "re: b"]


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"key": "x"}\nnonsense\n{"key": "y"}\n')
    with pytest.raises(InputError, match="line 2"):
        AnswerCache(tmp_path / "answers.jsonl")


def test_one_process_at_a_time(tmp_path):
    with AnswerCache(tmp_path / "x"), pytest.raises(OutputError, match="another process"):
        AnswerCache(tmp_path / "x")
    with AnswerCache(tmp_path / "x"):
        pass


def test_unwritable_cache_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="give another directory"):
        AnswerCache(tmp_path / "file" / "x")


def test_one_error_stops_all_threads(tmp_path):
    begun = threading.Event()

    def slow(body, number):
        begun.set()
        return Answer("no", status=404) if number == 3 else Answer("x")

    with ScriptedServer(slow) as server, pytest.raises(InputError):
        ask(server, tmp_path, requests(*map(str, range(200))), workers=2)
    assert len(server.bodies) < 100


@pytest.mark.parametrize(
    ("endpoint", "word"), [(Endpoint("m"), "set OPENAI_API_KEY"), (Endpoint("m", "localhost:1"), "not the address")]
)
def test_invalid_endpoint_is_refused(tmp_path, endpoint, word):
    with AnswerCache(tmp_path / "x") as ledger, pytest.raises(InputError, match=word):
        CachedClient(endpoint, ledger)


def test_equal_requests_have_equal_keys():
    one, same = requests("a", "a")
    assert one.key == same.key
    assert len({one.key, requests("b")[0].key, requests("a", seed=1)[0].key}) == 3


def test_cost_sums_the_tokens_counted_by_the_server():
    replies = [Reply("", None, 1000, 500, 2), Reply("", None, 2000, 0, 0), Reply("", None, None, None, 1)]
    assert total_cost(replies) == Cost(3, 3000, 500, 1, 3, None)
    assert total_cost(replies, Prices(10.0, 30.0)).money == pytest.approx(0.03 + 0.015)
