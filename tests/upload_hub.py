"""A local model hub that takes uploads: the part of its HTTP protocol that `HfApi.upload_folder` uses."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest

TOKEN = "hf_test"


@contextmanager
def upload_hub() -> Iterator[UploadHub]:
    """A hub that huggingface_hub asks in the place of the real one, and a token for it."""
    hub = UploadHub()
    address = f"http://127.0.0.1:{hub.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", address)
        patch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", address)
        patch.setenv("HF_TOKEN", TOKEN)
        yield hub
    hub.shutdown()
    hub.server_close()


class UploadHub(ThreadingHTTPServer):
    """Repositories in memory.

    Attributes:
        repositories: files by path, by the repository's name.
        private: the names of private repositories.
        posted: paths of the POST requests.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.posted: list[str] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: UploadHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/api/whoami-v2":
            return self._send(200, {"type": "user", "name": "me", "orgs": []})
        if path.count("/") < 4:
            return self._send(404, {"error": "Not found"})
        _, _, _, org, name, *rest = path.split("/")
        files = self.server.repositories.get(f"{org}/{name}")
        if files is None:
            return self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if rest[:1] == ["tree"]:
            listed = [{"type": "file", "path": p, "size": len(c), "oid": "0" * 40} for p, c in files.items()]
            return self._send(200, listed)
        return self._send(200, {"id": f"{org}/{name}", "sha": "0" * 40, "siblings": [{"rfilename": p} for p in files]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        path = urlsplit(self.path).path
        self.server.posted.append(path)
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid credentials"})
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        _, _, _, org, name, what, _ = path.split("/")
        if what == "preupload":
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return self._send(200, {"files": files})
        repository = f"{org}/{name}"
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.repositories[repository][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self._send(200, {"commitUrl": f"{self._address}/{repository}/commit/1", "commitOid": "1" * 40})

    @property
    def _address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.server.repositories:
            return self._send(409, {"error": "You already created this repo", "url": f"{self._address}/{name}"})
        self.server.repositories[name] = {}
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.server.private.add(name)
        return self._send(200, {"url": f"{self._address}/{name}", "id": name})

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
