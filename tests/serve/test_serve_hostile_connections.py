"""Connections that behave as no good client's do: others are served meanwhile, and no row is left behind."""

from __future__ import annotations

import json
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from served import CHAT, Server, body, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("server"), pytest.mark.usefixtures("survives")]

# A thought that takes seconds: long enough to leave in its middle.
LONG = {"thinking_token_budget": 6000, "min_thinking_tokens": 6000, "max_tokens": 8000}


def reset(connection: socket.socket) -> None:
    """Close at once, with a reset and not a farewell."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def answer(connection: socket.socket) -> bytes:
    """Everything until the other side closes, or what came before a reset."""
    got = b""
    try:
        while piece := connection.recv(65536):
            got += piece
    except ConnectionError:
        pass
    return got


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
        b"\x00" * 2000 + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 2**20 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
        b"GET /" + b"x" * 2**20 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=lambda sent: repr(sent[:40]),
)
def test_bytes_that_are_no_http(server: Server, sent: bytes) -> None:
    with server.connect() as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            return  # it hung up in the middle
        status = answer(connection).split(b"\r\n")[0]
    assert not status or b" 4" in status, status


def test_paths_and_methods_that_do_not_exist(server: Server) -> None:
    assert server.request("GET", "/v1/../../etc/passwd").status == 404
    assert server.request("GET", "/%00").status == 404
    assert server.request("DELETE", CHAT).status == 405
    assert server.request("GET", "/v1/nothing").error


def test_another_hosts_name_is_refused(server: Server) -> None:
    """A page on the web that resolves its own name to the loopback (DNS rebinding) gets nothing."""
    for host in ("evil.example", f"evil.example:{server.port}", "localhost.evil.example"):
        reply = server.request("GET", "/v1/models", headers={"Host": host})
        assert reply.status in (400, 403, 421), host
    assert server.request("GET", "/v1/models", headers={"Host": f"localhost:{server.port}"}).status == 200


def test_half_a_request_and_gone(server: Server) -> None:
    whole = server.raw(CHAT, body(server, **LONG))
    for cut in (1, 20, len(whole) // 2, len(whole) - 1):
        connection = server.connect()
        connection.sendall(whole[:cut])
        reset(connection)
        connection = server.connect()
        connection.sendall(whole[:cut])
        connection.close()


def test_headers_that_come_slowly_hold_up_nobody(server: Server) -> None:
    whole = server.raw(CHAT, body(server))
    slow = [server.connect() for _ in range(200)]
    try:
        for connection in slow:
            connection.sendall(whole[:30])
        for at in range(30, 34):
            began = time.monotonic()
            assert server.ask(thinking_token_budget=4).status == 200
            assert time.monotonic() - began < 20
            for connection in slow:
                connection.sendall(whole[at : at + 1])
    finally:
        for connection in slow:
            reset(connection)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("politely", [False, True])
def test_who_leaves_in_mid_thought_frees_the_rows(server: Server, stream: bool, politely: bool) -> None:
    """Most of what was asked is never decoded."""
    before = server.metrics()["decoded_tokens_total"]
    connection = server.connect()
    connection.sendall(server.raw(CHAT, body(server, **LONG, n=4, temperature=1.0, stream=stream)))
    wait_until(lambda: server.rows() == 4, 20, "the request runs")
    if politely:
        connection.close()
    else:
        reset(connection)
    wait_until(lambda: server.rows() == 0, 20, "the rows are free")
    assert server.metrics()["decoded_tokens_total"] - before < 4 * 6000 / 2


def test_who_stops_reading_holds_up_nobody(server: Server) -> None:
    """A stream of megabytes into a window of kilobytes; others are served at once meanwhile."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect((server.host, server.port))
    connection.sendall(server.raw(CHAT, body(server, **LONG, n=8, temperature=1.0, stream=True)))
    wait_until(lambda: server.rows() > 0, 20, "the request runs")
    for _ in range(5):
        began = time.monotonic()
        assert server.ask(thinking_token_budget=8).status == 200
        assert time.monotonic() - began < 20
    reset(connection)


def test_a_thousand_requests_at_once_are_all_answered(server: Server) -> None:
    """Served, or told to come again: none hangs, none is dropped, none gets an error of ours."""
    waiting = []
    for number in range(1000):
        asked = [{"role": "user", "content": f"{number}+2?"}]
        fields = body(server, messages=asked, thinking_token_budget=4, max_tokens=12)
        sent = server.raw(CHAT, fields).replace(b"\r\nContent-Type", b"\r\nConnection: close\r\nContent-Type")
        waiting.append(server.connect(120))
        waiting[-1].sendall(sent)
    with ThreadPoolExecutor(50) as pool:
        replies = list(pool.map(answer, waiting))
    for connection in waiting:
        connection.close()
    statuses = [reply.split(b" ", 2)[1] for reply in replies]
    assert set(statuses) <= {b"200", b"429", b"503"} and statuses.count(b"200") >= 32
    for reply in replies:
        head, _, payload = reply.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            assert b"retry-after: " in head.lower() and json.loads(payload)["error"]["message"]
