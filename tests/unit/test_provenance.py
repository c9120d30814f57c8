"""Laws of where a result comes from: the command that makes it again, and the commit. Not here: the report."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from jointseg.config import Config
from jointseg.presets import PRESETS, demo
from jointseg.settings import parse_override, with_overrides
from pipeline.provenance import command, commit


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_makes_the_same_config_again(preset: str) -> None:
    changes = {
        "preset": preset,
        "data.source": "/some where/nyu",
        "crf.theta_beta": 4.5,
        "search.space": "crf_weights",
        "network.weights": "/weights/null",
        "stage3.iterations": 7,
        "data.train_on_validation": preset == "demo",
    }
    config = with_overrides(PRESETS[preset](), changes)
    words = shlex.split(shlex.join(command(config, out="runs/x")))
    options = list(zip(words[2::2], words[3::2], strict=True))
    overrides = dict(parse_override(value) for option, value in options if option == "--set")
    given = dict(options)
    assert words[:2] == ["jointseg", "run"]
    assert given["--out"] == "runs/x"
    again = with_overrides(PRESETS[given["--preset"]](), {**overrides, "data.source": given["--data"]})
    assert again == config


def test_a_preset_by_itself_needs_no_settings() -> None:
    assert command(demo(), out="runs/x") == ["jointseg", "run", "--preset", "demo", "--out", "runs/x"]
    assert "preset=mine" in command(Config(preset="mine"), out="runs/x")


def test_the_commit_is_that_of_the_source_and_says_where_it_was_changed(tmp_path: Path) -> None:
    package = tmp_path / "jointseg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert commit(package) is None

    def git(*words: str) -> str:
        identity = ("-c", "user.name=n", "-c", "user.email=e@e")
        return subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "--quiet")
    assert commit(package) is None  # a repository that does not hold the package says nothing about it
    git("add", "jointseg")
    git("commit", "--quiet", "--message", "one")
    head = git("rev-parse", "HEAD")
    (tmp_path / "notes.txt").write_text("beside the source")
    assert commit(package) == head
    (package / "__init__.py").write_text("changed = True\n")
    assert commit(package) == f"{head}-dirty"
