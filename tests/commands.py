"""The commands that there are, by their words. Not here: how one is run (tests/unit/conftest.py)."""

from __future__ import annotations

import typer.main

from pipeline.cli import app


def commands(group, *words):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *words, name)
        else:
            yield (*words, name), command


COMMANDS = dict(commands(typer.main.get_command(app)))
CONFIGURABLE = [words for words, command in COMMANDS.items() if any("--set" in option.opts for option in command.params)]
