"""Laws of rooms whose writing cannot go on: it ends in one line, and leaves nothing.

Not here: those that are written (test_rooms.py).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WRITE = """
import resource, sys
from pathlib import Path
from jointseg.data.rooms import write_rooms
from jointseg.errors import DiskError

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
try:
    write_rooms(Path("rooms"), num_train=2, num_test=1, seed=0)
except DiskError as error:
    print(error)
"""


@pytest.mark.parametrize("most", [2_000, 8_000_000])
def test_a_disk_that_is_full_is_an_error_and_not_the_end_of_the_process(tmp_path: Path, most: int) -> None:
    ended = subprocess.run([sys.executable, "-c", WRITE, str(most)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "rooms: cannot be written: File too large\n", "")
    assert list(tmp_path.iterdir()) == []
