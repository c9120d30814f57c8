"""The command as a user runs it, in processes forked from one that has imported it: the imports take as long as the rest.

Not here: its own way in (python -m pipeline: tests/unit/cli/test_cli_endings.py; jointseg: test_pipeline.py's job).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from pipeline.__main__ import main

PROCESSES = multiprocessing.get_context("forkserver")
IMPORTED = ["pipeline.run", "pipeline.score", "pipeline.reproduce", "jointseg.training", "torch._dynamo"]
"""By the process that commands are forked from."""


def run_here(words: tuple[str, ...], environment: dict[str, str], printed: Path) -> None:
    """This process becomes `jointseg` with these words: its standard output and error are the file."""
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(printed, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["jointseg", *words]
    main()


@dataclass(frozen=True)
class CommandLine:
    """Runs `jointseg` in a process of its own, without a Ray cluster or MLflow store from the environment."""

    environment: dict[str, str]
    folder: Path
    """For what it prints."""

    def __call__(self, *words: str, code: int = 0, timeout: float = 900) -> str:
        process, printed = self._started(words)
        process.join(timeout)
        if process.is_alive():
            kill(process)
            raise AssertionError(f"has not ended within {timeout} s\n{printed.read_text()}")
        said = printed.read_text()
        assert process.exitcode == code, f"exit code {process.exitcode}, not {code}\n{said}"
        return said

    def kill_when(self, reached: Callable[[], bool], *words: str, timeout: float = 900) -> None:
        """Start the command, and kill it and its training workers (SIGKILL) once `reached`; it must not end before."""
        process, printed = self._started(words)
        deadline = time.monotonic() + timeout
        try:
            while not reached():
                assert process.is_alive(), f"ended before it was to be killed:\n{printed.read_text()}"
                assert time.monotonic() < deadline, f"not reached within {timeout} s"
                time.sleep(0.02)
        finally:
            kill(process)

    @contextmanager
    def in_background(self, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """The command as a shell's script starts it with &, deaf to Ctrl-C, with what it prints; killed at the end."""
        handle, name = tempfile.mkstemp(dir=self.folder)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            command = [sys.executable, "-m", "pipeline", *words]
            process = subprocess.Popen(command, env=self.environment, process_group=0, stdout=handle, stderr=handle)
        finally:
            signal.signal(signal.SIGINT, before)
            os.close(handle)
        try:
            yield process, Path(name)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _started(self, words: tuple[str, ...]) -> tuple[ForkServerProcess, Path]:
        handle, name = tempfile.mkstemp(dir=self.folder)
        os.close(handle)
        process = PROCESSES.Process(target=run_here, args=(words, self.environment, Path(name)))
        process.start()
        return process, Path(name)


def kill(process: ForkServerProcess) -> None:
    assert process.pid is not None
    for worker in training_workers(process.pid):
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    process.kill()
    process.join()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def training_workers(driver: int) -> list[int]:
    """The processes of Ray Train's workers on the Ray that `driver` started."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(folder.name)] = (folder / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended

    def descends(process: int) -> bool:
        return process == driver or (process in parents and descends(parents[process]))

    workers = [process for process, title in titles.items() if title.startswith(b"ray::RayTrainWorker")]
    return sorted(filter(descends, workers))
