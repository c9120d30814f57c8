"""The documentation's Python blocks run, in order. Not here: README's commands."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["crf.md", "search.md"])
def test_the_code_on_a_page_runs(page):
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 2
    exec(compile("\n".join(blocks), page, "exec"), {})
