"""Who may use the page: hosts, passwords, and requests of other sites."""

from __future__ import annotations

import asyncio

import pytest

from kasatune.errors import InputError
from kasatune.ui.request_guard import OwnRequestsOnly, host_check, require_safe_host


def test_this_machine_needs_no_password_and_others_do():
    assert require_safe_host("127.0.0.1", None) is None
    assert require_safe_host("localhost", None) is None
    assert require_safe_host("0.0.0.0", "me:long enough:") == ("me", "long enough:")
    for host in ("0.0.0.0", "192.168.1.5", "::", "example.org", ""):
        with pytest.raises(InputError, match="--auth"):
            require_safe_host(host, None)


@pytest.mark.parametrize("auth", ["", "me", "me:", "me:short", ":long enough"])
def test_a_weak_login_is_refused(auth):
    with pytest.raises(InputError, match="--auth"):
        require_safe_host("127.0.0.1", auth)


def status(headers: dict[str, str], host: str = "127.0.0.1") -> tuple[int, dict[str, str]]:
    """Status and headers of the answer to a request with these headers."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(OwnRequestsOnly(app, host_check(host, 7860))(scope, None, send))
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"host": "127.0.0.1:7860"}, 200),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, 200),
        ({"host": "evil.example:7860"}, 403),
        ({"host": "127.0.0.1:7860", "origin": "http://evil.example"}, 403),
        ({"host": "127.0.0.1:7860", "origin": "null"}, 403),
        ({"host": "127.0.0.1:7860", "sec-fetch-site": "cross-site"}, 403),
        ({}, 403),
    ],
)
def test_requests_of_other_sites_are_refused(headers, expected):
    assert status(headers)[0] == expected


def test_behind_all_addresses_only_addresses_are_taken_as_host():
    assert status({"host": "192.168.1.5:7860"}, "0.0.0.0")[0] == 200
    assert status({"host": "evil.example:7860"}, "0.0.0.0")[0] == 403


def test_the_page_may_load_nothing_from_other_machines():
    policy = status({"host": "127.0.0.1:7860"})[1]["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "http" not in policy
