"""The process that serves: sockets, slow and broken clients, signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")


from featcache.errors import UsageError
from featcache.serving import server as serving

pytestmark = pytest.mark.bad_input

SERVER = """
import json
import sys
from pathlib import Path
from featcache.serving import server as serve
from featcache.serving.app import Limits, Service
from tests.support.stock import one_thread
from tests.support.tiny_predictor import tiny_predictor
serve.HEADER_SECONDS = 0.5
with one_thread():
    listening = serve.bind("127.0.0.1", 0)
    service = Service(tiny_predictor(Path(sys.argv[1])), Limits(seconds=2))
    print(listening.getsockname()[1], flush=True)
    serve.serve(service, listening)
counts = {
    one.labels["status"]: one.value for one in service.requests.collect()[0].samples if "total" in one.name
}
print(json.dumps(counts), flush=True)
"""

SMALL_SERVER = """
import socket
import sys
from featcache.serving import server as serve

async def answer(scope, receive, send):
    if scope["type"] == "lifespan":
        for done in ("lifespan.startup.complete", "lifespan.shutdown.complete"):
            await receive()
            await send({"type": done})
        return
    length = [(b"content-length", b"3000")]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": bytes(3000)})

class Service:
    app = staticmethod(answer)

serve.ANSWER_SECONDS = float(sys.argv[1])
listening = serve.bind("127.0.0.1", 0)
listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # a client that reads nothing is soon noticed
print(listening.getsockname()[1], flush=True)
serve.serve(Service(), listening)
"""


@contextlib.contextmanager
def server(model: Path) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    with started(SERVER, str(model)) as found:
        yield found


@contextlib.contextmanager
def started(code: str, *argv: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """The port of a server in a process of its own, and the process; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        yield int(process.stdout.readline()), process
    finally:
        process.kill()
        process.wait()


def raw(port: int, content: bytes, seconds: float = 10) -> bytes:
    """What comes back for these bytes, until the server closes, resets (bytes left unread) or is silent."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), seconds) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(content)
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while part := connection.recv(65536):
                found += part
    return found


def request(body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = ["POST /predict HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *headers]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def hammer(port: int, stop: asyncio.Event, sent: list[int]) -> list[str]:
    """Requests one after the other on kept connections; the answers that were no 200, or cut short."""
    lost: list[str] = []
    body = request(json.dumps({"text": "好 房间 干净"}).encode())
    while not stop.is_set():
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            break  # the door is closed: nothing was accepted
        try:
            while not stop.is_set():
                writer.write(body)
                await writer.drain()
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                if not head.startswith(b"HTTP/1.1 200"):
                    lost.append(head.decode())
                sent[0] += 1
                if b"connection: close" in head.lower():
                    break
        except asyncio.IncompleteReadError as error:
            lost += [repr(error)] * bool(error.partial)
        except OSError:
            pass  # closed between two requests
        finally:
            writer.close()
    return lost


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_serve_answers_slow_broken_and_stopped_clients(tiny: Callable[[str], Path]) -> None:
    """Hostile clients first, then many friendly ones, and SIGTERM in their midst: nothing is lost."""
    with server(tiny("bert")) as (port, process):
        fine = request('{"text": "好"}'.encode(), "Connection: close")
        assert raw(port, fine).startswith(b"HTTP/1.1 200")
        for hostile in (
            b"\x00" * 100,
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
            request(b"{}", "Content-Length: 3", "Connection: close"),
        ):
            assert raw(port, hostile).startswith(b"HTTP/1.1 4"), hostile[:40]
        began = time.monotonic()
        assert raw(port, b"POST /pre") == b""  # a head that never ends
        assert raw(port, request(b"{", length=100)).startswith(b"HTTP/1.1 408")  # a body that never comes
        assert time.monotonic() - began < 9
        assert raw(port, fine).startswith(b"HTTP/1.1 200")
        sent = [0]
        assert asyncio.run(under_load(port, process.pid, sent)) == []
        assert process.wait(30) == 0 and process.stdout
        counts = json.loads(process.stdout.read())
        assert counts == {"200": sent[0] + 2, "408": 1} and sent[0] > 100  # all it took, their clients have


async def under_load(port: int, pid: int, sent: list[int]) -> list[str]:
    stop = asyncio.Event()
    clients = [asyncio.create_task(hammer(port, stop, sent)) for _ in range(16)]
    while sent[0] < 100:
        await asyncio.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    done, late = await asyncio.wait(clients, timeout=20)
    stop.set()
    assert not late
    return [line for client in done for line in client.result()]


@contextlib.contextmanager
def deaf_client(port: int) -> Iterator[socket.socket]:
    """A client that asks for more than all buffers hold, and reads nothing."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.settimeout(1)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(100):
                connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        time.sleep(0.5)  # the server fills the buffers
        yield connection


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_client_that_reads_nothing_does_not_hold_the_server() -> None:
    with started(SMALL_SERVER, "1") as (port, process), deaf_client(port):
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0  # without a deadline it waits for the client


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_server_at_once(second: signal.Signals) -> None:
    with started(SMALL_SERVER, "600") as (port, process), deaf_client(port):
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)  # an answer is not taken yet
        process.send_signal(second)
        assert process.wait(2) == 128 + second


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_bind_refuses_a_port_that_is_taken() -> None:
    with serving.bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(UsageError, match=rf"127\.0\.0\.1 port {port}[\s\S]*--port 0"):
            serving.bind("127.0.0.1", port)
    with pytest.raises(UsageError, match="70000"):
        serving.bind("127.0.0.1", 70000)


@pytest.mark.enable_socket
def test_bind_disables_the_delay_of_answers() -> None:
    """asyncio switches Nagle's algorithm off on sockets that name their protocol, and on no others."""
    import asyncio

    from featcache.serving.server import bind

    async def ask() -> int:
        seen: list[int] = []

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            taken = writer.get_extra_info("socket")
            seen.append(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        server = await asyncio.start_server(answer, sock=listening)
        reader, writer = await asyncio.open_connection("127.0.0.1", listening.getsockname()[1])
        await reader.read()
        writer.close()
        server.close()
        return seen[0]

    with bind("127.0.0.1", 0) as listening:
        assert asyncio.run(ask()) != 0
