"""Laws of arrays that are written through a memory map: their room on the disk is theirs from the start."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jointseg.mapped import new_array

ON_A_SMALL_DISK = """
import subprocess, sys
from pathlib import Path
import numpy as np
from jointseg.mapped import new_array
folder = Path(sys.argv[1])
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True).returncode:
    sys.exit("no mount")
try:
    new_array(folder / "large.npy", np.float32, (2**19,))[:] = 1
except OSError as error:
    print(error.strerror)
"""


def test_a_new_array_is_zeros_and_what_is_written_is_in_the_file(tmp_path: Path) -> None:
    array = new_array(tmp_path / "a.npy", np.float16, (3, 4))
    assert (np.load(tmp_path / "a.npy") == np.zeros((3, 4), np.float16)).all()
    array[1] = 7
    array.flush()
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), [[0] * 4, [7] * 4, [0] * 4])


def test_the_room_of_an_array_is_taken_before_it_is_written_to(tmp_path: Path) -> None:
    new_array(tmp_path / "a.npy", np.uint8, (2**20,))
    found = (tmp_path / "a.npy").stat()
    assert found.st_blocks * 512 >= found.st_size == 2**20 + 128


def test_an_array_that_a_disk_has_no_room_for_is_refused_and_ends_no_process(tmp_path: Path) -> None:
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if "no mount" in ended.stderr or ended.stderr.startswith("unshare: "):
        pytest.skip("needs to mount a small disk")
    assert (ended.returncode, ended.stdout) == (0, "No space left on device\n"), ended.stderr


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_where_no_room_can_be_set_aside_an_array_is_made_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def not_here(descriptor: int, num_bytes: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("jointseg.mapped.fallocate", not_here)
    new_array(tmp_path / "a.npy", np.uint8, (5,))[:] = 3
    assert np.load(tmp_path / "a.npy").tolist() == [3] * 5
