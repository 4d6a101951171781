"""The page's server, for this machine and its own page alone: the standard library's http.server.

    GET  /, /draw.js and so on   the files of page/, and no others
    GET  /about.json             which models there are: `look.about`
    POST /look                   a question in JSON -> what the model computes: `look.answer`

It listens on 127.0.0.1. Other programs of this machine can ask it, and so can pages in the reader's
browser: so it answers only where the request calls it by its own name (a stranger's name that leads
to 127.0.0.1 is refused), and where the page that asks is its own. A refusal is one sentence.
"""

import contextlib
import json
import socket
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ...model.mixer import Mixer
from ...training.files import parse_json
from .look import about, answer
from .static import FILES, page_file

MOST_BODY = 150_000  # bytes: the largest drawing, in base64, has 104,536
PATIENCE = 10.0  # seconds for a client to say all that it wants
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """With the status of HTTP, and a sentence."""


class Server(ThreadingHTTPServer):
    """Answers about `models`, one at a time; port 0: a free one. OSError if it is taken."""

    daemon_threads = True
    request_queue_size = 128  # of the five that socketserver allows to wait, a sixth is thrown out

    def __init__(self, models: dict[str, Mixer], port: int = 0):
        self.models, self.turn = models, threading.Lock()
        super().__init__(("127.0.0.1", port), Handler)
        names = {"127.0.0.1", "localhost"}
        self.hosts = {f"{name}:{self.server_port}" for name in names}
        if self.server_port == 80:  # browsers leave it out
            self.hosts |= names

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Of a client that left, nothing is said; what else went wrong is ours."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection, on which several requests may come."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE

    def handle_one_request(self) -> None:
        """`timeout` is for a byte; after as long in all, nothing more is read."""
        self.late, patience = False, threading.Timer(self.timeout, self._stop_reading)
        patience.daemon = True
        patience.start()
        try:
            super().handle_one_request()
        finally:
            patience.cancel()

    def _stop_reading(self) -> None:
        self.late = True  # before the end of what is read can be seen
        with contextlib.suppress(OSError):  # it is closed
            self.connection.shutdown(socket.SHUT_RD)

    def do_GET(self) -> None:
        self._try(self._get)

    def do_POST(self) -> None:
        self._try(self._post)

    def _try(self, method: Any) -> None:
        try:
            self._check_who_asks()
            method()
        except Refused as refused:
            self._refuse(*refused.args)
        except OSError:  # the client left, or was too slow
            self.close_connection = True
        except Exception:
            traceback.print_exc()
            self._refuse(500, "this is a mistake of minimixer's; its terminal says more")

    def _check_who_asks(self) -> None:
        if self.late:
            raise TimeoutError  # perhaps not all headers came
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0] not in self.server.hosts:
            raise Refused(421, f"this server is called {self.server.address} and nothing else")
        origins = self.headers.get_all("Origin") or []
        if any(origin.removeprefix("http://") not in self.server.hosts for origin in origins):
            raise Refused(403, "only its own page may ask this server")

    def _get(self) -> None:
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            raise Refused(413, "who asks for a page sends nothing with it")
        path = self.path.partition("?")[0]
        if path == "/about.json":
            return self._answer_json(about(self.server.models))
        if path not in FILES:
            raise Refused(404, "there is no such page here; / has the one there is")
        name, kind = FILES[path]
        self._answer(200, page_file(name), kind)

    def _post(self) -> None:
        if self.path != "/look":
            raise Refused(404, "questions go to /look")
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "a question is application/json")
        body = self._body()
        try:
            question = parse_json(body)
            with self.server.turn:
                seen = answer(self.server.models, question)
        except (ValueError, RecursionError) as error:
            raise Refused(400, str(error)) from None
        self._answer_json(seen)

    def _body(self) -> bytes:
        length = self.headers.get_all("Content-Length") or []
        if len(length) != 1 or not length[0].isdecimal() or "Transfer-Encoding" in self.headers:
            raise Refused(411, "a question must say its length, once")
        if len(length[0]) > 9 or int(length[0]) > MOST_BODY:
            raise Refused(413, f"a question has at most {MOST_BODY} bytes")
        body = self.rfile.read(int(length[0]))
        if len(body) < int(length[0]):
            raise ConnectionError("the client left")
        return body

    def _answer_json(self, value: Any) -> None:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
        self._answer(200, text.encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, sentence: str) -> None:
        """The connection ends, as what is left of the request is no other request. It is thrown
        away before: to a client that still sends, a system says "reset" in place of a sentence."""
        self.close_connection = True
        self._answer(status, f"{sentence}\n".encode(), "text/plain; charset=utf-8")
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while self.rfile.read1(1 << 16):
                pass

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server finds wrong itself; 501: another method, which we call 405."""
        if code == 501:
            return self._refuse(405, "this server knows GET and POST")
        self._refuse(code, "this is no request that the server understands")

    def version_string(self) -> str:
        return "minimixer"

    def log_message(self, *_: Any) -> None:
        pass
