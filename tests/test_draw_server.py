"""The server of `python -m minimixer draw`: what it answers, whom it refuses, and who waits."""

import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from test_draw import WRONG, model_of, question, unpack

from minimixer.app.draw import server, static
from minimixer.app.draw.look import about, answer, ready

JSON = "Content-Type: application/json"


@pytest.fixture(scope="module")
def models():
    return ready({"one": model_of(), "two": model_of(1)})


@pytest.fixture
def serving(models):
    with server.Server(models) as running:
        thread = threading.Thread(target=running.serve_forever, args=[0.01])
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def send(serving, data):
    """The bytes of a request, and all that comes back: status, headers, body."""
    with socket.create_connection(serving.server_address, 30) as connection:
        connection.sendall(data)
        reply = http.client.HTTPResponse(connection, method=data.split()[0].decode())
        reply.begin()
        return reply.status, reply.headers, reply.read()


def request(serving, line, *headers, body=b"", host=None, length=True):
    lines = [f"{line} HTTP/1.1", f"Host: {host or f'127.0.0.1:{serving.server_port}'}", *headers]
    lines += [f"Content-Length: {len(body)}"] * (length and line.startswith("POST"))
    return send(serving, "\r\n".join([*lines, "", ""]).encode("latin-1") + body)


def ask(serving, asked, **more):
    status, _, body = request(serving, "POST /look", JSON, body=json.dumps(asked).encode(), **more)
    assert status == 200, body
    return json.loads(body)


def test_the_page_and_nothing_else_is_loaded(serving):
    for path, (name, kind) in static.FILES.items():
        status, headers, body = request(serving, f"GET {path}?from=here")
        assert (status, headers["Content-Type"]) == (200, kind)
        assert (body == static.page_file(name) and b'"use strict"' in body) or ".js" not in name
        rules = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
        assert rules["default-src"] == "'none'" and rules["script-src"] == "'self'"
        assert headers["X-Content-Type-Options"] == "nosniff" and "Python" not in str(headers)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_questions_are_answered_on_its_own_names(serving, models, host):
    host = f"{host}:{serving.server_port}"
    status, _, body = request(serving, "GET /about.json", f"Origin: http://{host}", host=host)
    assert status == 200 and json.loads(body) == json.loads(json.dumps(about(models)))
    for number in (0, 1):
        asked = question(model=number, target=2)
        assert ask(serving, asked, host=host)["seen"] == answer(models, asked)["seen"]


def test_where_browsers_name_no_port(models, monkeypatch):
    """http's own is 80: they leave it out."""
    bind = server.Server.server_bind
    monkeypatch.setattr(server.Server, "server_bind",
                        lambda self: (bind(self), setattr(self, "server_port", 80)))  # fmt: skip
    with server.Server(models) as running:
        threading.Thread(target=running.serve_forever, args=[0.01]).start()
        for host in ("127.0.0.1", "localhost"):
            assert ask(running, question(), host=host)["seen"]
        refused(request(running, GET, host="mixer.example"), 421)
        running.shutdown()


def test_several_questions_on_one_connection(serving):
    connection = http.client.HTTPConnection("127.0.0.1", serving.server_port, timeout=30)
    for _ in range(3):
        connection.request("POST", "/look", json.dumps(question()), dict([JSON.split(": ")]))
        assert connection.getresponse().read().startswith(b'{"seen":')
    connection.close()


