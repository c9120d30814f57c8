"""Laws of what options mean, whichever command takes them: paths.

Not here: what each command comes to (test_cli.py), what is refused (test_cli_refusals.py).
"""

from __future__ import annotations

import inspect
import typing
from pathlib import Path

import pytest

from pipeline.commands.options import config_of, named_path
from pipeline.workspace import Workspace
from tests.commands import COMMANDS


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_path_of_a_command_is_read_alike(words: tuple[str, ...]) -> None:
    taken = typing.get_type_hints(inspect.unwrap(COMMANDS[words].callback), include_extras=True)
    paths = [taking.__metadata__[0] for taking in taken.values() if "Path" in str(typing.get_args(taking)[:1])]
    assert all(taking.parser is named_path for taking in paths)


def test_a_home_is_one_after_an_equals_sign_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named_path("~/runs/x") == tmp_path / "runs" / "x"


def test_a_home_that_nobody_has_is_a_name_as_it_is_to_the_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert named_path("~nobody-has-it/x") == Path("~nobody-has-it/x")
    settings = ["network.weights=~nobody-has-it/w", "search.space=~nobody-has-it/s.py:draw"]
    config = config_of(Workspace(tmp_path / "run"), "demo", None, settings)
    assert config.network.weights == tmp_path / "~nobody-has-it" / "w"
    assert config.search.space == f"{tmp_path}/~nobody-has-it/s.py:draw"
