"""Laws of the prepared store: it is whole or absent, and holds exactly what the NYU folder holds."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from jointseg.data.frame import Frame
from jointseg.data.nyu import NyuFolder
from jointseg.data.source import check
from jointseg.data.store import Store, prepare
from jointseg.errors import InputError

NULL = object()  # JSON's
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def prepared(small_nyu: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return prepare(small_nyu, tmp_path_factory.mktemp("stores") / "store")


@pytest.fixture
def store(prepared: Store, tmp_path: Path) -> Iterator[Path]:
    """A copy of a prepared store to be damaged."""
    yield shutil.copytree(prepared.path, tmp_path / "store")
    shutil.rmtree(tmp_path / "store")


def assert_equal(one: Frame, other: Frame) -> None:
    assert one.number == other.number
    for name in ("image", "labels", "raw_depth", "filled_depth"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype


def test_the_store_holds_the_folders_frames_splits_and_report(small_nyu: Path, prepared: Store) -> None:
    with NyuFolder.open(small_nyu) as nyu:
        for number in range(1, 7):
            assert_equal(prepared.frame(number), nyu.read(number))
        assert (prepared.train, prepared.test, prepared.num_frames) == (nyu.train, nyu.test, 6)
    assert prepared.info == check(small_nyu)
    assert prepared.source == small_nyu.name


def test_arrays_are_plain_npy_files_in_nyus_order(prepared: Store) -> None:
    labels = np.load(prepared.path / "labels.npy")
    np.testing.assert_array_equal(labels[4], prepared.frame(5).labels)
    assert {path.name for path in prepared.path.iterdir()} == {
        "image.npy", "labels.npy", "raw_depth.npy", "filled_depth.npy", "store.json",
    }  # fmt: skip


def test_a_frame_is_its_own_copy(prepared: Store) -> None:
    prepared.frame(1).labels[:] = 7
    prepared.verify()


def test_labels_are_read_alone(prepared: Store) -> None:
    only = copy.copy(prepared)
    only._arrays = {"labels": prepared._arrays["labels"]}
    for number in range(1, 7):
        own = only.labels(number)
        np.testing.assert_array_equal(own, prepared.frame(number).labels)
        own[:] = 7
    prepared.verify()
    with pytest.raises(InputError, match=r"no frame 7; allowed: 1\.\.6"):
        only.labels(7)


def test_the_digest_depends_on_contents_and_splits_alone(small_nyu: Path, prepared: Store, tmp_path: Path) -> None:
    same = shutil.copytree(small_nyu, tmp_path / "same")
    assert prepare(same, tmp_path / "again").digest == prepared.digest
    with h5py.File(same / "nyu_depth_v2_labeled.mat", "r+") as mat:
        mat["images"][5, 2, 639, 479] ^= 1
    assert prepare(same, tmp_path / "other").digest != prepared.digest
    swapped = shutil.copytree(small_nyu, tmp_path / "swapped")
    (swapped / "splits.mat").unlink()
    with h5py.File(swapped / "splits.mat", "w") as mat:
        mat["trainNdxs"], mat["testNdxs"] = [1, 2, 4], [3, 5, 6]
    assert prepare(swapped, tmp_path / "third").digest != prepared.digest


def test_frames_that_no_split_names_are_left_where_they_are(small_nyu: Path, tmp_path: Path) -> None:
    some = shutil.copytree(small_nyu, tmp_path / "some")
    savemat(some / "splits.mat", {"trainNdxs": np.c_[[1.0, 4.0]], "testNdxs": np.c_[[3.0]]})
    prepare(some, tmp_path / "store").verify()
    store = Store.open(tmp_path / "store")
    assert (store.train, store.test, store.num_frames) == ((1, 4), (3,), 6)


def test_a_changed_byte_is_found(store: Path) -> None:
    with (store / "filled_depth.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x00")
    with pytest.raises(InputError, match="were changed"):
        Store.open(store).verify()


@pytest.mark.parametrize("wrong", [40, 77, 254])
def test_a_label_that_is_none_is_named_with_its_frame_by_all_that_read_labels(store: Path, wrong: int) -> None:
    damaged = np.load(store / "labels.npy", mmap_mode="r+")
    damaged[4, 479, 639] = wrong
    damaged.flush()
    opened = Store.open(store)
    said = rf"^{store}/labels.npy: frame 5 has a label {wrong}; allowed: 0\.\.39 or 255; see what jointseg data check says"
    for read in (opened.frame, opened.labels):
        read(4)
        with pytest.raises(InputError, match=said):
            read(5)
    with pytest.raises(InputError, match="were changed"):
        opened.verify()


def sum_of_labels(store: Store) -> int:
    return sum(int(store.frame(number).labels.sum()) for number in range(1, 7))


def test_two_readers_at_once_read_the_same(prepared: Store) -> None:
    with ProcessPoolExecutor(2, mp_context=FORK) as pool:
        sums = list(pool.map(sum_of_labels, [prepared] * 4))
    assert sums == [sum_of_labels(prepared)] * 4


def test_a_store_pickles_as_its_path(prepared: Store) -> None:
    pickled = pickle.dumps(prepared)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).digest == prepared.digest


def test_a_folder_whose_name_is_not_utf8_is_prepared_too(small_nyu: Path, tmp_path: Path) -> None:
    (tmp_path / "caf\udce9").symlink_to(small_nyu)
    assert prepare(tmp_path / "caf\udce9", tmp_path / "store").source == "caf\ufffd"


# Whole or absent


def killed_at(number: int) -> Callable[[int, int], None]:
    return lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done == number else None


def test_a_killed_attempt_is_no_store_and_is_cleared_by_the_next(small_nyu: Path, prepared: Store, tmp_path: Path) -> None:
    path = tmp_path / "store"
    attempt = FORK.Process(target=prepare, args=(small_nyu, path), kwargs={"progress": killed_at(3)})
    attempt.start()
    attempt.join()
    assert attempt.exitcode == -signal.SIGKILL
    assert not path.exists()
    assert list(tmp_path.iterdir()), "the attempt was killed before it wrote anything"
    assert prepare(small_nyu, path).digest == prepared.digest
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_or_failed_attempt_leaves_nothing_behind(small_nyu: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    stores = tmp_path / "stores"
    stores.mkdir()
    with pytest.raises(KeyboardInterrupt):
        prepare(small_nyu, stores / "store", progress=interrupt)
    broken = shutil.copytree(small_nyu, tmp_path / "broken")
    with h5py.File(broken / "nyu_depth_v2_labeled.mat", "r+") as mat:
        mat["depths"][4, 0, 0] = np.nan
    with pytest.raises(InputError, match="depths, frame 5"):
        prepare(broken, stores / "store")
    assert not list(stores.iterdir())


def test_one_store_is_made_by_one_process_at_a_time(small_nyu: Path, tmp_path: Path) -> None:
    refusals: list[str] = []

    def prepare_too(done: int, total: int) -> None:
        with pytest.raises(InputError) as caught:
            prepare(small_nyu, tmp_path / "store")
        refusals.append(str(caught.value))

    prepare(small_nyu, tmp_path / "store", progress=prepare_too).verify()
    assert refusals == [f"{tmp_path / 'store'}: another process is making it"] * 6


def test_a_store_is_never_written_over(small_nyu: Path, store: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        prepare(small_nyu, store)


def prepare_with_files_limited(folder: Path, path: Path) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    try:
        prepare(folder, path)
    except InputError as error:
        return str(error)
    return "no error"


def test_a_disk_that_fills_up_midway_leaves_nothing_behind(small_nyu: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=FORK) as pool:
        message = pool.submit(prepare_with_files_limited, small_nyu, tmp_path / "store").result()
    assert message == f"{tmp_path / 'store'}: cannot be written: File too large"
    assert not list(tmp_path.iterdir())


# Opening


def cut(name: str, num_bytes: int) -> Callable[[Path], object]:
    return lambda store: os.truncate(store / name, num_bytes)


def index(**changed: object) -> Callable[[Path], object]:
    """Changes what the index says; None takes it away."""

    def damage(store: Path) -> None:
        values = json.loads((store / "store.json").read_text()) | changed
        kept = {name: None if value is NULL else value for name, value in values.items() if value is not None}
        (store / "store.json").write_text(json.dumps(kept))

    return damage


def report(**changed: object) -> Callable[[Path], object]:
    def damage(store: Path) -> None:
        index(report=json.loads((store / "store.json").read_text())["report"] | changed)(store)

    return damage


def zipped(store: Path) -> None:
    with (store / "labels.npy").open("wb") as file:
        np.savez(file, labels=np.zeros((6, 480, 640), np.uint8))


def appended(store: Path) -> None:
    with (store / "raw_depth.npy").open("ab") as file:
        file.write(b"more")


def header(old: bytes, new: bytes) -> Callable[[Path], object]:
    def damage(store: Path) -> None:
        with (store / "labels.npy").open("r+b") as file:
            start = file.read(128)
            file.seek(0)
            file.write(start.replace(old, new))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda store: (store / "store.json").unlink(), "not a prepared store: no store.json"),
        (cut("store.json", 100), "store.json: damaged"),
        (index(format=2), "store.json: format is 2; allowed: 1"),
        (lambda store: (store / "store.json").write_text("[" * 100_000), "store.json: damaged"),
        (index(report=None), "store.json: damaged: report is missing; prepare the store again"),
        (
            index(train=[1, 99]),
            "store.json: damaged: train and test are not of frames 1..6, none twice; prepare the store again",
        ),
        (index(report={"class_pixels": []}), "store.json: damaged: report.num_frames is missing"),
        (index(report=7), "store.json: damaged: report is 7; allowed: "),
        (report(num_frames="3"), "store.json: damaged: report.num_frames is '3'; allowed: integer; prepare"),
        (index(train=NULL), "store.json: damaged: train is None; allowed: array; prepare"),
        (index(test=[]), r"store.json: damaged: test is \[\]; allowed: at least 1 item"),
        (index(test=[3, "five"]), "store.json: damaged: test.1 is 'five'; allowed: integer"),
        (index(scene_types=["office"]), "store.json: damaged: scene_types: 1 for 6 frames"),
        (lambda store: (store / "labels.npy").unlink(), "labels.npy: missing"),
        (cut("raw_depth.npy", 3_000_000), "raw_depth.npy: cut short or damaged, 3000000 bytes"),
        (cut("image.npy", 0), "image.npy: cut short or damaged, 0 bytes"),
        (cut("image.npy", 60), "image.npy: cut short or damaged, 60 bytes"),
        (zipped, "labels.npy: cut short or damaged, .*magic string"),
        (appended, r"raw_depth.npy: is 7372932 bytes; allowed: 7372928; prepare the store again"),
        (header(b"'descr': '", b"'descr': ("), "labels.npy: cut short or damaged"),
        (header(b"(6, 480", b"(06, 48"), "labels.npy: cut short or damaged"),
        (lambda store: np.save(store / "labels.npy", np.zeros((6, 4, 4), np.uint8)), r"labels.npy: holds uint8 \(6, 4, 4\)"),
        (lambda store: np.save(store / "raw_depth.npy", np.zeros((6, 480, 640))), r"raw_depth.npy: holds float64"),
    ],
)
def test_a_damaged_store_is_named_when_it_is_opened(store: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(store)
    with pytest.raises(InputError, match=message) as caught:
        Store.open(store)
    assert "\n" not in str(caught.value)


def test_a_missing_frame_is_an_input_error(prepared: Store) -> None:
    for number in (0, 7):
        with pytest.raises(InputError, match=f"no frame {number}; allowed: 1..6"):
            prepared.frame(number)