GET, POST = "GET /", "POST /look"
MUCH = str(server.MOST_BODY + 1)
REFUSED = {
    "another name": (421, GET, [], dict(host="mixer.example:80")),
    "another port": (421, GET, [], dict(host="127.0.0.1:1")),
    "no port": (421, GET, [], dict(host="localhost")),
    "two names": (421, GET, ["Host: 127.0.0.1:80"], {}),
    "another page": (403, POST, [JSON, "Origin: http://mixer.example"], {}),
    "another page reads": (403, "GET /about.json", ["Origin: https://mixer.example"], {}),
    "a sandboxed page": (403, POST, [JSON, "Origin: null"], {}),
    "another page on this machine": (403, POST, [JSON, "Origin: http://127.0.0.1:1"], {}),
    "a file": (404, "GET /look.py", [], {}), "above": (404, "GET /../look.py", [], {}),
    "above, in code": (404, "GET /%2e%2e/look.py", [], {}),
    "an absolute path": (404, "GET //etc/passwd", [], {}),
    "by another way": (404, "GET /page/../../look.py", [], {}),
    "a question elsewhere": (404, "POST /", [JSON], {}), "read": (404, "GET /look", [], {}),
    "a form": (415, POST, ["Content-Type: text/plain"], {}), "no type": (415, POST, [], {}),
    "no length": (411, POST, [JSON], dict(length=False)),
    "a length that is none": (411, POST, [JSON, "Content-Length: -1"], dict(length=False)),
    "two lengths": (411, POST, [JSON, "Content-Length: 1"], {}),
    "in chunks": (411, POST, [JSON, "Transfer-Encoding: chunked"], {}),
    "large": (413, POST, [JSON, f"Content-Length: {MUCH}"], dict(length=False)),
    "large, and sent": (413, POST, [JSON], dict(body=b" " * 5_000_000)),
    "no question, and sent": (415, POST, [], dict(body=b" " * 5_000_000)),
    "another request within": (413, GET, ["Content-Length: 9"], dict(body=b"GET / x\r\n")),
    "another in chunks": (413, GET, ["Transfer-Encoding: chunked"], dict(body=b"0\r\n\r\n")),
    "huge": (413, POST, [JSON, "Content-Length: " + "9" * 5000], dict(length=False)),
    **{m: (405, f"{m} /", [], {}) for m in ("PUT", "DELETE", "OPTIONS", "PATCH", "HEAD", "TRACE")},
    **{f"body {body[:12]!r}": (400, POST, [JSON], dict(body=body)) for body in (
        b"", b"\xff", b"{", b"[" * 50_000, b"7" * 5000, b'{"side": NaN}', b'{"ink": 1, "ink": 2}')},
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_refusals_are_one_sentence(serving, why):
    status, line, headers, more = REFUSED[why]
    refused(request(serving, line, *headers, **more), status, empty=line.startswith("HEAD"))


@pytest.mark.parametrize("data", [
    b"\r\n", b"GET\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"\0\xff\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
])  # fmt: skip
def test_what_is_no_request(serving, data):
    with socket.create_connection(("127.0.0.1", serving.server_port), 30) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        said = b"".join(iter(lambda: connection.recv(4096), b""))
    assert b"Traceback" not in said and b"<" not in said
    assert said == b"" or b"no request that the server understands" in said
    assert ask(serving, question())  # it goes on


@pytest.mark.parametrize("asked, match", WRONG)
def test_a_wrong_question_is_told_why(serving, asked, match):
    said = request(serving, POST, JSON, body=json.dumps(asked).encode())
    refused(said, 400)


def refused(said, status, empty=False):
    found, headers, body = said
    assert found == status and headers["Content-Type"] == "text/plain; charset=utf-8"
    text = body.decode()
    assert "Traceback" not in text and ".py" not in text and text.count("\n") == (not empty)
    assert len(text) < 300 and headers["Connection"] == "close"


def test_a_mistake_of_ours_is_told_on_the_terminal(serving, monkeypatch, capsys):
    monkeypatch.setattr(server, "answer", lambda *_: 1 // 0)
    refused(request(serving, POST, JSON, body=b"{}"), 500)
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_two_at_once_get_their_own_answers(serving, models):
    asked = [question(model=i % 2, target=i % 3, hidden=[i]) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: ask(serving, one)["seen"], asked))
    for one, seen in zip(asked, found, strict=True):
        assert seen == answer(models, one)["seen"]
    assert abs(unpack(found[0]["logits"]) - unpack(found[1]["logits"])).max() > 0.01


def test_the_model_works_for_one_at_a_time(serving, monkeypatch):
    here, most = [], []

    def slow(*_):
        here.append(1)
        most.append(len(here))
        time.sleep(0.02)
        here.pop()
        return {}

    monkeypatch.setattr(server, "answer", slow)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: ask(serving, {}), range(8))) == [{}] * 8
    assert most == [1] * 8


@pytest.mark.parametrize("said", [b"", b"POST /look HTTP/1.1\r\n", None])
def test_a_slow_client_waits_alone_and_not_for_ever(serving, monkeypatch, said):
    monkeypatch.setattr(server.Handler, "timeout", 0.5)
    if said is None:  # a body that does not come
        said = (f"POST /look HTTP/1.1\r\nHost: localhost:{serving.server_port}\r\n{JSON}\r\n"
                "Content-Length: 100\r\n\r\n{").encode()  # fmt: skip
    with socket.create_connection(("127.0.0.1", serving.server_port), 30) as slow:
        slow.sendall(said)
        assert ask(serving, question())
        assert slow.recv(100) == b""  # it hung up


def test_a_byte_at_a_time_is_not_waited_for(serving, monkeypatch):
    monkeypatch.setattr(server.Handler, "timeout", 0.5)
    with socket.create_connection(serving.server_address, 0.05) as slow:
        for _ in range(200):
            try:
                slow.send(b"G")
                slow.recv(1)
            except TimeoutError:
                continue
            except OSError:
                pass
            break
        else:
            raise AssertionError("it waits for ever")


def test_many_may_come_at_the_same_moment(models):
    """Before the first of them is let in, and as many as a browser with several tabs opens."""
    data = "GET /style.css HTTP/1.1\r\nHost: localhost:{}\r\n\r\n"
    with server.Server(models) as busy, ExitStack() as all_of_them:
        clients = [all_of_them.enter_context(socket.create_connection(busy.server_address, 2))
                   for _ in range(50)]  # fmt: skip
        for client in clients:
            client.sendall(data.format(busy.server_port).encode())
        threading.Thread(target=busy.serve_forever, args=[0.01]).start()
        assert {client.recv(12) for client in clients} == {b"HTTP/1.1 200"}
        busy.shutdown()


def test_a_client_that_leaves_says_nothing_to_the_reader(serving, capsys):
    body = json.dumps(question()).encode()
    head = f"POST /look HTTP/1.1\r\nHost: localhost:{serving.server_port}\r\n{JSON}\r\n"
    for data in (head.encode(), f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body):
        with socket.create_connection(("127.0.0.1", serving.server_port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.sendall(data)
    assert ask(serving, question()) and capsys.readouterr() == ("", "")
