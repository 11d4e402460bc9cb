"""wire: a complete reply or one kind of error, from a real socket that misbehaves in every way we know."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from tutelage.errors import UsageError
from tutelage.wire import Reply, WireError, check_url, open_post, post_json, streaming

SECRET = "sk-very-secret-key"
HEADERS = {"Authorization": f"Bearer {SECRET}"}
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answer(data: bytes, abort: bool = False) -> Handler:
    """A server that reads the request, writes `data` and hangs up (`abort`: with a reset)."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
        )
        await reader.readexactly(length)
        writer.write(data)
        if abort:
            writer.transport.abort()
        else:
            await writer.drain()
            writer.close()

    return handle


def post(handler: Handler, timeout: float = 5.0, max_bytes: int = 10_000, idle: float | None = None) -> Reply:
    """One POST to a server made of `handler`."""

    async def run() -> Reply:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/x"
            async with aiohttp.ClientSession() as session:
                return await post_json(session, url, b"{}", HEADERS, timeout, max_bytes=max_bytes, idle=idle)

    return asyncio.run(run())


def test_a_complete_reply_comes_back_whole() -> None:
    body = b'{"a": 1}'
    reply = post(answer(b"HTTP/1.1 429 Too\r\nRetry-After: 3\r\nContent-Length: 8\r\n\r\n" + body))
    assert (reply.status, reply.raw, reply.headers["retry-after"]) == (429, body, "3")


@pytest.mark.parametrize(
    ("data", "abort"),
    [
        (b"", False),
        (b"", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", False),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope", False),
        (b"SSH-2.0-OpenSSH_9\r\n", False),
    ],
)
def test_whatever_breaks_off_is_one_kind_of_error(data: bytes, abort: bool) -> None:
    with pytest.raises(WireError) as caught:
        post(answer(data, abort))
    assert caught.value.kind == "torn"
    assert SECRET not in repr(caught.value) + str(caught.value)


def test_a_reply_is_bounded_after_decompression() -> None:
    bomb = gzip.compress(b"0" * 1_000_000)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    with pytest.raises(WireError, match="longer than 10000 bytes") as caught:
        post(answer(head + bomb))
    assert caught.value.kind == "oversized"


def test_silence_is_a_timeout() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    with pytest.raises(WireError, match=r"within 0\.2 s") as caught:
        post(silent, timeout=0.2)
    assert caught.value.kind == "timeout"


def test_nobody_there_is_said_so() -> None:
    async def run() -> None:
        server = await asyncio.start_server(answer(b""), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        url = f"http://127.0.0.1:{port}/v1"
        async with open_post(url, 1) as post_:
            await post_(url, b"{}", HEADERS, 5.0)

    with pytest.raises(WireError, match=r"cannot connect to http://127\.0\.0\.1") as caught:
        asyncio.run(run())
    assert caught.value.kind == "connect"


def test_redirects_are_not_followed() -> None:
    reply = post(answer(b"HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"))
    assert reply.status == 307


def test_a_proxy_of_the_environment_is_not_used_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    async def run() -> Reply:
        server = await asyncio.start_server(
            answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"), "127.0.0.1", 0
        )
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            async with open_post(url, 1) as post_:
                return await post_(url, b"{}", {}, 5.0)

    assert asyncio.run(run()).status == 200


@pytest.mark.parametrize("url", ["", "host/v1", "ftp://host", "http://", "http://[::1", "http://h:99999/v1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="base_url"):
        check_url(url)


@pytest.mark.parametrize("url", [f"https://me:{SECRET}@host/v1", f"https://host/v1?key={SECRET}"])
def test_a_secret_in_the_address_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_url(url)
    assert SECRET not in str(caught.value)


def test_trailing_slashes_do_not_matter() -> None:
    assert check_url("https://host/v1/") == check_url(" https://host/v1") == "https://host/v1"


def test_silence_in_the_middle_of_a_stream_is_a_timeout_of_its_own() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for _ in range(6):
            writer.write(b"data: 1\n\n")
            await writer.drain()
            await asyncio.sleep(0.1)
        await asyncio.sleep(silence)
        writer.close()

    silence = 0.0
    assert post(drip, timeout=30, idle=5.0).raw == b"data: 1\n\n" * 6
    silence = 5.0
    with pytest.raises(WireError, match=r"nothing came for 0\.4 s") as caught:
        post(drip, timeout=30, idle=0.4)
    assert caught.value.kind == "timeout"
    with pytest.raises(WireError, match=r"no whole reply within 0\.3 s"):
        post(drip, timeout=0.3, idle=30)


def test_pieces_come_as_they_are_sent_and_leaving_hangs_up() -> None:
    hung_up = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\nX-Y: z\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"3\r\none\r\n")
        if await reader.read() == b"":
            hung_up.set()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        async with server, aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/x"
            async with streaming(session, url, b"{}", HEADERS, None, idle=5.0) as incoming:
                assert (incoming.status, incoming.headers["x-y"]) == (200, "z")
                pieces = incoming.pieces()
                assert await anext(pieces) == b"one"  # the body is not over, nor will it ever be
                await pieces.aclose()
            await asyncio.wait_for(hung_up.wait(), 5)

    asyncio.run(run())


def test_a_body_that_breaks_off_between_its_pieces_is_torn() -> None:
    async def tear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(tear, "127.0.0.1", 0)
        async with server, aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/x"
            with pytest.raises(WireError) as caught:
                async with streaming(session, url, b"{}", HEADERS, 5.0) as incoming:
                    assert [piece async for piece in incoming.pieces()] == [b"one"]
            assert caught.value.kind == "torn"
            assert SECRET not in str(caught.value)

    asyncio.run(run())
