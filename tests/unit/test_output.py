"""What the command line writes to consoles that lack characters, and to readers that are gone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from modmix.cli.output import Outputs

WRITE = """
import sys
from modmix.cli.output import Outputs
outputs = Outputs()
{body}
trouble = outputs.finish()
sys.stderr.write(f"[{{trouble}}]")
sys.stderr.flush()
"""


def run(body: str, shell: str = '"$0" -c "$1"', **environment: str) -> tuple[int, bytes, bytes]:
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable, WRITE.format(body=body)],
        capture_output=True,
        check=False,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "−1 ± β × 漢".encode()),
        ("latin-1", b"-1 \xb1 beta \xd7 ?"),
        ("ascii:strict", b"-1 +/- beta x ?"),
        ("cp1252", b"-1 \xb1 beta \xd7 ?"),
    ],
)
def test_characters_that_a_console_lacks(encoding: str, shown: bytes) -> None:
    code, out, _ = run('print("−1 ± β × 漢", end="")', PYTHONIOENCODING=encoding)
    assert (code, out) == (0, shown)


def test_names_of_files_that_are_no_text() -> None:
    code, out, _ = run('print("a\\udcff", end="")', PYTHONIOENCODING="utf-8")
    assert (code, out) == (0, b"a?")


def test_a_reader_that_is_gone_is_no_trouble() -> None:
    body = "for i in range(100000): print(i, flush=True)"
    code, out, err = run(body, '"$0" -c "$1" | head -1')
    assert (code, out, err) == (0, b"0\n", b"[]")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")  # noqa: PTH110
def test_a_full_disk_is_told_once_and_in_the_end() -> None:
    body = "for i in range(3): print(i, flush=True)"
    code, _, err = run(body, '"$0" -c "$1" > /dev/full')
    assert (code, err) == (0, b"[No space left on device]")


def test_a_closed_output_is_not_given_to_a_file() -> None:
    body = "file = open(__import__('os').devnull); sys.stderr.write(str(file.fileno()))"
    code, out, err = run(body, '"$0" -c "$1" >&- <&-')
    number, _, trouble = err.decode().partition("[")
    assert (code, out, trouble) == (0, b"", "]")
    assert int(number) > 2


def test_streams_of_a_program_that_captures_them_stay(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    if not isinstance(before, type(sys.__stdout__)):
        Outputs()
        assert sys.stdout is before
