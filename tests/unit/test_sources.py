"""Laws of what a run may be given as data: NYU's folder or a prepared store, with something in it to train on."""

from __future__ import annotations

import shutil

import h5py
import pytest

from jointseg.config import DataConfig
from jointseg.data.store import Store, prepare
from jointseg.data.views import draw_validation
from jointseg.errors import InputError
from pipeline.sources import bring_in, check_source
from tests.conftest import write_nyu

ONE_FOR_VALIDATION = {"validation_frames": 1, "validation_seed": 0}


def silent(done, total):
    """No progress is shown."""


@pytest.fixture(scope="module", params=["folder", "store"])
def source(request, small_nyu, tmp_path_factory):
    if request.param == "folder":
        return small_nyu
    return prepare(small_nyu, tmp_path_factory.mktemp("prepared") / "store").path


def test_a_folder_and_a_store_are_brought_in_as_the_same_frames(source, small_nyu, tmp_path):
    bring_in(source, tmp_path / "run" / "data", progress=silent)
    brought = Store.open(tmp_path / "run" / "data")
    assert brought.digest == prepare(small_nyu, tmp_path / "again").digest
    assert (tmp_path / "run" / "data").is_symlink() == (source != small_nyu)


def test_a_link_that_leads_nowhere_is_made_anew(small_nyu, tmp_path):
    """As an interruption leaves it, where the store has moved since."""
    moved = prepare(small_nyu, tmp_path / "moved")
    (tmp_path / "data").symlink_to(tmp_path / "where_it_was")
    bring_in(moved.path, tmp_path / "data", progress=silent)
    assert Store.open(tmp_path / "data").digest == moved.digest


def test_either_is_in_order(source):
    check_source(DataConfig(source=source, **ONE_FOR_VALIDATION))


def test_there_must_be_frames_to_train_on(source):
    with pytest.raises(InputError, match=r"data.validation_frames: 4 is not allowed; allowed: up to 3 of the 4 train frames"):
        check_source(DataConfig(source=source, validation_frames=4))
    with pytest.raises(InputError, match=r"up to 59 of the 60 train frames \(synthetic rooms, data.rooms_train of them"):
        check_source(DataConfig(validation_frames=60))


def test_synthetic_rooms_have_the_scenes_of_the_split_that_they_will_get():
    check_source(DataConfig(validation_by="scene", validation_frames=2, rooms_train=4, rooms_test=2, rooms_seed=5))
    with pytest.raises(InputError, match=r"'scene' finds no 3 frames in 2 whole run\(s\) .*\(synthetic rooms, "):
        check_source(DataConfig(validation_by="scene", validation_frames=3, rooms_train=4, rooms_test=2, rooms_seed=5))


@pytest.fixture(scope="module")
def blank(tmp_path_factory):
    """A folder like NYU's with one dataset all zeros."""

    def made(name, kind):
        folder = tmp_path_factory.mktemp("blank")
        write_nyu(folder, train=(1, 2), test=(3,), seed=0)
        with h5py.File(folder / "nyu_depth_v2_labeled.mat", "r+") as mat:
            mat[name][...] = 0
        if kind == "folder":
            return folder
        return prepare(folder, folder / "store").path

    return made


@pytest.mark.parametrize("kind", ["folder", "store"])
def test_data_without_the_depth_that_is_trained_on_are_refused(blank, kind):
    source = blank("rawDepths", kind)
    said = rf"^data.train_depth: raw: no frame of {source} that is trained on has such a depth; allowed where .* one: filled$"
    with pytest.raises(InputError, match=said):
        check_source(DataConfig(source=source, **ONE_FOR_VALIDATION))
    check_source(DataConfig(source=source, train_depth="filled", **ONE_FOR_VALIDATION))


def test_data_without_a_label_are_refused(blank):
    source = blank("labels", "folder")
    with pytest.raises(InputError, match=rf"^{source}: no frame that is trained on has a labelled pixel$"):
        check_source(DataConfig(source=source, **ONE_FOR_VALIDATION))


def test_validation_frames_without_a_label_are_refused_before_anything_is_trained(tmp_path):
    write_nyu(tmp_path, train=(1, 2), test=(3,), seed=0)
    drawn = DataConfig(source=tmp_path, **ONE_FOR_VALIDATION)
    (validated,) = draw_validation((1, 2), drawn)
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "r+") as mat:
        mat["labels"][validated - 1] = 0
    said = rf"^data.validation_frames: 1: no frame of {tmp_path} that is drawn has a labelled pixel; allowed: more, or another "
    with pytest.raises(InputError, match=said):
        check_source(drawn)
    check_source(DataConfig(source=tmp_path, validation_frames=2, train_on_validation=True))


def test_a_damaged_store_is_named(source, small_nyu, tmp_path):
    if source == small_nyu:
        pytest.skip("is no store")
    damaged = shutil.copytree(source, tmp_path / "damaged")
    (damaged / "labels.npy").unlink()
    for use in (check_source, lambda data: bring_in(data.source, tmp_path / "data", progress=silent)):
        with pytest.raises(InputError, match=f"{damaged / 'labels.npy'}: missing"):
            use(DataConfig(source=damaged, **ONE_FOR_VALIDATION))
