"""A scripted server with the OpenAI protocol, over real HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Answer:
    """What the server does: a chat completion of `text`, unless something else is said."""

    text: str | None = ""
    status: int = 200
    headers: dict = field(default_factory=dict)
    raw: str | None = None  # the whole body, in the place of a completion
    drop: bool = False  # close the connection without a word
    usage: dict | None = field(
        default_factory=lambda: {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
    )
    finish_reason: str = "stop"


class ScriptedServer(ThreadingHTTPServer):
    """`script(body, number)` tells the answer to the number-th request (from 0); `bodies` are all that came."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, script: Callable[[dict, int], Answer]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.bodies: list[dict] = []
        self.times: list[float] = []
        self.keys: list[str | None] = []
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        pass  # a client that was killed leaves a broken pipe


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server: ScriptedServer = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = len(server.bodies)
            server.bodies.append(body)
            server.times.append(time.monotonic())
            server.keys.append(self.headers.get("Authorization"))
        assert self.path == "/v1/chat/completions", self.path
        answer = server.script(body, number)
        if answer.drop:
            self.close_connection = True
            return
        content = answer.raw if answer.raw is not None else _body(body, answer)
        data = content.encode()
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def _body(body: dict, answer: Answer) -> str:
    if answer.status != 200:
        return json.dumps({"error": {"message": answer.text or "no", "type": "scripted", "code": None}})
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answer.text},
        "finish_reason": answer.finish_reason,
    }
    usage = {} if answer.usage is None else {"usage": answer.usage}
    return json.dumps(
        {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice], **usage}
    )
