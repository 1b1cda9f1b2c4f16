"""Real S3 servers for tests: rclone, which can be killed, restarted and slowed down, and a proxy that spoils answers.

The proxy is a plain HTTP server on a real socket. It passes every request on as it came (its signature, which covers
the host name that the client knows, stays right) and counts it, unless a fault is due.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import shutil
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipelines.storage import s3
from tests.support.waiting import wait_until

KEY, SECRET = "test-key", "test-secret-that-must-not-leak"
BUCKET = "corpus"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@functools.cache
def rclone() -> str | None:
    """The program, if it is installed and can serve S3, from 1.65 on: an older one answers with the help of `serve`."""
    program = shutil.which("rclone")
    found = program and subprocess.run([program, "serve", "s3", "--help"], capture_output=True, text=True, check=False)
    return program if found and found.returncode == 0 and "serve s3" in found.stdout else None


def use(patch: pytest.MonkeyPatch, url: str) -> None:
    """Let this process, and those it starts, talk to the S3 server at a URL, with the credentials of the tests."""
    for variable, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        patch.setenv(variable, value)
    s3.forget_client()  # one of another server may be kept: it read its endpoint when it was made


class Rclone:
    """`rclone serve s3` over a folder whose subfolders are buckets; each start has the same port and the same data."""

    def __init__(self, folder: Path) -> None:
        (folder / BUCKET).mkdir(parents=True)
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        words = [str(rclone()), "serve", "s3", "--addr", f"127.0.0.1:{self.port}", "--auth-key", f"{KEY},{SECRET}"]
        words += ["--vfs-cache-mode", "off", "--config", "/dev/null", *options]
        self.process = subprocess.Popen(
            [*words, str(self.folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

        def answers() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return True
            return False

        assert wait_until(answers, every=0.05), "rclone does not start"

    def kill(self) -> None:
        """kill -9, in the middle of whatever it does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    @contextlib.contextmanager
    def away(self, seconds: float) -> Iterator[None]:
        """Dead now, and back after so many seconds, by itself."""
        self.kill()
        back = threading.Timer(seconds, self.start)
        back.start()
        try:
            yield
        finally:
            back.join()


Fault = Callable[["Request"], bool]
"""Given a request, answers it wrongly and says True, or leaves it to the server."""


class Request(BaseHTTPRequestHandler):
    """One request on its way through the proxy."""

    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            super().handle_one_request()

    def pass_on(self) -> tuple[int, list[tuple[str, str]], bytes]:
        """What the server answers: status, headers, body."""
        connection = http.client.HTTPConnection(self.server.behind, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(self.body or None)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def send(self, status: int, headers: list[tuple[str, str]], body: bytes, cut: int | None = None) -> None:
        """Answer; cut: only so many bytes of the body, and then hang up, whatever Content-Length said."""
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "keep-alive"):
                self.send_header(name, value)
        if self.command != "HEAD" and not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.hang_up()

    def refuse(
        self,
        status: int,
        code: str,
        message: str = "as the test wants it",
        headers: list[tuple[str, str]] | None = None,
    ) -> bool:
        """Answer with an error of S3."""
        text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()
        self.send(status, [("Content-Length", str(len(text))), *(headers or [])], text)
        return True

    def hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _any(self) -> None:
        if self.headers.get("Expect") == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        self.body: bytes = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.command if self.command != "GET" or "list-type" not in self.path else "LIST"
        with self.server.lock:
            self.server.counts[kind] += 1
            fault = self.server.fault
        if fault is not None and fault(self):
            return
        try:
            answer = self.pass_on()
        except OSError:
            self.hang_up()  # the server behind is down
            return
        self.send(*answer)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _any

    def log_message(self, *_: object) -> None:
        return


class Proxy(ThreadingHTTPServer):
    """In front of an S3 server; `fault` may answer in its place, `counts` says how many requests there were."""

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.behind = behind.removeprefix("http://")
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.fault: Fault | None = None
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


def first(times: int, fault: Fault, kind: str = "", name: str = "") -> Fault:
    """A fault of the first so many requests of a kind (GET, PUT, ...; '' = any) for an object whose name ends so."""
    left, lock = [times], threading.Lock()

    def due(request: Request) -> bool:
        fits = (not kind or request.command == kind) and request.path.split("?")[0].endswith(name)
        with lock:
            if not fits or left[0] <= 0:
                return False
            left[0] -= 1
        return fault(request)

    return due


def every(nth: int, fault: Fault) -> Fault:
    """A fault of each nth request."""
    count, lock = [0], threading.Lock()

    def due(request: Request) -> bool:
        with lock:
            count[0] += 1
            hit = count[0] % nth == 0
        return hit and fault(request)

    return due
