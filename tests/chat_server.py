"""An OpenAI-compatible server on this machine that says what a test has it say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

Reply = Callable[[dict[str, Any], int], tuple[int, str]]  # request and its number -> status and body


class ChatServer(ThreadingHTTPServer):
    """Answers every request with what `reply` makes of it, and keeps requests and keys."""

    daemon_threads = True

    def __init__(self, reply: Reply) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.ending = Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def late(self, request: dict[str, Any], number: int) -> tuple[int, str]:
        """A reply that does not come before the test is over."""
        self.ending.wait(600)
        return 200, ""


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        self.server.keys.append(self.headers["Authorization"])
        status, body = self.server.reply(request, len(self.server.requests))
        try:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())
        except ConnectionError:  # the one who asked has lost patience
            return

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(reply: Reply) -> Iterator[ChatServer]:
    """The server while the block runs."""
    server = ChatServer(reply)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.ending.set()
        server.shutdown()
        thread.join()
        server.server_close()


def said(content: object) -> str:
    """The protocol's form of a reply."""
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]})
