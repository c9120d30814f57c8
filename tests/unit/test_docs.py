"""The documentation's Python blocks run, in order. Not here: README's commands."""

import re
from pathlib import Path

import pytest

from tests.own_spaces import space_named

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["crf.md", "search.md"])
def test_the_code_on_a_page_runs(page):
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 2
    exec(compile("\n".join(blocks), page, "exec"), {})


def test_the_spaces_on_the_page_are_spaces(tmp_path):
    text = (DOCS / "search.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "own.py").write_text("\n".join(blocks))
    functions = re.findall(r"^def (\w+)\((?:trial)?\):", "\n".join(blocks), re.MULTILINE)
    assert functions == ["space", "depth_or_none"]
    for function in functions:
        space_named(f"{tmp_path / 'own.py'}:{function}")
