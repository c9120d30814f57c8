"""Laws of the scene types: in the store where NYU's file has them, and never needed."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np

from jointseg.data.rooms import render_room
from jointseg.data.scenes import read_scene_types
from jointseg.data.store import Store, prepare


def test_the_store_has_the_scene_type_of_each_frame(rooms):
    assert rooms.scene_types == tuple(render_room(0, place).scene_type for place in range(rooms.num_frames))


def test_a_file_without_scene_types_gives_a_store_without_them(small_nyu, tmp_path):
    assert prepare(small_nyu, tmp_path / "store").scene_types is None


def test_a_store_made_before_there_were_any_opens_without_them(rooms, tmp_path):
    path = shutil.copytree(rooms.path, tmp_path / "store")
    index = json.loads((path / "store.json").read_text())
    del index["scene_types"]
    (path / "store.json").write_text(json.dumps(index))
    old = Store.open(path)
    assert old.scene_types is None
    assert old.digest == rooms.digest


def test_what_is_no_scene_type_of_each_frame_is_left_out(tmp_path):
    with h5py.File(tmp_path / "some.mat", "w") as mat:
        mat["sceneTypes"] = np.zeros((1, 3), np.uint8)
        assert read_scene_types(mat, 3) is None
        del mat["sceneTypes"]
        mat["kitchen"] = np.frombuffer(b"kitchen", np.uint8).astype(np.uint16)
        mat.create_dataset("sceneTypes", data=np.array([[mat["kitchen"].ref] * 2], h5py.ref_dtype))
        assert read_scene_types(mat, 2) == ("kitchen", "kitchen")
        assert read_scene_types(mat, 3) is None


def test_scene_types_that_refer_to_nothing_are_left_out(tmp_path):
    with h5py.File(tmp_path / "some.mat", "w") as mat:
        mat.create_dataset("sceneTypes", (1, 2), h5py.ref_dtype)
        assert read_scene_types(mat, 2) is None
        del mat["sceneTypes"]
        mat.create_group("sceneTypes")
        assert read_scene_types(mat, 2) is None
