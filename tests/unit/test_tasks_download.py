"""Downloads, against a server on 127.0.0.1 that the test starts and makes misbehave."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from modmix.base.errors import DataError
from modmix.tasks import higgs
from modmix.tasks.base import get_task
from modmix.tasks.download import fetch
from modmix.tasks.files import Source

CONTENT = np.random.default_rng(0).bytes(300_000)


class Server(ThreadingHTTPServer):
    """Serves CONTENT; ``break_after`` bytes of each answer the connection is cut, if set."""

    daemon_threads = True
    content = CONTENT
    break_after: int | None = None
    ranges = True
    lengths = True
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.headers.get("Range", ""))
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        content, first = self.server.content, 0
        if self.server.ranges and "Range" in self.headers:
            first = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            if first >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            total = len(content) if self.server.lengths else "*"
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{total}")
        else:
            self.send_response(200)
        if self.server.lengths:
            self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        self.wfile.write(content[first:][: self.server.break_after])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(
        path=tmp_path / "downloads" / "x.gz",
        mend="",
        bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )


def part_of(source: Source) -> Path:
    return source.path.with_name("x.gz.part")


def test_a_whole_file_arrives_and_is_not_fetched_twice(server: Server, source: Source) -> None:
    told: list[tuple[str, int, int | None]] = []
    assert fetch(server.url, source, lambda *news: told.append(news)) == source.path
    assert source.path.read_bytes() == CONTENT
    assert not part_of(source).exists()
    done = [d for stage, d, _ in told if stage == "download"]
    assert done == sorted(done)
    assert done[-1] == len(CONTENT)
    assert fetch(server.url, source) == source.path
    assert server.asked == [""]


def test_a_broken_connection_is_resumed_in_the_same_call(server: Server, source: Source) -> None:
    server.break_after = 100_000
    fetch(server.url, source, pause_seconds=0)
    assert source.path.read_bytes() == CONTENT
    assert server.asked == ["", "bytes=100000-", "bytes=200000-"]


def test_a_part_of_an_earlier_call_is_resumed(server: Server, source: Source) -> None:
    part_of(source).parent.mkdir()
    part_of(source).write_bytes(CONTENT[:123_456])
    fetch(server.url, source)
    assert source.path.read_bytes() == CONTENT
    assert server.asked == ["bytes=123456-"]


def test_a_whole_part_is_only_verified(server: Server, source: Source) -> None:
    part_of(source).parent.mkdir()
    part_of(source).write_bytes(CONTENT)
    fetch(server.url, source)
    assert source.path.read_bytes() == CONTENT
    assert server.asked == []


def test_a_server_that_knows_no_ranges_starts_over(server: Server, source: Source) -> None:
    server.ranges = False
    part_of(source).parent.mkdir()
    part_of(source).write_bytes(b"something else")
    fetch(server.url, source)
    assert source.path.read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_thrown_away(server: Server, source: Source) -> None:
    part_of(source).parent.mkdir()
    part_of(source).write_bytes(CONTENT + b"x")
    fetch(server.url, source)
    assert source.path.read_bytes() == CONTENT


def test_a_wrong_file_is_replaced(server: Server, source: Source) -> None:
    source.path.parent.mkdir()
    source.path.write_bytes(b"x" * len(CONTENT))
    fetch(server.url, source)
    assert source.path.read_bytes() == CONTENT


def test_other_content_is_refused_and_deleted(server: Server, source: Source) -> None:
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(DataError, match=r"must have sha256 .* got .* it was deleted, run the com"):
        fetch(server.url, source)
    assert not part_of(source).exists()
    assert not source.path.exists()


@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize("content", [CONTENT + b"more", CONTENT[:-5]])
def test_content_of_another_length_is_refused(
    server: Server, source: Source, content: bytes, lengths: bool
) -> None:
    server.content, server.lengths = content, lengths
    with pytest.raises(DataError, match=r"x\.gz: cannot be downloaded \(.*\); run the command aga"):
        fetch(server.url, source, pause_seconds=0)
    assert not source.path.exists()


def test_an_address_that_is_gone(server: Server, source: Source) -> None:
    server.status = 404
    with pytest.raises(DataError, match=r"cannot be downloaded \(the server answered 404 Not Fou"):
        fetch(server.url, source, pause_seconds=0)
    assert len(server.asked) == 3


def test_no_network_says_where_to_put_the_file(source: Source) -> None:
    with pytest.raises(DataError) as caught:
        fetch("http://127.0.0.1:9/file", source, pause_seconds=0)
    message = str(caught.value)
    assert "x.gz: cannot be downloaded (" in message
    assert "Connection refused" in message
    assert message.endswith(
        f"or download http://127.0.0.1:9/file elsewhere and put it at {source.path}"
    )


def test_too_little_room_is_said_before_the_first_byte(
    server: Server, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 10

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(DataError, match=r"300,000 bytes must be free for x\.gz, got 10; free some"):
        fetch(server.url, source)
    assert server.asked == []


def test_calls_at_once_fetch_once(server: Server, source: Source) -> None:
    threads = [threading.Thread(target=fetch, args=(server.url, source)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == [""]
    assert source.path.read_bytes() == CONTENT


def test_higgs_is_fetched_into_the_home(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path))
    monkeypatch.setattr(higgs, "URL", server.url)
    monkeypatch.setattr(higgs, "BYTES", len(CONTENT))
    monkeypatch.setattr(higgs, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    assert get_task("higgs", {}) == [tmp_path / "downloads" / "higgs" / "HIGGS.csv.gz"]
