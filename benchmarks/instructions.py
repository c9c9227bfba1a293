"""Instruction tuning end to end: KaSA through TRL, MT-Bench's two turns, a judge behind a local server, and a kill.

python -m benchmarks.instructions --model MODEL --rows ALPACA.json --mt-bench FOLDER --prompts judge_prompts.jsonl

MODEL is a folder of a small language model, FOLDER holds MT-Bench's question.jsonl and reference_answer. The judge is
the untrained model itself, served by `transformers serve`, behind a relay that counts the requests. Its grades mean
nothing; the benchmark shows that the protocol works. Exit status 1 if it does not.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.harness import machine
from benchmarks.local_server import served
from kasatune.data.chat_template import PLAIN_TEMPLATE
from kasatune.data.tasks import load_task
from kasatune.evaluation.task_model import TaskModel
from kasatune.io.run_layout import JUDGE, PREDICTIONS
from kasatune.recipes.schema import Recipe
from kasatune.runs.metrics import read_metrics
from kasatune.training.train import train

PAGE = Path(__file__).parent.parent / "docs" / "results" / "instructions.md"
KILLED_AT = 3
SERVED = "transformers serve"
SCRIPTED = "a script that rates by the length of what it reads"


class Relay(ThreadingHTTPServer):
    """Counts requests by their content and passes them on to `target`, or answers itself where that is None.

    The request `hold` (from 1) waits until `released`.
    """

    daemon_threads = True

    def __init__(self, target: str | None) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.target = target
        self.asked: list[str] = []
        self.hold = 0
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        """The address to ask."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error."""


class _Passing(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        relay: Any = self.server
        data = self.rfile.read(int(self.headers["Content-Length"]))
        relay.asked.append(data.decode())
        if len(relay.asked) == relay.hold:
            relay.released.wait(600)
        status, body = _scripted(data) if relay.target is None else _passed_on(relay.target + self.path, data)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""


def _passed_on(url: str, data: bytes) -> tuple[int, bytes]:
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as fault:
        return fault.code, fault.read()


def rating_of(text: str) -> int:
    """The scripted judge's reply to a request."""
    return len(text) % 10 + 1


def _scripted(data: bytes) -> tuple[int, bytes]:
    text = json.loads(data)["messages"][-1]["content"]
    message = {"role": "assistant", "content": f"Rating: [[{rating_of(text)}]]"}
    usage = {"prompt_tokens": len(text.split()), "completion_tokens": 2, "total_tokens": len(text.split()) + 2}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "script",
        "choices": [choice],
        "usage": usage,
    }
    return 200, json.dumps(body).encode()


def judged_with_a_kill(run: Path, relay: Relay, judge: str, questions: Path, prompts: Path) -> dict[str, Any]:
    """The run judged by a process that is killed while its request `KILLED_AT` is on its way, then by another."""
    shutil.rmtree(run / JUDGE, ignore_errors=True)
    command = [sys.executable, "-m", "kasatune", "evaluate", str(run), "--judge", judge, "--judge-url", relay.url]
    command += ["--questions", str(questions), "--judge-prompts", str(prompts)]
    relay.hold = KILLED_AT
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(relay.asked) < KILLED_AT and killed.poll() is None:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept = len((run / JUDGE / "replies.jsonl").read_text().splitlines())
    answers = (run / JUDGE / "answers.jsonl").read_bytes()
    relay.released.set()
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads((run / JUDGE / "mt-bench.json").read_text())
    counts = Counter(relay.asked)
    twice = [text for text, number in counts.items() if number > 1]
    return {
        "found": found,
        "kept": kept,
        "requests": len(relay.asked),
        "different": len(counts),
        "twice": len(twice),
        "on_its_way": int(twice == [relay.asked[KILLED_AT - 1]]),
        "answers_kept": answers == (run / JUDGE / "answers.jsonl").read_bytes(),
        "seconds": time.perf_counter() - start,
        "status": done.returncode,
        "said": (done.stdout + done.stderr).strip(),
    }


def trained(model: Path, rows: Path, number: int, work: Path) -> tuple[Path, dict[str, float]]:
    """KaSA on some rows, and the scores of the untrained model on the same validation rows."""
    chosen = json.loads(rows.read_text(encoding="utf-8"))[: number + 40]
    (work / "rows.json").write_text(json.dumps(chosen), encoding="utf-8")
    recipe = Recipe.model_validate(
        {
            "model": {"name": str(model)},
            "task": {
                "name": "instruction",
                "train": str(work / "rows.json"),
                "validation": 40 / len(chosen),
                "max_length": 512,
            },
            "method": {"name": "kasa", "r": 8, "alpha": 16, "target_modules": "all-linear"},
            "training": {
                "epochs": 1,
                "batch_size": 4,
                "eval_batch_size": 16,
                "learning_rate": 5e-3,
                "packing": True,
                "device": "cpu",
            },
            "generation": {"max_new_tokens": 32},
        }
    )
    data = load_task(recipe.task)
    prepared = TaskModel.for_training(recipe, data)
    before = prepared.score(prepared.encode(data, "validation"), data).metrics
    return train(recipe, work / "run"), before


def questions_of(folder: Path, number: int, work: Path) -> Path:
    """The first question of each category in turn, with the reference answers."""
    lines = [json.loads(line) for line in (folder / "question.jsonl").read_text(encoding="utf-8").splitlines()]
    firsts = {line["category"]: line for line in reversed(lines)}
    chosen = sorted(firsts.values(), key=lambda line: line["question_id"])[:number]
    made = work / "mt_bench"
    made.mkdir()
    (made / "question.jsonl").write_text("".join(json.dumps(line) + "\n" for line in chosen), encoding="utf-8")
    shutil.copytree(folder / "reference_answer", made / "reference_answer")
    return made


