"""Whether a driver's process is there: known for sure, or left to the heartbeat."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modmix.base.errors import LeaseError
from modmix.ledger.ledger import Ledger
from modmix.ledger.processes import is_gone, process_space, process_start


@pytest.fixture
def child() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


def test_processes_that_are_there(child: subprocess.Popen[bytes]) -> None:
    started = process_start(child.pid)
    assert started is not None
    assert not is_gone(child.pid, started)
    assert not is_gone(child.pid, None)
    assert not is_gone(os.getpid(), process_start(os.getpid()))
    assert is_gone(child.pid, started - 1)  # another one with its number
    child.communicate(b"\n")
    assert is_gone(child.pid, started)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_process_that_nobody_waited_for(child: subprocess.Popen[bytes]) -> None:
    started = process_start(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
    assert is_gone(child.pid, started)
    child.communicate()


def test_a_stopped_process_is_there(child: subprocess.Popen[bytes]) -> None:
    os.kill(child.pid, signal.SIGSTOP)
    assert not is_gone(child.pid, process_start(child.pid))
    child.kill()
    child.communicate()


def test_the_process_space_is_that_of_children() -> None:
    program = "from modmix.ledger.processes import process_space; print(process_space())"
    found = subprocess.check_output([sys.executable, "-c", program], text=True).strip()
    assert found == str(process_space())


def contained(*command: str) -> list[str]:
    """A command in a container: with process ids of its own, and this machine's host name."""
    unshare = shutil.which("unshare")
    prefix = [unshare or "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if unshare is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("process ids cannot be separated here (unshare)")
    return [*prefix, *command]


@pytest.mark.slow
def test_containers_do_not_take_each_other_for_dead(tmp_path: Path) -> None:
    """Both have the same host name; neither sees the other's processes."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger = Ledger(url)
    for name in ("inside", "outside"):
        ledger.start_study(name, spec={}, text="", source="", details={})
    ledger.acquire("outside")
    program = (
        "import sys\nfrom modmix.ledger.ledger import Ledger\n"
        "from modmix.base.errors import LeaseError\n"
        "ledger = Ledger(sys.argv[1]); ledger.acquire('inside')\n"
        "try: ledger.acquire('outside'); print('stolen', flush=True)\n"
        "except LeaseError: print('refused', flush=True)\n"
        "input()"
    )
    process = subprocess.Popen(
        contained(sys.executable, "-c", program, url),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "refused\n"
    with pytest.raises(LeaseError, match="study 'inside' is being run by process"):
        ledger.acquire("inside")
    process.kill()
    process.communicate()
    assert ledger.holder("inside") is not None  # its heartbeat decides, and is a moment old
    ledger.close()
