"""Streams and the clients at their other end: silence, slowness, departure, and the end of the server."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest
from scripted import Scripted, site, thoughts

from tutelage.serve.source import Ended, Order, Refused, Said
from tutelage.serve.stream import Patience

BIG = "x" * 100_000


def connect(served, **body):
    """A connection with a chat request on its way."""
    messages = [{"role": "user", "content": "?"}]
    raw = json.dumps({"messages": messages, **body}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {served.host}:{served.port}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    client = socket.create_connection((served.host, served.port), timeout=10)
    client.sendall(head.encode() + raw)
    return client


def until(true, seconds=5.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def endless(order: Order):
    return [Said(0, "on and on ", "thinking", tokens=3), 0.01]


def test_heartbeats_break_the_silence():
    source = Scripted(lambda order: [0.5, *thoughts(order)])
    with site(source, patience=Patience(heartbeat=0.1)) as served:
        raw = served.chat(stream=True).raw
        assert raw.count(b"\n\n: ping\n\n") >= 2 and raw.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("politely", [True, False])
def test_a_client_that_leaves_frees_its_slot(stream, politely):
    source = Scripted(endless, endless=True)
    with site(source) as served:
        client = connect(served, stream=stream)
        until(lambda: source.said > 5)
        if not politely:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        until(lambda: source.running == 0)
        until(lambda: served.metric("cancelled_total") == 1)
        assert served.metric("streams") == 0


def test_a_client_that_stops_reading_is_dropped_and_what_waits_for_it_is_bounded():
    source = Scripted(lambda order: [Said(0, BIG, "thinking", tokens=1), 0.0], endless=True)
    with site(source, patience=Patience(heartbeat=5, stall=0.4)) as served:
        client = connect(served, stream=True)
        until(lambda: source.running == 1)
        until(lambda: source.running == 0)
        assert source.said * len(BIG) < 30 * 2**20
        until(lambda: served.metric("cancelled_total") == 1)
        with pytest.raises(ConnectionError):  # reset, not left half open
            while client.recv(2**20):
                pass
            raise ConnectionResetError
        assert served.ask("GET", "/health").status == 200


def test_an_error_after_the_headers_is_an_event_and_the_end():
    for error, status in (
        (Refused(502, "the upstream is gone"), "upstream"),
        (RuntimeError("inner"), "defect"),
    ):
        source = Scripted(lambda order, error=error: [Said(0, "a", "thinking"), error])
        with site(source) as served:
            *_, last = served.chat(stream=True).events
            assert status in last["error"]["message"] and "inner" not in last["error"]["message"]
            until(lambda source=source: source.running == 0)
            assert served.ask("GET", "/health").status == 200


def test_a_body_that_does_not_come_is_given_up():
    with site(Scripted(), patience=Patience(upload=0.2)) as served:
        client = socket.create_connection((served.host, served.port), timeout=10)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {served.host}\r\nContent-Length: 50\r\n\r\n{{"
        client.sendall(head.encode())
        assert client.recv(100).startswith(b"HTTP/1.1 408")


def test_a_stopped_server_lets_replies_finish():
    source = Scripted(lambda order: [Said(0, "a", "answer", tokens=1), 0.6, Ended(0, "stop", "none", 1, 1)])
    with site(source, grace=5) as served:
        found = []
        client = threading.Thread(target=lambda: found.append(served.chat(stream=True)))
        client.start()
        until(lambda: source.running == 1)
        served.stop()
        client.join()
        assert found[0].events[-1] == "[DONE]"
        assert "1 requests under way" in served.lines[0] and served.lines[-1] == "stopped"
        assert source.closed


def test_a_stopped_server_cancels_what_takes_too_long_with_a_word():
    source = Scripted(endless, endless=True)
    with site(source, grace=1) as served:
        found = []
        client = threading.Thread(target=lambda: found.append(served.chat(stream=True)))
        client.start()
        until(lambda: source.running == 1)
        served.stop()
        client.join()
        assert "shutting down" in found[0].events[-1]["error"]["message"]
        assert source.running == 0 and source.closed


def test_many_streams_are_all_served():
    def script(order: Order):
        steps = [item for n in range(20) for item in (Said(0, f"{n} ", "answer", tokens=1), 0.005)]
        return [*steps, Ended(0, "stop", "none", 1, 20)]

    with site(Scripted(script)) as served:
        clients = [connect(served, stream=True) for _ in range(200)]
        expected = "".join(f"{n} " for n in range(20))
        for client in clients:
            raw = b""
            while b"data: [DONE]" not in raw:
                raw += client.recv(2**16)
            lines = [line[6:] for line in raw.decode().split("\n") if line.startswith("data: {")]
            pieces = [json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines]
            assert "".join(pieces) == expected
            client.close()


def test_a_head_that_does_not_come_is_given_up_and_an_idle_connection_kept(monkeypatch):
    monkeypatch.setattr("tutelage.serve.run.HEADER_SECONDS", 0.3)
    with site(Scripted()) as served:
        slow = socket.create_connection((served.host, served.port), timeout=10)
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: ")
        kept = socket.create_connection((served.host, served.port), timeout=10)
        ask = f"GET /health HTTP/1.1\r\nHost: {served.host}\r\n\r\n".encode()
        kept.sendall(ask)
        assert kept.recv(9) == b"HTTP/1.1 "
        assert slow.recv(1) == b""
        time.sleep(0.2)
        kept.recv(4096)  # the rest of the first answer
        kept.sendall(ask)
        assert kept.recv(12) == b"HTTP/1.1 200"
