"""What the numbers were measured on: machine, versions, date."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tests.benchmarks.harness import ROOT, cpu_count, load

PACKAGES = ("torch", "ray", "optuna", "mlflow", "numpy", "pyarrow", "modmix")


def describe() -> dict[str, str]:
    """Words for people: what stands in each section's last line."""
    versions = [f"{name} {_version(name)}" for name in PACKAGES]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu(),
        "cores": str(cpu_count()),
        "memory": f"{_memory() / 2**30:.0f} GiB",
        "gpu": gpu() or "none",
        "versions": ", ".join([f"python {platform.python_version()}", *versions]),
        "commit": _commit(),
        "load": f"{load():.1f}",
    }


def gpu() -> str:
    """The name of the first GPU that torch sees, or ""."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _commit() -> str:
    told = subprocess.run(
        ["git", "-C", ROOT, "describe", "--always", "--dirty=+changes", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip() or "no checkout"
