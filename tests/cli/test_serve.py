"""The command serve: what is refused before a model is loaded. The server itself: tests/adapter_tools/test_serve.py."""

import socket

import pytest


def test_an_occupied_port_is_named(kasatune):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = kasatune("serve", "missing", "--port", str(port))
    assert done.status == 2
    assert f"--port: {port} on 127.0.0.1 received" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--name", "base"), "--name: 'base' received; give another name than base"),
        (("--host", "203.0.113.7", "--port", "0"), "on 203.0.113.7 received"),
        (("--port", "70000"), "must be at most"),
        (("--port", "0"), "missing"),
    ],
)
def test_other_mistakes_are_named_too(kasatune, options, message):
    done = kasatune("serve", "missing", *options)
    assert done.status == 2
    assert message in " ".join(done.err.split())
