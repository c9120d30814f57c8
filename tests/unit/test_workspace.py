"""Laws of the folder `--out`: what has finished, whose config it has. Not here: what phases write there."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import resource
from functools import partial
from pathlib import Path

import pytest

from jointseg.data.manifest import write_manifest
from jointseg.data.rooms import write_rooms
from jointseg.data.store import prepare
from jointseg.data.views import make_views
from jointseg.errors import InputError
from jointseg.presets import demo, paper
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from pipeline.phases import WORK
from pipeline.run import NEEDS
from pipeline.workspace import PHASES, Workspace


@pytest.fixture
def place(tmp_path):
    return Workspace(tmp_path / "run")


def refusal(act, *arguments, **options):
    with pytest.raises(InputError) as caught:
        act(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_new_folder_takes_the_config_and_gives_it_back(place):
    assert place.load_config() is None
    config = with_overrides(demo(), {"crf.theta_beta": 0.1 + 0.2, "data.source": "/some/folder"})
    place.adopt_config(config)
    assert place.load_config() == config


def test_the_config_on_disk_is_readable_under_its_paths(place):
    place.adopt_config(demo())
    assert json.loads(place.config.read_text())["crf"]["theta_alpha"] == 160.0


def test_an_empty_folder_is_a_new_one(place):
    place.out.mkdir()
    place.adopt_config(demo())
    assert place.load_config() == demo()


def test_the_same_config_is_taken_again_and_nothing_is_written(place):
    place.adopt_config(demo())
    before = place.config.stat()
    place.adopt_config(demo())
    after = place.config.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_another_config_is_refused_by_each_field_with_both_values(place):
    place.adopt_config(demo())
    message = refusal(place.adopt_config, with_overrides(demo(), {"crf.theta_beta": 4, "seed": 9}))
    assert message == (
        f"{place.out}: was made with another config: seed is 0 there and 9 here; crf.theta_beta is 3.0 there and 4.0 here"
    )
    assert place.load_config() == demo()


def test_a_folder_with_files_of_its_own_is_refused(place):
    place.out.mkdir()
    (place.out / "thesis.tex").touch()
    message = refusal(place.adopt_config, demo())
    assert message == f"{place.out}: holds files but no config.json; give a new or empty folder as --out"
    assert [path.name for path in place.out.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        assert refusal(Workspace(out).adopt_config, demo()).startswith(f"{out}: cannot be written: ")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"4", b"\xff\xfe", b'{"crf": 3}', b'{"sead": 3}'])
def test_a_config_that_is_none_is_refused_by_file(place, text):
    place.out.mkdir()
    place.config.write_bytes(text)
    assert refusal(place.load_config).startswith(f"{place.config}: ")


def test_a_config_with_a_bad_value_names_file_path_and_value(place):
    place.adopt_config(demo())
    tree = json.loads(place.config.read_text())
    tree["crf"]["theta_beta"] = -3
    place.config.write_text(json.dumps(tree))
    assert refusal(place.load_config).startswith(f"{place.config}: crf.theta_beta: -3 is not allowed; allowed: a number > 0")


def test_nothing_has_finished_in_a_new_folder(place):
    assert place.done() == {}
    assert not any(place.finished(phase) for phase in PHASES)


def test_finished_phases_are_listed_in_the_pipelines_order_with_their_seconds_and_commits(place):
    for phase, seconds, commit in (("stage1", 2.5, "c1"), ("data", 1.25, "c0"), ("stage2", 3.0, None)):
        place.finish(phase, seconds=seconds, commit=commit)
    assert [(phase, row["seconds"], row["commit"]) for phase, row in place.done().items()] == [
        ("data", 1.25, "c0"),
        ("stage1", 2.5, "c1"),
        ("stage2", 3.0, None),
    ]
    assert place.finished("stage2")
    assert not place.finished("search")


def test_a_missing_phase_is_named_with_those_that_have_finished(place):
    nowhere = f"{place.out}: no such folder; stage2 needs one in which stage1 has finished"
    assert refusal(place.require, "stage1", wanted="stage2") == nowhere
    place.out.mkdir()
    assert refusal(place.require, "stage1", wanted="stage2") == (
        f"{place.out}: stage2 needs stage1, which has not finished there; finished: nothing"
    )
    place.finish("data", seconds=1)
    assert refusal(place.require, "stage1", wanted="stage2").endswith("finished: data")
    place.finish("stage1", seconds=1)
    place.require("stage1", wanted="stage2")


@pytest.mark.parametrize("text", ['{"data": 1.0', "[]", '{"data": {"seconds": 1}}', '{"data": "soon"}'])
def test_a_damaged_record_of_phases_is_refused_by_file(place, text):
    place.out.mkdir()
    place.phases.write_text(text)
    assert refusal(place.done).startswith(f"{place.phases}: damaged")


def test_an_older_record_of_phases_has_seconds_alone(place):
    place.out.mkdir()
    place.phases.write_text('{"data": 1.5}')
    place.finish("stage1", seconds=2, commit="c1")
    assert place.done() == {"data": {"seconds": 1.5, "commit": None}, "stage1": {"seconds": 2.0, "commit": "c1"}}


@pytest.mark.parametrize("text", [None, "", "[]", '{"frames": [1]}'])
def test_a_missing_or_damaged_subset_is_refused_by_file(place, text):
    place.out.mkdir()
    if text is not None:
        place.validation.write_text(text)
    assert refusal(place.subset).startswith(f"{place.validation}: missing or damaged (")


def test_every_part_lies_in_the_folder_under_a_name_of_its_own(place):
    parts = [
        getattr(place, name) for name, value in vars(Workspace).items() if isinstance(value, property)
    ]  # fmt: skip
    parts += [place.stage(stage) for stage in STAGES.values()]
    assert len(parts) > 12
    assert len(set(parts)) == len(parts)
    assert all(isinstance(part, Path) and part.is_relative_to(place.out) for part in parts)


def test_every_phase_has_its_work_and_needs_only_earlier_ones():
    assert set(WORK) == set(NEEDS) == set(PHASES)
    for phase in PHASES:
        assert set(NEEDS[phase]) <= set(PHASES[: PHASES.index(phase)])
    for name, stage in STAGES.items():
        assert stage.starts_from is None or stage.starts_from in needed_by(name)


def needed_by(phase):
    """Everything that must have finished, near and far."""
    return set(NEEDS[phase]).union(*(needed_by(needed) for needed in NEEDS[phase]))


@pytest.mark.parametrize("text", ['{"settings": {}}', "[]", "{", ""])
def test_settings_that_no_search_found_name_no_study(place, text):
    place.out.mkdir()
    place.crf_settings.write_text(text)
    assert refusal(place.study).startswith(f"{place.crf_settings}: not a search's result (")


def test_a_result_whose_study_is_gone_is_one_line(place):
    place.out.mkdir()
    place.crf_settings.write_text('{"study": "crf-tpe-0"}')
    gone = place.search / "crf-tpe-0" / "trials.parquet"
    assert refusal(place.trials) == f"{gone}: missing; allowed: the study that {place.crf_settings} is the result of"


def test_a_store_that_was_made_again_of_other_frames_is_refused(place, rooms, tmp_path):
    place.out.mkdir()
    place.store.symlink_to(rooms.path)
    write_manifest(make_views(rooms.train, demo().data), place.views, seeds={}, store_digest=rooms.digest)
    place.finish("data", seconds=1)
    place.refuse_other_frames()
    write_rooms(tmp_path / "others", num_train=1, num_test=1, seed=9)
    others = prepare(tmp_path / "others", tmp_path / "store")
    place.store.unlink()
    place.store.symlink_to(others.path)
    assert refusal(place.refuse_other_frames) == (
        f"{place.store}: other frames than {place.out} began with (digest {others.digest[:12]}, not {rooms.digest[:12]}); "
        "allowed: the same, or a new --out"
    )


def test_two_runs_never_work_in_one_folder(place):
    with place.locked():
        assert refusal(enter, place.locked()) == (f"{place.out}: another run is working in this folder; wait for it, or end it")
    with place.locked():
        place.adopt_config(demo())


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EWOULDBLOCK, "another run is working in this folder; wait for it, or end it"),
        (errno.ENOSYS, "cannot be locked: Function not implemented"),
    ],
)
def test_a_file_system_that_cannot_lock_is_not_another_run(place, monkeypatch, number, said):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert refusal(enter, place.locked()) == f"{place.out}: {said}"


def test_what_is_done_in_a_part_of_a_run_keeps_out_the_same_alone(place):
    with place.locked(place.search, "one"), place.locked(), place.locked(place.search, "two"):
        assert refusal(enter, place.locked(place.search, "one")).startswith(f"{place.search}: another run is working in this")


def enter(block):
    with block:
        pass


def test_a_lock_that_a_killed_run_left_keeps_nobody_out(place):
    place.out.mkdir()
    (place.out / ".lock").touch()
    with place.locked():
        place.adopt_config(demo())


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "run"
    assert refusal(enter, Workspace(out).locked()).startswith(f"{out}: cannot be written: ")


def test_presets_refuse_each_other_in_one_line(place):
    place.adopt_config(demo())
    assert "network.input_size is 65 there and 513 here" in refusal(place.adopt_config, paper())


# A full disk


def refusal_with_files_limited(act, *arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
    return refusal(act, *arguments)


def refusal_on_a_full_disk(act, *arguments):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(refusal_with_files_limited, (act, *arguments))


def test_a_phase_that_cannot_be_recorded_leaves_those_before_it(place):
    place.finish("data", seconds=1.25)
    said = refusal_on_a_full_disk(partial(place.finish, seconds=2.25), "stage1")
    assert said == f"{place.phases}: cannot be written: File too large"
    assert list(place.done()) == ["data"]


def test_a_new_folders_config_appears_whole_or_not_at_all(place):
    assert refusal_on_a_full_disk(place.adopt_config, demo()) == f"{place.config}: cannot be written: File too large"
    assert not place.config.exists()
