"""Small parts of messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "epoch"), counted(2000, "epoch")
        ('1 epoch', '2000 epochs')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
