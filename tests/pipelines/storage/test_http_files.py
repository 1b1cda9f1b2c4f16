"""pipelines.storage.http_files: what servers of the web do, and what becomes of it. A real server, and real faults."""

from __future__ import annotations

import http.server
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from pipelines.corpus.inputs import list_input
from pipelines.storage import http_files, store
from pipelines.storage.retry import StoreError
from tests.support import s3_servers

DATA = bytes(range(256)) * 40


class _Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked: ClassVar[Counter[str]] = Counter()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        """/403/x is refused with 403; /chunked/x has no length; /late/x is there from the third request on."""
        kind = self.path.split("/")[1]
        self.asked[kind] += 1
        if kind.isdigit() or (kind == "late" and self.asked[kind] < 5):
            self.send_response(int(kind) if kind.isdigit() else 503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        begin, end, wanted = 0, len(DATA), self.headers.get("Range", "")
        if kind == "ranges" and wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            begin, end = int(first), min(int(last) + 1, len(DATA)) if last else len(DATA)
        self.send_response(206 if (begin, end) != (0, len(DATA)) else 200)
        if kind == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(end - begin))
            self.send_header("ETag", '"1"')
        self.end_headers()
        if self.command == "HEAD":
            return
        body = DATA[begin:end]
        self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if kind == "chunked" else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def website() -> Iterator[str]:
    _Server.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("kind", ["plain", "ranges", "chunked", "late"])
def test_every_part_is_read_whatever_the_server_can(website: str, tmp_path: Path, kind: str) -> None:
    url = f"{website}/{kind}/v.mp4"
    [entry] = store.list_objects(url)
    assert (entry.url, entry.bytes, entry.version) == (url, len(DATA), "" if kind == "chunked" else "1")
    assert store.exists(url) and store.size(url) == len(DATA)
    assert store.read(url) == DATA and store.read(url, 1000, 300) == DATA[1000:1300]
    copy = tmp_path / "copy"
    for offset, length in ((0, None), (0, len(DATA)), (700, 900)):
        assert store.fetch(url, str(copy), offset, length) == len(DATA[offset:][:length])
        assert copy.read_bytes() == DATA[offset:][:length]


@pytest.mark.parametrize("status", [404, 410])
def test_what_the_server_says_is_not_there_is_missing(website: str, status: int) -> None:
    url = f"{website}/{status}/v.mp4"
    assert store.entry(url) is None and not store.exists(url) and not list(store.list_objects(url))


def test_a_refusal_is_told_at_once_and_an_outage_after_a_while(website: str, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"/403/v.mp4: the server refuses it \(HTTP 403 Forbidden\)"):
        store.entry(f"{website}/403/v.mp4")
    assert time.monotonic() - began < 5 and _Server.asked["403"] == 2
    monkeypatch.setattr(http_files, "_LOOKUP_SECONDS", 1.0)
    with pytest.raises(StoreError, match=r"/503/v.mp4: no answer \(HTTP 503 Service Unavailable\)"):
        store.entry(f"{website}/503/v.mp4")
    assert _Server.asked["503"] > 2, "it was asked again"
    with pytest.raises(StoreError, match=r"/v.mp4: no answer \(Cannot connect to host 127.0.0.1"):
        store.entry(f"http://127.0.0.1:{s3_servers.free_port()}/v.mp4")


def test_in_a_list_each_is_a_failed_video_of_its_own_unless_all_are(
    website: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_files, "_LOOKUP_SECONDS", 1.0)
    names = [f"{website}/{kind}/v.mp4" for kind in ("plain", "403", "404", "503")]
    (tmp_path / "list.txt").write_text("\n".join(names))
    found = list(list_input(str(tmp_path / "list.txt")).found)
    assert {entry.url: entry.bytes for entry, why in found if not why} == {names[0]: len(DATA), names[2]: 0}
    assert [(entry.url, why.removeprefix(f"{entry.url}: ")) for entry, why in found if why] == [
        (names[1], "the server refuses it (HTTP 403 Forbidden)"),
        (names[3], "no answer (HTTP 503 Service Unavailable)"),
    ]
    (tmp_path / "list.txt").write_text("\n".join([names[1], names[3]]))
    with pytest.raises(StoreError, match="HTTP 403"):
        list(list_input(str(tmp_path / "list.txt")).found)
