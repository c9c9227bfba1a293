"""A judge's grades over HTTP from a scripted server: exact scores, both orders, and failures."""

import json
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from kasatune.errors import DataError
from kasatune.evaluation.judge import (
    Conversation,
    Question,
    compare_conversations,
    grade_answers,
    grade_conversations,
    load_prompts,
    own_prompts,
    read_conversations,
    read_questions,
    summarize_grades,
    summarize_matches,
)
from kasatune.evaluation.judge.pairwise import parse_verdict
from kasatune.evaluation.judge.single_answer import parse_rating
from kasatune.llm_client import AnswerCache, CachedClient, Endpoint
from tests.llm_client.scripted import Answer, ScriptedServer
from tests.shared_data import shared

QUESTIONS = [
    Question("1", "writing", ("Q1a", "Q1b")),
    Question("2", "math", ("Q2a", "Q2b"), ("R2a", "R2b")),
    Question("3", "writing", ("Q3a",)),
]
ANSWERS = {
    "1": Conversation("1", ("A1a", "A1b")),
    "2": Conversation("2", ("A2a", "A2b")),
    "3": Conversation("3", ("A3a",)),
}


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def judged(script, folder, work, **options):
    with (
        ScriptedServer(script) as server,
        AnswerCache(folder / "judge.jsonl") as ledger,
        CachedClient(Endpoint("judge", server.url, **options), ledger) as client,
    ):
        return work(client), server.bodies


def last(body):
    return body["messages"][-1]["content"]


def by_answer(says):
    """A judge that replies by the last answer that it is shown."""

    def script(body, number):
        return Answer(says[re.findall(r"A\d[ab]", last(body))[-1]])

    return script


def test_mt_bench_grades_both_turns_exactly(tmp_path):
    says = {"A1a": "Good. Rating: [[8]]", "A1b": "[[6.5]]", "A2a": "[[3]]", "A2b": "poor\n[[1]]", "A3a": "[[10]]"}
    grades, bodies = judged(
        by_answer(says), tmp_path, lambda client: grade_conversations(client, QUESTIONS, ANSWERS, own_prompts())
    )
    assert [(one.question_id, one.turn, one.value) for one in grades] == [
        ("1", 1, 8.0),
        ("1", 2, 6.5),
        ("2", 1, 3.0),
        ("2", 2, 1.0),
        ("3", 1, 10.0),
    ]
    summary = summarize_grades(grades)
    assert summary["mean"] == (8 + 6.5 + 3 + 1 + 10) / 5
    assert summary["by_turn"] == {"1": 7.0, "2": 3.75}
    assert summary["by_category"] == {"writing": 24.5 / 3, "math": 2.0}
    assert (summary["graded"], summary["failed"]) == (5, 0)
    low, high = summary["interval"]
    assert low < (7.25 + 2 + 10) / 3 < high
    first, second, with_reference, with_references, _ = map(last, bodies)
    assert "A1a" in first and "A1b" not in first and "Q1b" not in first
    assert all(part in second for part in ("Q1a", "A1a", "Q1b", "A1b"))
    assert "R2a" in with_reference and "R2b" not in with_reference
    assert "R2a" in with_references and "R2b" in with_references
    assert {body["temperature"] for body in bodies} == {0.0}


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("[[7]]", 7.0),
        ("Rating: [[ 7.5 ]]", 7.5),
        ("[[7]] ... as said, [[7]]", 7.0),
        ("I give 7 of 10", None),
        ("[7]", None),
        ("[[11]]", None),
        ("[[-1]]", None),
        ("[[3]] or rather [[8]]", None),
        ("[[N]]", None),
        ("", None),
        ("[[ten]]", None),
    ],
)
def test_rating_is_one_number_on_the_scale_or_none(reply, value):
    assert parse_rating(reply, 0, 10) == value


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("[[A]]", "A"),
        ("so [[B]].", "B"),
        ("[[C]]", "tie"),
        ("[[A]] no, [[B]]", None),
        ("A wins", None),
        ("[[D]]", None),
    ],
)
def test_verdict_is_one_letter_or_none(reply, value):
    assert parse_verdict(reply) == value


