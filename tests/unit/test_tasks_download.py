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
    """Serves CONTENT; the first ``breaks`` answers are cut after 100,000 bytes."""

    daemon_threads = True
    content = CONTENT
    breaks = 0
    lengths = True
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked += 1
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        self.send_response(200)
        if self.server.lengths:
            self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        is_cut = self.server.asked <= self.server.breaks
        self.wfile.write(self.server.content[: 100_000 if is_cut else None])

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


@pytest.mark.parametrize("lengths", [True, False])
def test_a_whole_file_arrives_and_is_not_fetched_twice(
    server: Server, source: Source, lengths: bool
) -> None:
    server.lengths = lengths
    told: list[tuple[str, int, int | None]] = []
    assert fetch(server.url, source, lambda *news: told.append(news)) == source.path
    assert source.path.read_bytes() == CONTENT
    assert not [p for p in source.path.parent.iterdir() if p not in (source.path, lock(source))]
    if lengths:
        assert told[-1] == ("download", len(CONTENT), len(CONTENT))
    assert {stage for stage, _, _ in told} == {"download"}
    assert fetch(server.url, source) == source.path
    assert server.asked == 1


def lock(source: Source) -> Path:
    return source.path.with_name(".x.gz.lock")


def test_a_broken_connection_starts_again_in_the_same_call(server: Server, source: Source) -> None:
    server.breaks = 2
    fetch(server.url, source)
    assert source.path.read_bytes() == CONTENT
    assert server.asked == 3


def test_a_connection_that_always_breaks_is_an_error_and_leaves_nothing(
    server: Server, source: Source
) -> None:
    server.breaks = 9
    with pytest.raises(DataError, match=r"x\.gz: cannot be downloaded \(.*\); run the command aga"):
        fetch(server.url, source)
    assert server.asked == 3
    assert list(source.path.parent.iterdir()) in ([], [lock(source)])


def test_what_a_killed_process_has_left_is_removed(server: Server, source: Source) -> None:
    source.path.parent.mkdir()
    (source.path.parent / "tmpab12cd").write_bytes(b"half")
    fetch(server.url, source)
    assert {p.name for p in source.path.parent.iterdir()} - {lock(source).name} == {"x.gz"}


def test_a_wrong_file_is_replaced(server: Server, source: Source) -> None:
    source.path.parent.mkdir()
    source.path.write_bytes(b"x" * len(CONTENT))
    fetch(server.url, source)
    assert source.path.read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"!", CONTENT + b"more", CONTENT[:-5]])
def test_other_content_is_refused_and_deleted(
    server: Server, source: Source, content: bytes
) -> None:
    server.content = content
    with pytest.raises(
        DataError, match=r"must have sha256 .* got other content, which was deleted"
    ):
        fetch(server.url, source)
    assert not source.path.exists()


def test_an_address_that_is_gone(server: Server, source: Source) -> None:
    server.status = 404
    with pytest.raises(DataError, match=r"cannot be downloaded \(404 Client Error: Not Found"):
        fetch(server.url, source)
    assert server.asked == 3


def test_no_network_says_where_to_put_the_file(source: Source) -> None:
    with pytest.raises(DataError) as caught:
        fetch("http://127.0.0.1:9/file", source)
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
    assert server.asked == 0


def test_calls_at_once_fetch_once(server: Server, source: Source) -> None:
    threads = [threading.Thread(target=fetch, args=(server.url, source)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == 1
    assert source.path.read_bytes() == CONTENT


def test_higgs_is_fetched_into_the_home(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path))
    monkeypatch.setattr(higgs, "URL", server.url)
    monkeypatch.setattr(higgs, "BYTES", len(CONTENT))
    monkeypatch.setattr(higgs, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    assert get_task("higgs", {}) == [tmp_path / "downloads" / "higgs" / "HIGGS.csv.gz"]
