"""`modmix tasks` and `modmix methods`: all entries, or one."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from modmix.base.errors import InputError
from modmix.cli.main import app
from modmix.methods.table import METHODS
from modmix.tasks.table import TASKS

RUNNER = CliRunner()


def printed(*arguments: str) -> str:
    result = RUNNER.invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def headings(text: str) -> list[str]:
    return [line.partition(":")[0] for line in text.splitlines() if not line.startswith(" ")]


def test_all_or_one() -> None:
    assert headings(printed("methods")) == list(METHODS)
    assert headings(printed("tasks")) == list(TASKS)
    assert headings(printed("methods", "dimml")) == ["dimml"]
    assert headings(printed("tasks", "cremad")) == ["cremad"]
    assert '"mul"' not in printed("methods", "dimml", "--json")
    with pytest.raises(InputError, match="unknown method 'diml': did you mean 'dimml'"):
        printed("methods", "diml")


def test_required_options_have_no_default() -> None:
    text = printed("tasks", "cremad")
    assert "    path (required): " in text
