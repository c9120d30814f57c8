"""Laws of files and folders that appear whole or not at all. Not here: those that are made so (test_store.py and others)."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

from jointseg import whole
from jointseg.errors import DiskError, InputError
from jointseg.whole import appearing_whole, check_space, write_atomically


def write(folder: Path, text: str, *, replace: bool = False) -> None:
    with appearing_whole(folder, replace=replace) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "file").write_text(text)


def read(folder: Path) -> str:
    return (folder / "inner" / "file").read_text()


def refusal(folder: Path, *, replace: bool = False) -> str:
    with pytest.raises(InputError) as caught:
        write(folder, "never", replace=replace)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_until_the_block_ends_there_is_no_folder_and_then_nothing_else(tmp_path):
    folder = tmp_path / "parent" / "folder"
    with appearing_whole(folder) as partial:
        (partial / "file").write_text("one")
        assert not folder.exists()
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("replace", [False, True])
def test_an_empty_folder_gives_way(tmp_path, replace):
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder", "one", replace=replace)
    assert read(tmp_path / "folder") == "one"


def test_a_folder_that_holds_something_is_refused_and_kept(tmp_path):
    write(tmp_path / "folder", "one")
    assert refusal(tmp_path / "folder").startswith(f"{tmp_path / 'folder'}: exists already and holds inner; ")
    assert read(tmp_path / "folder") == "one"
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


@pytest.mark.parametrize("replace", [False, True])
def test_a_file_is_never_taken_for_a_folder(tmp_path, replace):
    (tmp_path / "file").write_text("mine")
    assert refusal(tmp_path / "file", replace=replace).startswith(f"{tmp_path / 'file'}: is a file; allowed: ")
    assert "cannot be written: " in refusal(tmp_path / "file" / "folder", replace=replace)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_is_replaced_stands_until_the_new_one_is_whole(tmp_path):
    folder = tmp_path / "folder"
    write(folder, "one")
    with appearing_whole(folder, replace=True) as partial:
        (partial / "other").write_text("two")
        assert read(folder) == "one"
    assert [path.name for path in folder.iterdir()] == ["other"]
    assert list(tmp_path.iterdir()) == [folder]


def test_all_of_a_folder_is_on_the_disk_before_its_name_and_its_name_at_the_end(tmp_path, told_to_disk):
    write(tmp_path / "folder", "one")
    partial = tmp_path / ".folder.partial"
    assert set(told_to_disk[:-2]) == {partial, partial / "inner", partial / "inner" / "file"}
    assert told_to_disk[-2:] == ["rename", tmp_path]


def stop_midway(folder: Path, error: BaseException) -> None:
    with appearing_whole(folder, replace=True) as partial:
        (partial / "half").write_text("two")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt("mine"), ZeroDivisionError("mine"), OSError(errno.ENOENT, "mine")])
def test_a_block_that_raises_leaves_what_was_there_and_its_own_error(tmp_path, error):
    write(tmp_path / "folder", "one")
    with pytest.raises(type(error), match="mine"):
        stop_midway(tmp_path / "folder", error)
    assert read(tmp_path / "folder") == "one"
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS])
def test_a_full_or_failing_disk_is_the_users_to_mend(tmp_path, number):
    said = rf"folder: cannot be written: {os.strerror(number)}"
    with pytest.raises(DiskError, match=said), appearing_whole(tmp_path / "folder"):
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def test_the_old_folder_stands_again_where_the_new_one_cannot_take_its_name(tmp_path, monkeypatch):
    folder, rename = tmp_path / "folder", Path.rename
    write(folder, "old")

    def failing(path, target):
        if path.name == ".folder.partial":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(DiskError, match="cannot be written: Input/output error"):
        write(folder, "new", replace=True)
    assert read(folder) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def killed_in_the_block(folder: Path) -> None:
    with appearing_whole(folder, replace=True) as partial:
        (partial / "half").write_text("two")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_is_cleared_by_the_next(tmp_path):
    folder = tmp_path / "folder"
    write(folder, "one")
    attempt = multiprocessing.get_context("fork").Process(target=killed_in_the_block, args=(folder,))
    attempt.start()
    attempt.join()
    assert attempt.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) > 1, "the process was killed before it wrote anything"
    assert read(folder) == "one"
    write(folder, "three", replace=True)
    assert read(folder) == "three"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_is_made_by_one_at_a_time(tmp_path):
    folder = tmp_path / "folder"
    with appearing_whole(folder) as partial:
        (partial / "file").write_text("one")
        assert refusal(folder) == f"{folder}: another process is making it"
        write(tmp_path / "another", "two")
    assert (folder / "file").read_text() == "one"


def test_a_lock_that_its_last_holder_has_removed_is_taken_anew(tmp_path, monkeypatch):
    """As where that one ends between another's opening of the file and its locking it."""
    taken, locked = [], whole.locked

    @contextmanager
    def removed_at_first(path, **named):
        with locked(path, **named) as lock:
            if not taken:
                path.unlink()
            taken.append(path)
            yield lock

    monkeypatch.setattr(whole, "locked", removed_at_first)
    write(tmp_path / "folder", "one")
    assert len(taken) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_link_is_followed_and_kept(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "folder")
    write(tmp_path / "link", "one")
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "disk" / "folder") == "one"
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["folder"]


def test_a_text_is_on_the_disk_before_its_name_and_its_name_at_the_end(tmp_path, told_to_disk):
    write_atomically(tmp_path / "settings.json", "one")
    assert told_to_disk == [tmp_path / f".settings.json.partial-{os.getpid()}", "rename", tmp_path]


def test_a_text_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "settings.json"
    write_atomically(path, "one θ")
    write_atomically(path, "two θ")
    assert path.read_text(encoding="utf-8") == "two θ"
    assert [file.name for file in path.parent.iterdir()] == ["settings.json"]


def write_with_files_limited(path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        write_atomically(path, "x" * 2000)
    except InputError as error:
        return str(error)
    return "no error"


def test_a_text_that_the_disk_has_no_room_for_leaves_the_one_before_and_nothing_else(tmp_path):
    path = tmp_path / "settings.json"
    write_atomically(path, "one")
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(write_with_files_limited, (path,)) == f"{path}: cannot be written: File too large"
    assert path.read_text() == "one"
    assert [file.name for file in tmp_path.iterdir()] == ["settings.json"]


def test_too_small_a_disk_is_said_with_both_sizes_before_writing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs 1000000000\.00 GB of disk and \d+\.\d\d GB are free"):
        check_space(tmp_path / "not" / "yet" / "store", needed=10**18)
    assert not list(tmp_path.iterdir())


def test_a_folder_on_the_way_that_the_system_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="x/store: cannot be made: File name too long"):
        check_space(tmp_path / ("x" * 300) / "store", needed=1)


def test_the_disk_that_must_have_room_is_the_one_that_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "store")
    with pytest.raises(InputError, match=rf"GB are free at {tmp_path / 'there'}$"):
        check_space(tmp_path / "link", needed=10**18)