def test_failures_are_counted_and_never_scored(tmp_path):
    def script(body, number):
        return (Answer("[[4]]"), Answer("lovely"), Answer("no", status=400), Answer("[[0]]"), Answer(None))[number]

    grades, _ = judged(script, tmp_path, lambda client: grade_conversations(client, QUESTIONS, ANSWERS, own_prompts()))
    summary = summarize_grades(grades)
    assert (summary["mean"], summary["graded"], summary["failed"]) == (4.0, 1, 4)
    assert [one["reason"].split(" in")[0] for one in summary["failures"]] == [
        "no single rating [[1 to 10]]",
        "the server refused the request with status 400 (Error code: 400 - no)",
        "no single rating [[1 to 10]]",
        "no single rating [[1 to 10]]",
    ]
    assert summary["by_turn"] == {"1": 4.0}


def test_no_grades_give_no_mean():
    assert summarize_grades([])["mean"] is None
    assert summarize_matches([])["win_rate"] is None


def test_single_answers_are_scored_from_0_to_10_against_their_reference(tmp_path):
    says = {"A1a": "[[0]]", "A2a": "[[10]]", "A3a": "[[5]]"}
    grades, bodies = judged(
        by_answer(says), tmp_path, lambda client: grade_answers(client, QUESTIONS, ANSWERS, own_prompts())
    )
    assert [one.value for one in grades] == [0.0, 10.0, 5.0]
    assert ["R2a" in last(body) for body in bodies] == [False, True, False]
    assert all("from 0 (" in body["messages"][0]["content"] for body in bodies)


def test_pairs_are_judged_in_both_orders_and_a_win_needs_both(tmp_path):
    other = {
        key: Conversation(key, tuple(text.replace("A", "B") for text in one.turns)) for key, one in ANSWERS.items()
    }
    better = {"1": ("A1a", "B1b"), "2": (None, "always first"), "3": ("garbled",)}

    def script(body, number):
        found = re.findall(r"[AB](\d)([ab])", last(body))
        turn = 1 if any(letter == "b" for _, letter in found) else 0
        wanted = better[found[-1][0]][turn]
        if wanted is None:
            return Answer("[[C]]")
        if wanted == "always first":
            return Answer("[[A]]")
        if wanted == "garbled":
            return Answer("[[A]]" if number % 2 else "who knows")
        return Answer("[[A]]" if last(body).find(wanted) < last(body).find(_rival(wanted)) else "[[B]]")

    matches, bodies = judged(
        script, tmp_path, lambda client: compare_conversations(client, QUESTIONS, ANSWERS, other, own_prompts())
    )
    assert len(bodies) == 10
    assert [(one.winner, one.swayed) for one in matches] == [
        ("first", False),
        ("second", False),
        ("tie", False),
        ("tie", True),
        (None, False),
    ]
    summary = summarize_matches(matches)
    assert {name: summary[name] for name in ("wins", "losses", "ties", "swayed", "graded", "failed", "win_rate")} == {
        "wins": 1,
        "losses": 1,
        "ties": 2,
        "swayed": 1,
        "graded": 4,
        "failed": 1,
        "win_rate": 0.5,
    }
    assert summary["failures"][0]["reason"].startswith("as given: no single verdict")


def _rival(answer):
    return ("B" if answer[0] == "A" else "A") + answer[1:]


def test_braces_in_an_answer_are_not_fields(tmp_path):
    question = Question("1", "coding", ("{answer}",))
    _, (body,) = judged(
        lambda body, number: Answer("[[5]]"),
        tmp_path,
        lambda client: grade_answers(
            client, [question], {"1": Conversation("1", ("{question} {0} }{",))}, own_prompts()
        ),
    )
    assert "{question} {0} }{" in last(body) and "<question>\n{answer}\n" in last(body)


