"""The Python blocks of the documentation and of README run, in order. Not here: README's commands."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoints import untrained_final
from tests.own_spaces import space_named

DOCS = Path(__file__).parents[2] / "docs"


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", ["crf.md", "search.md"])
def test_the_code_on_a_page_runs(page):
    blocks = python_blocks(DOCS / page)
    assert len(blocks) >= 2
    exec(compile("\n".join(blocks), page, "exec"), {})


def test_the_spaces_on_the_page_are_spaces(tmp_path):
    blocks = python_blocks(DOCS / "search.md")
    (tmp_path / "own.py").write_text("\n".join(blocks))
    functions = re.findall(r"^def (\w+)\((?:trial)?\):", "\n".join(blocks), re.MULTILINE)
    assert functions == ["space", "depth_or_none"]
    for function in functions:
        space_named(f"{tmp_path / 'own.py'}:{function}")


def test_the_code_in_the_readme_runs_on_what_its_comments_say(small, rooms, tmp_path, monkeypatch):
    crf, predictor = python_blocks(DOCS.parent / "README.md")
    frame = rooms.frame(1)
    image = torch.from_numpy(frame.image.copy()).permute(2, 0, 1)[None, :, ::8, ::8]
    depth = torch.from_numpy(frame.filled_depth.copy())[None, ::8, ::8]
    given = {"logits": torch.randn(1, 40, *depth.shape[1:]), "image": image, "depth": depth}
    said = dict(given)
    exec(compile(crf, "README.md", "exec"), said)
    assert said["logits"].shape == given["logits"].shape and not torch.equal(said["logits"], given["logits"])
    untrained_final("stage3", small, tmp_path / "runs/nyu-small/stage3/final")
    monkeypatch.chdir(tmp_path)
    said = {"image": frame.image}
    exec(compile(predictor, "README.md", "exec"), said)
    assert (said["labels"].shape, said["labels"].dtype, said["depth"].shape) == ((480, 640), np.uint8, (480, 640))
