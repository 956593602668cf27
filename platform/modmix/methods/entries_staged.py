"""Table entries of methods that train in stages or in turns."""

from __future__ import annotations

from modmix.methods.entry import MethodEntry

STAGED: dict[str, MethodEntry] = {}
