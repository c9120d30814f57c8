"""The Python blocks of the documentation and of README run, in order; its files of settings and trials are what it says.

Not here: README's commands.
"""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from jointseg import presets
from jointseg.settings import with_overrides
from pipeline.study.earlier import earlier_study
from pipeline.study.settings_file import load_settings
from pipeline.study.spaces import load_space, start_points
from tests.checkpoints import untrained_final
from tests.own_spaces import space_named

DOCS = Path(__file__).parents[2] / "docs"


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", ["crf.md", "search.md"])
def test_the_code_on_a_page_runs(page, monkeypatch):
    monkeypatch.chdir(DOCS.parent)
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


@pytest.mark.parametrize("path", sorted(DOCS.glob("settings/*.json")), ids=lambda path: path.stem)
def test_settings_that_are_published_are_taken_by_score_by_stage_3_and_by_a_search(path):
    preset = getattr(presets, path.stem.partition("-")[2])()
    taking = with_overrides(preset, {"search.settings": str(path)})
    found, study = earlier_study(taking)
    assert study is None
    assert load_settings(path, preset).crf != preset.crf
    with_start = with_overrides(preset, {"search.start": str(path), "search.space": "crf"})
    _, (point, _, inside) = start_points(load_space(with_start), with_start)
    assert (point, inside) == (found["settings"], True)


@pytest.mark.parametrize(
    ("commit", "ended", "stopped", "best", "score"), [("40e38fd", 234, 98, 231, 0.2987), ("5e198fe", 131, 90, 4, 0.3333)]
)
def test_trials_that_are_published_are_those_of_the_table(commit, ended, stopped, best, score):
    trials = pq.read_table(DOCS / f"studies/modern-{commit}.parquet").to_pylist()
    assert {trial["commit"][:7] for trial in trials} == {commit}
    assert (len(trials), sum(trial["state"] == "stopped" for trial in trials)) == (ended, stopped)
    winner = max((trial for trial in trials if trial["state"] == "finished"), key=lambda trial: trial["mean_iou"])
    assert (winner["trial"], round(winner["mean_iou"], 4)) == (best, score)


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
