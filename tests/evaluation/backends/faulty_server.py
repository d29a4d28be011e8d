"""A small HTTP server that answers as servers do on bad days; a test says what comes next."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[BaseHTTPRequestHandler, Any], None]


def send(status: int, content: Any, **headers: str) -> Reply:
    """A reply of JSON, or of raw bytes."""

    def reply(handler: BaseHTTPRequestHandler, _: Any) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def completion(text: str, reason: str = "stop") -> Reply:
    """A sound answer."""
    return send(200, {"choices": [{"text": text, "finish_reason": reason}]})


def hang(handler: BaseHTTPRequestHandler, _: Any) -> None:
    """No answer for long."""
    time.sleep(3)


def reset(handler: BaseHTTPRequestHandler, _: Any) -> None:
    """The connection breaks."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.close()


def half(handler: BaseHTTPRequestHandler, _: Any) -> None:
    """The connection ends in the middle of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


class Server(ThreadingHTTPServer):
    """Replies to posts with what is in `replies`, in order, the last one for ever; keeps what it was asked."""

    daemon_threads = True

    def __init__(self, model: dict[str, Any]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: Reply = send(200, {"data": [model]})
        self.replies: list[Reply] = []
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """Clients leave early here."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.models(self, None)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((self.path, dict(self.headers), body))
            reply = self.server.replies.pop(0) if len(self.server.replies) > 1 else self.server.replies[0]
        reply(self, body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextlib.contextmanager
def serving(model: dict[str, Any]) -> Iterator[Server]:
    """The server, while it runs."""
    server = Server(model)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