def main() -> int:
    """Run everything and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "rows", "mt-bench", "prompts"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--number", type=int, default=300, help="training rows")
    parser.add_argument("--questions", type=int, default=2, help="questions that the served model judges")
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = shutil.copytree(given.model, work / given.model.name)
        (model / "chat_template.jinja").write_text(PLAIN_TEMPLATE, encoding="utf-8")
        run, before = trained(model, given.rows, given.number, work)
        few = questions_of(given.mt_bench, given.questions, work)
        script = judged_with_a_kill(run, Relay(None), "script", given.mt_bench, given.prompts)
        expected = [
            rating_of(json.loads(text)["messages"][-1]["content"]) for text in dict.fromkeys(_asked(script, run))
        ]
        with served(model) as url:
            real = judged_with_a_kill(run, Relay(url), str(model), few, given.prompts)
        content = page(given, before, read_metrics(run), json.loads((run / PREDICTIONS).read_text()), script, real)
    given.page.write_text(content, encoding="utf-8")
    exact = abs(script["found"]["mean"] - sum(expected) / len(expected)) < 1e-12
    held = all(one["twice"] == one["on_its_way"] and one["answers_kept"] for one in (script, real))
    print(f"{given.page}: {'the protocol held' if exact and held else 'the protocol did NOT hold'}")
    return 0 if exact and held else 1


def _asked(result: dict[str, Any], run: Path) -> list[str]:
    """The bodies behind the grades."""
    lines = (json.loads(line) for line in (run / JUDGE / "replies.jsonl").read_text().splitlines())
    return [json.dumps(line["request"]) for line in lines]


def page(
    given: argparse.Namespace,
    before: dict[str, float],
    metrics: dict[str, Any],
    samples: dict[str, Any],
    script: dict[str, Any],
    real: dict[str, Any],
) -> str:
    """The page in Markdown."""
    after = metrics["metrics"]
    rows = "".join(_row(name, one) for name, one in ((SCRIPTED, script), (SERVED, real)))
    same = real["answers_kept"] and script["answers_kept"]
    shown = "".join(
        f"- *{_line(asked)}*\n  - reference: {_line(reference[0])}\n  - written: {_line(text)}\n"
        for asked, reference, text in list(
            zip(samples["inputs"], samples["labels"], samples["predictions"], strict=True)
        )[:3]
    )
    reasons = Counter(failure["reason"] for failure in real["found"]["failures"])
    uncounted = "".join(f"- {number} of {real['found']['failed']}: {reason}\n" for reason, number in reasons.items())
    reply = next((grade["reply"]["text"] for grade in real["found"]["grades"] if grade["reply"]), "")
    return f"""# Instructions, from training to a judge

{datetime.now(UTC).date()}, {_machine()}.

Made by `python -m benchmarks.instructions --model {given.model.name} --rows {given.rows.name} --mt-bench mt_bench \
--prompts {given.prompts.name} --number {given.number}` (paths shortened). **Nothing here measures quality.** The \
model has 260,000 parameters \
and was trained on stories for children; as a judge it understands nothing. What is shown is that every part does its \
work: training through TRL, two turns of answers, a judge behind a real server, a kill, and nothing asked twice.

## Training

KaSA (rank 8, every linear layer) through TRL's `SFTTrainer`, rows packed, loss on answers, {given.number:,} Alpaca \
rows for 1 epoch; {metrics["trainable_parameters"]:,} parameters trained, {metrics["seconds"]["train"]:.0f} s on a \
machine that others were using. The 40 validation rows:

| | loss | perplexity |
|---|---|---|
| untrained | {before["loss"]:.4f} | {before["perplexity"]:.2f} |
| KaSA | {after["loss"]:.4f} | {after["perplexity"]:.2f} |

What it writes (the first of the eight samples in the run's report):

{shown}
## Judging, with a kill

`kasatune evaluate RUN --judge ... --questions mt_bench --judge-prompts ...`, with FastChat's questions, references \
and prompts, was killed by SIGKILL while its request number {KILLED_AT} was on its way, and called again. A relay \
before the judge counted the requests.

| judge | questions | replies kept at the kill | requests in all | different ones | sent twice | counted | \
not counted | mean | tokens sent / received | exit status |
|---|---|---|---|---|---|---|---|---|---|---|
{rows}
The one request that was sent twice is the one that was on its way: it had no answer yet. The model's own answers \
were written once ({"their file is the same" if same else "their file CHANGED"}). \
The scripted judge's mean is that of its ratings, to the last digit.

The served model gives no rating that can be counted, and none is made up for it:

{uncounted or "- it did"}
The beginning of one of its replies: *{_line(reply)}*
"""


def _machine() -> str:
    known = machine()
    first = f"{known.pop('processor')}, {known.pop('threads')} thread(s)"
    return f"{first}; {', '.join(f'{name} {value}' for name, value in known.items())}"


def _row(name: str, one: dict[str, Any]) -> str:
    found, cost = one["found"], one["found"]["cost"]
    cells = [name, found["questions"], one["kept"], one["requests"], one["different"], one["twice"], found["graded"]]
    cells += [found["failed"], _score(found["mean"])]
    cells += [f"{cost['prompt_tokens']:,} / {cost['completion_tokens']:,}", one["status"]]
    return f"| {' | '.join(map(str, cells))} |\n"


def _score(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line.replace("*", "").replace("<", "&lt;") if len(line) < 200 else f"{line[:200].replace('<', '&lt;')} ..."


if __name__ == "__main__":
    sys.exit(main())
