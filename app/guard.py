"""What stands before every request: who may ask, under which name, from where, and what the browser may do with the answer.

host name     on the loopback only its own names: a page of others cannot reach the app under a name that points here (DNS rebinding)
origin        a request that changes something must come from the app's own page (CSRF)
password      HTTP Basic, over every route, pictures and files included
policy        the browser itself refuses whatever is not of this server (Content-Security-Policy), frames of others, guessed types
"""

from __future__ import annotations

import base64
import binascii
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlm_contextrl.app.settings import is_loopback

# Gradio's page needs inline scripts and styles, and compiles templates of its components.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; media-src 'self' blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-src 'self'; frame-ancestors 'self'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
PATHS = (
    "/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json",
    "/decisions.jsonl", "/pages/dataset", "/pages/run",
    "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/run/predict", "/gradio_api/cancel", "/gradio_api/reset",
    "/gradio_api/upload", "/gradio_api/upload_progress", "/gradio_api/startup-events",
)  # fmt: skip
PREFIXES = ("/static/", "/assets/", "/svelte/", "/image/", "/gradio_api/heartbeat/")
SAFE_METHODS = ("GET", "HEAD")


class Guard:
    """ASGI middleware. host: what the server listens on."""

    def __init__(self, app: ASGIApp, *, host: str, password: str = "") -> None:
        self._app, self._password = app, password
        self._only_loopback_names = is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # the app has none
            return
        headers = Headers(scope=scope)
        refused = self._refused(scope["method"], scope["path"], headers)

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answered.setdefault(name, value)
            await send(message)

        await (refused or self._app)(scope, receive, send_with_policy)

    def _refused(self, method: str, path: str, headers: Headers) -> PlainTextResponse | None:
        host = headers.get("host", "")
        if self._only_loopback_names and not is_loopback(urlsplit(f"//{host}").hostname or ""):
            return PlainTextResponse("unknown host name", 403)
        if self._password and not self._knows_password(headers.get("authorization", "")):
            return PlainTextResponse(
                "password needed", 401, {"WWW-Authenticate": 'Basic realm="vlm_contextrl", charset="UTF-8"'}
            )
        if path not in PATHS and not path.startswith(PREFIXES):
            return PlainTextResponse("no such page", 404)
        origin = headers.get("origin")
        if method not in SAFE_METHODS and origin is not None and urlsplit(origin).netloc != host:
            return PlainTextResponse("request of another site", 403)
        return None

    def _knows_password(self, header: str) -> bool:
        scheme, _, value = header.partition(" ")
        try:
            _, _, given = base64.b64decode(value, validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return False
        return scheme.lower() == "basic" and secrets.compare_digest(given, self._password.encode())
