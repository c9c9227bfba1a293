"""A local hub of data sets: the part of its HTTP protocol that `datasets` uses, with files in memory."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow
import pyarrow.parquet
import pytest

Files = dict[str, bytes]
"""The files of a commit by path."""

_API = re.compile(r"/api/datasets/(?P<name>[^/]+/[^/]+)(/(?P<what>revision|tree)/(?P<revision>[^/]+)(?P<path>.*))?")
_RESOLVE = re.compile(r"/datasets/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@contextmanager
def served(cache: Path) -> Iterator[Hub]:
    """A hub that datasets asks in the place of the real one, with an empty cache."""
    hub = Hub()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_ENDPOINT", hub.url)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", cache / "datasets")
        patch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache / "hub"))
        yield hub
    hub.shutdown()
    hub.server_close()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """Rows as the bytes of a Parquet file."""
    file = BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def commit_of(files: Files) -> str:
    """40 hexadecimal digits that belong to these files."""
    digest = hashlib.sha1()
    for path, content in sorted(files.items()):
        digest.update(path.encode() + b"\0" + content)
    return digest.hexdigest()


class Hub(ThreadingHTTPServer):
    """Serves what was put in, each branch at its newest commit and every commit for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.commits: dict[tuple[str, str], Files] = {}
        self.branches: dict[tuple[str, str], str] = {}
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, name: str, files: Files, branch: str = "main") -> str:
        """Make `files` the newest commit of a branch; that commit."""
        commit = commit_of(files)
        self.commits[name, commit] = files
        self.branches[name, branch] = commit
        return commit

    def put_splits(self, name: str, splits: dict[str, list[dict[str, Any]]], config: str = "default") -> str:
        """Make rows by split the newest commit, with the card that the hub writes for them; that commit."""
        paths = {split: f"{config}/{split}-00000-of-00001.parquet" for split in splits}
        listed = "".join(f"  - {{split: {split}, path: {path}}}\n" for split, path in paths.items())
        card = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{listed}---\n"
        return self.put(name, {"README.md": card.encode(), **{paths[one]: parquet(splits[one]) for one in splits}})

    def has(self, name: str) -> bool:
        """Whether there is a data set of this name."""
        return any(known == name for known, _ in self.commits)

    def find(self, name: str, revision: str) -> str | None:
        """The commit of a branch, or of itself."""
        known = self.branches.get((name, revision))
        return known or (revision if (name, revision) in self.commits else None)


class _Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {path}")
        found = _API.fullmatch(path) or _RESOLVE.fullmatch(path)
        if found is None:
            return self._send(404, b"", {})
        name, revision = found["name"], unquote(found["revision"] or "main")
        if not self.server.has(name):
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        commit = self.server.find(name, revision)
        if commit is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files, told = self.server.commits[name, commit], {"X-Repo-Commit": commit}
        if found.re is _API:
            return self._send(200, json.dumps(_described(found, commit, files)).encode(), told)
        content = files.get(unquote(found["path"]))
        if content is None:
            return self._send(404, b"", {**told, "X-Error-Code": "EntryNotFound"})
        return self._send(200, content, {**told, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _described(found: re.Match[str], commit: str, files: Files) -> Any:
    if found["what"] != "tree":
        return {"id": found["name"], "sha": commit, "siblings": [{"rfilename": path} for path in files]}
    below = unquote(found["path"]).strip("/")
    entries = [_entry(path, content) for path, content in files.items()]
    entries += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(_folders(files))]
    return [one for one in entries if not below or one["path"].startswith(f"{below}/")]


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


def _folders(files: Files) -> set[str]:
    parents = (path.split("/")[:-1] for path in files)
    return {"/".join(parts[:depth]) for parts in parents for depth in range(1, len(parts) + 1)}
