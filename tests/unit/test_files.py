"""Laws of files that may not be read: one line that says which, and why. Not here: those that are damaged."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jointseg.checkpoint_folder import CheckpointFolder, Found
from jointseg.config import DataConfig
from jointseg.data.nyu import NyuFolder
from jointseg.data.store import Store, prepare
from jointseg.errors import InputError
from jointseg.stages import STAGES
from pipeline.cli import app
from pipeline.log_lines import append_line, read_lines
from pipeline.sources import check_source
from pipeline.workspace import Workspace
from tests.checkpoints import CONFIG, newest, saving

NOBODY = 65534
MAT = "nyu_depth_v2_labeled.mat"


@pytest.fixture
def place(small_nyu: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder with NYU's files in nyu/ and a store in store/, from which what may not be read is taken back in the end."""
    shutil.copytree(small_nyu, tmp_path / "nyu")
    prepare(small_nyu, tmp_path / "store")
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755)
    yield tmp_path
    for path in (tmp_path / "nyu", tmp_path / "store"):
        path.chmod(0o755)
        shutil.rmtree(path)


def opened(place: Path, open_: Callable[[Path], object], path: str) -> str:
    """What an opener says in `place` to somebody who is not root."""
    os.chdir(place)
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
    try:
        open_(Path(path))
    except InputError as error:
        return str(error)
    return "no error"


def said(place: Path, open_: Callable[[Path], object], path: str) -> str:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(opened, (place, open_, path))


@pytest.mark.parametrize(
    ("locked", "first"),
    [
        ("nyu", MAT),
        (f"nyu/{MAT}", MAT),
        ("nyu/splits.mat", "splits.mat"),
        ("nyu/classMapping40.mat", "classMapping40.mat"),
        ("store", "store.json"),
        ("store/store.json", "store.json"),
        ("store/image.npy", "image.npy"),
        ("store/filled_depth.npy", "filled_depth.npy"),
    ],
)
def test_what_may_not_be_read_is_named(place: Path, locked: str, first: str) -> None:
    kind, open_ = ("nyu", NyuFolder.open) if locked.startswith("nyu") else ("store", Store.open)
    assert said(place, open_, kind) == "no error"
    (place / locked).chmod(0)
    assert said(place, open_, kind) == f"{kind}/{first}: cannot be read: Permission denied"


def test_what_lies_beyond_a_folder_that_may_not_be_read_is_named(place: Path) -> None:
    (place / "nyu" / "inner").mkdir()
    (place / "nyu").chmod(0)
    assert said(place, NyuFolder.open, "nyu/inner") == f"nyu/inner/{MAT}: cannot be read: Permission denied"
    assert said(place, Store.open, "nyu/inner") == "nyu/inner/store.json: cannot be read: Permission denied"


def test_a_file_that_links_to_itself_is_not_one_that_is_missing(place: Path) -> None:
    path = place / "store" / "labels.npy"
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(InputError, match=f"^{path}: cannot be read: Too many levels of symbolic links$"):
        Store.open(place / "store")


def test_a_folder_or_a_pipe_in_place_of_a_file_is_none(place: Path) -> None:
    for path, make in ((place / "store" / "labels.npy", Path.mkdir), (place / "nyu" / "splits.mat", os.mkfifo)):
        path.unlink()
        make(path)
    with pytest.raises(InputError, match=r"labels\.npy: missing"):
        Store.open(place / "store")
    with pytest.raises(InputError, match=r"no splits\.mat in it"):
        NyuFolder.open(place / "nyu")


def test_commands_name_what_may_not_be_read(place: Path) -> None:
    (place / "store").chmod(0)
    assert said(place, begin_from, "store") == "store/store.json: cannot be read: Permission denied"
    assert said(place, check_data, "store") == "store/store.json: cannot be read: Permission denied"
    assert said(place, run_in, "store/run") == f"{place}/store/run/config.json: cannot be read: Permission denied"
    assert said(place, run_on, "store/inner") == "store/inner: cannot be read: Permission denied"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with a run's files, and a stage with two checkpoints."""
    (place := Workspace(tmp_path / "run")).adopt_config(CONFIG)
    place.finish("data", seconds=1.0)
    for step in (10, 20):
        CheckpointFolder(place.stage(STAGES["stage1"])).write(step, saving(step), keep=2)
    append_line(place.log(STAGES["stage1"]), {"step": 1})
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("name", ["config.json", "phases.json", "stage1/log.jsonl"])
def test_a_file_of_a_run_that_may_not_be_read_is_named(run: Path, name: str) -> None:
    (run / "run" / name).chmod(0)
    assert said(run, read_all, "run") == f"run/{name}: cannot be read: Permission denied"


@pytest.mark.parametrize("name", ["checkpoint.json", "weights.safetensors", "random.pt"])
def test_a_checkpoint_that_may_not_be_read_is_not_passed_over_for_an_older_one(run: Path, name: str) -> None:
    assert said(run, find_newest, "run") == "no error"
    path = Path("run/stage1/step_00000020") / name
    (run / path).chmod(0)
    assert said(run, find_newest, "run") == f"{path}: cannot be read: Permission denied"


def read_all(path: Path) -> None:
    place = Workspace(path)
    place.load_config()
    place.done()
    read_lines(place.log(STAGES["stage1"]))


def find_newest(path: Path) -> None:
    assert newest(CheckpointFolder(path / "stage1")) == Found(path / "stage1" / "step_00000020", 20, ())


def begin_from(path: Path) -> None:
    check_source(DataConfig(source=path))


def check_data(path: Path) -> None:
    app(["data", "check", str(path)], standalone_mode=False)


def run_in(path: Path) -> None:
    app(["run", "--out", str(path)], standalone_mode=False)


def run_on(path: Path) -> None:
    app(["run", "--preset", "demo", "--out", "run", "--data", str(path)], standalone_mode=False)