def test_the_published_questions_references_and_prompts_can_be_read(tmp_path):
    questions = read_questions(shared("mt_bench/mt_bench"))
    assert len(questions) == 80 and {len(one.turns) for one in questions} == {2}
    referenced = {one.category for one in questions if one.references}
    assert referenced == {"math", "reasoning", "coding"} and sum(bool(one.references) for one in questions) == 30
    prompts = load_prompts(shared("mt_bench/judge_prompts.jsonl"))
    answers = {one.id: Conversation(one.id, ("x", "y")) for one in questions}
    grades, bodies = judged(
        lambda body, number: Answer("Rating: [[5]]"),
        tmp_path,
        lambda client: grade_conversations(client, questions[:1] + questions[20:21], answers, prompts),
    )
    assert [one.value for one in grades] == [5.0] * 4
    assert not any(re.search(r"\{(question|answer|ref)[a-z_0-9]*\}", last(body)) for body in bodies)
    assert "### User:\n" in last(bodies[1]) and "Reference answer" in last(bodies[3])


@pytest.mark.parametrize(
    ("lines", "faults"),
    [
        (['{"question_id": 1, "turns": ["a"]}', "{"], ["line 2: not JSON"]),
        (['{"question_id": 1, "turns": []}', '{"turns": ["a"]}'], ["line 1: turns []", "line 2: question_id None"]),
        (['{"question_id": 1, "turns": ["a", "b", "c"]}'], ["one or two texts"]),
        (['{"question_id": 1, "turns": ["a"]}', '{"question_id": 1, "turns": ["a"]}'], ["question_id 1"]),
        (["[1]"], ["an object is expected"]),
    ],
)
def test_all_faults_of_a_question_file_are_listed(tmp_path, lines, faults):
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError) as caught:
        read_questions(path)
    assert all(fault in str(caught.value) for fault in faults), str(caught.value)


def test_faults_of_answers_and_prompts_are_listed(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"question_id": 1}\n{"question_id": 2, "choices": [{"turns": [3]}]}\n')
    with pytest.raises(DataError, match=r"2 faults[\s\S]*line 1: no question_id, or no choices[\s\S]*line 2: turns"):
        read_conversations(path)
    path.write_text('{"name": "single-v1", "system_prompt": "s", "prompt_template": "{question}"}\n{"name": "x"}\n')
    with pytest.raises(DataError, match=r"fields of kasatune's own[\s\S]*line 2: no object with name"):
        load_prompts(path)


_WORKER = """
import json, sys
from pathlib import Path
from kasatune.llm_client import CachedClient, Endpoint, AnswerCache
from kasatune.evaluation.judge import Conversation, Question, grade_conversations, own_prompts
url, path, workers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
questions = [Question(str(n), "c", (f"first {n}", f"second {n}")) for n in range(6)]
answers = {q.id: Conversation(q.id, (f"A{q.id}a", f"A{q.id}b")) for q in questions}
with AnswerCache(path) as ledger, CachedClient(Endpoint("judge", url, workers=workers), ledger) as client:
    print(json.dumps([one.value for one in grade_conversations(client, questions, answers, own_prompts())]))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_after_a_kill_no_answered_request_is_sent_again(tmp_path, workers):
    path, free = tmp_path / "judge.jsonl", threading.Event()
    answered: list[str] = []

    def script(body, number):
        if number >= 5:  # the sixth request and later ones are on their way when the kill comes
            free.wait(60)
        answered.append(last(body))
        return Answer("[[7]]" if number % 2 else "[[3]]")

    with ScriptedServer(script) as server:
        command = [sys.executable, "-c", _WORKER, server.url, str(path), str(workers)]
        killed = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (
            path.is_file() and path.read_bytes().count(b"\n") == 5 and len(server.bodies) == 5 + workers
        ):
            time.sleep(0.02)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        kept = [json.loads(line)["request"]["messages"][-1]["content"] for line in path.read_text().splitlines()]
        before = len(server.bodies)
        free.set()
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        asked_after = [last(body) for body in server.bodies[before:]]
    assert len(kept) == 5
    assert not set(kept) & set(asked_after)
    assert len(asked_after) == len(set(asked_after)) == 12 - 5
    assert len(json.loads(done.stdout)) == 12 and set(json.loads(done.stdout)) <= {3.0, 7.0}
