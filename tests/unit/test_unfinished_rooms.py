"""Laws of rooms whose writing cannot go on: it ends in one line, and leaves nothing.

Not here: those that are written (test_rooms.py).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jointseg.data.rooms import write_rooms
from jointseg.errors import InputError

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


def test_a_process_that_is_killed_while_it_renders_is_one_line(tmp_path: Path) -> None:
    def kill(done: int) -> None:
        for process in multiprocessing.active_children():
            if process.name.startswith("SpawnProcess"):
                os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(InputError, match=r"^lost one of the 2 processes that render rooms, .*; the same command begins again$"):
        write_rooms(tmp_path / "rooms", num_train=7, num_test=1, seed=0, progress=kill, num_processes=2)
    assert list(tmp_path.iterdir()) == []


INTERRUPT = """
import os, signal
from pathlib import Path
from jointseg.data.rooms import write_rooms

def interrupt(done):
    if done == 2:  # one process renders the last room, the other waits
        os.killpg(0, signal.SIGINT)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, such as this may be, ignores it
    try:
        write_rooms(Path("rooms"), num_train=2, num_test=1, seed=0, num_processes=2, progress=interrupt)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.slow
def test_processes_that_render_say_nothing_of_an_interruption(tmp_path: Path) -> None:
    (tmp_path / "interrupt.py").write_text(INTERRUPT)
    command = [sys.executable, "interrupt.py"]
    ended = subprocess.run(command, cwd=tmp_path, start_new_session=True, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "interrupted\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["interrupt.py"]
