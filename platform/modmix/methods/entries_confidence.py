"""Table entries of methods that weight modalities by the confidence of their predictions."""

from __future__ import annotations

from modmix.methods.entry import MethodEntry

CONFIDENCE: dict[str, MethodEntry] = {}
