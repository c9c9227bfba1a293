"""Who may use the page: the address and password it is served with, and requests that come from the page itself."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import TYPE_CHECKING

from kasatune.errors import InputError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-src 'self' blob: data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""Content-Security-Policy: the page loads nothing from other machines, and no other page may show it in a frame."""
_ANY = ("0.0.0.0", "::")


def require_safe_host(host: str, auth: str | None) -> tuple[str, str] | None:
    """User and password from "USER:PASSWORD".

    Raises:
        InputError: the text has another form, or other machines could use the page without a password.
    """
    if auth is None:
        if not _is_loopback(host):
            raise InputError(
                f"--host: {host} can be reached from other machines, which could start runs here; give --auth "
                "USER:PASSWORD too, or leave --host out"
            )
        return None
    user, colon, password = auth.partition(":")
    if not colon or not user or len(password) < 8:
        raise InputError("--auth: give USER:PASSWORD with a password of 8 characters or more")
    return user, password


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_check(host: str, port: int) -> Callable[[str], bool]:
    """Whether a Host header is one of this page: a name that another site points here is not (DNS rebinding)."""
    if host in _ANY:
        return lambda given: _is_address(given.rpartition(":")[0].strip("[]"))
    names = {host, *(("localhost", "127.0.0.1", "[::1]") if _is_loopback(host) else ())}
    names = {f"[{name}]" if ":" in name and not name.startswith("[") else name for name in names}
    return lambda given: given in {f"{name}:{port}" for name in names}


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return text == "localhost"
    return True


class OwnRequestsOnly:
    """Middleware that refuses requests which another site sends, and forbids the page to load anything from others.

    Args:
        app: the application.
        hosts: whether a Host header is one of this page.
    """

    def __init__(self, app: ASGIApp, hosts: Callable[[str], bool]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        from starlette.datastructures import Headers, MutableHeaders
        from starlette.responses import PlainTextResponse

        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        own = origin is None or origin.partition("://")[2] == host
        if not self._hosts(host) or not own or headers.get("sec-fetch-site") == "cross-site":
            await PlainTextResponse("refused: not a request of this page", 403)(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = MutableHeaders(scope=message)
                added["Content-Security-Policy"] = _POLICY
                added["X-Content-Type-Options"] = "nosniff"
                added["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self._app(scope, receive, send_with_policy)
