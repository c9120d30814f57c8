"""Compiled code across processes: several at once on an empty cache, and one that finds it full. Not here: threads."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest

import jointseg
from jointseg.crf.cpu.compiled import KeptCode

PROGRAM = """
import hashlib
import torch
from jointseg.crf import DenseCRF
from jointseg.crf.cpu import lattice, row_sums

torch.set_num_threads(2)
draw = torch.Generator().manual_seed(0)
image = torch.randint(0, 256, (1, 3, 130, 130), generator=draw, dtype=torch.uint8)
prepared = DenseCRF(2).prepare(image=image, depth=1 + torch.rand(1, 130, 130, generator=draw))
sums = b"".join(gaussian.row_sums.numpy().tobytes() for gaussian in prepared.filters)
compiled = sum(sum(f.stats.cache_misses.values()) for f in (lattice.embed, lattice.chains, row_sums.lattice_and_grid_sums))
print(hashlib.sha256(sums).hexdigest(), compiled)
"""


def start(cache: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    return subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_processes_that_compile_at_once_agree_and_later_ones_compile_nothing(tmp_path):
    both = [start(tmp_path), start(tmp_path)]
    first, second = (process.communicate()[0].split() for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert first[0] == second[0]
    assert max(int(first[1]), int(second[1])) > 0
    later = start(tmp_path)
    assert later.communicate()[0].split() == [first[0], "0"]


def test_what_is_compiled_at_the_same_moment_never_takes_the_place_of_another(tmp_path):
    one, other = (KeptCode(str(tmp_path), "m.f-1.py311", "a" * 12) for _ in range(2))
    one.save(("float32", 8), "eight")
    other.save(("float64", 8), "double")
    assert (one.load(("float64", 8)), other.load(("float32", 8)), one.load(("float32", 40))) == ("double", "eight", None)


def test_what_an_earlier_version_compiled_is_thrown_away(tmp_path):
    for name in ("m.f-1.py311", "m.f-12.py311", "m.ff-1.py311"):
        KeptCode(str(tmp_path), name, "a" * 12).save("key", 1)
    newer = KeptCode(str(tmp_path), "m.f-1.py311", "b" * 12)
    assert newer.load("key") is None
    newer.save("key", 2)
    assert newer.load("key") == 2
    assert sorted(file.name.partition(".py")[0] for file in tmp_path.iterdir()) == ["m.f-1", "m.f-12", "m.ff-1"]


def test_where_nothing_can_be_cached_each_process_compiles_for_itself(tmp_path):
    """A package that is not the user's, and a home without room: files where numba's folders would be."""
    package, home = tmp_path / "packages" / "jointseg", tmp_path / "home"
    shutil.copytree(Path(jointseg.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for there in (*package.rglob("*.py"), package / "any"):
        (there.parent / "__pycache__").touch()
    home.touch()
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment |= {"PYTHONPATH": str(package.parent), "HOME": str(home), "XDG_CACHE_HOME": str(home)}
    program = """
import torch, jointseg, jointseg.predictor
from jointseg.crf import DenseCRF
DenseCRF(2)(torch.zeros(1, 2, 6, 7), image=torch.zeros(1, 3, 6, 7))
print(jointseg.__file__)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, Path(ended.stdout.strip()).parent) == (0, package), ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("home_has_room", [True, False])
def test_nothing_compiled_is_left_in_an_installed_package(tmp_path, home_has_room):
    """Uninstalling would leave it, and Python would take what is left for the package."""
    package, home = tmp_path / "site-packages" / "jointseg", tmp_path / "home"
    shutil.copytree(Path(jointseg.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    one = "from jointseg.crf.cpu.compiled import compiled\n\n\n@compiled\ndef one():\n    return 1\n"
    (package / "crf" / "cpu" / "one.py").write_text(one)
    if home_has_room:
        home.mkdir()
    else:
        home.touch()
    environment = {name: value for name, value in os.environ.items() if name not in {"NUMBA_CACHE_DIR", "XDG_CACHE_HOME"}}
    environment |= {"PYTHONPATH": str(package.parent), "HOME": str(home)}
    program = "from jointseg.crf.cpu.one import one\nprint(one(), sum(one.stats.cache_misses.values()))"
    for misses in (1, 0):
        ended = subprocess.run(
            [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert ended.stdout.split() == ["1", str(misses)], ended.stderr
    kept = list(tmp_path.rglob("*.nbc"))
    assert [file.is_relative_to(home) for file in kept] == [home_has_room]


ONE = """
import numpy as np
from jointseg.crf.cpu.team import wait
print(wait(np.zeros(1, np.int64), 0, 1), sum(wait.stats.cache_misses.values()))
"""


def run_alone(program: str, *, bytes_a_file: int | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    limit = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_a_file},) * 2)\n" if bytes_a_file else ""
    environment = os.environ | {"PYTHONPATH": str(Path(jointseg.__file__).parents[1])} | environment
    return subprocess.run([sys.executable, "-c", limit + program], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 100])
def test_half_a_file_is_compiled_anew(tmp_path, left):
    """As a machine that goes down leaves it."""
    assert run_alone(ONE, NUMBA_CACHE_DIR=str(tmp_path)).stdout.split() == ["1", "1"]
    (kept,) = tmp_path.rglob("*.nbc")
    kept.write_bytes(kept.read_bytes()[:left])
    for misses in (1, 0):
        ended = run_alone(ONE, NUMBA_CACHE_DIR=str(tmp_path))
        assert ended.stdout.split() == ["1", str(misses)], ended.stderr


def test_a_full_disk_keeps_nothing(tmp_path):
    ended = run_alone(ONE, bytes_a_file=1000, NUMBA_CACHE_DIR=str(tmp_path))
    assert ended.stdout.split() == ["1", "1"], ended.stderr
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


ANOTHER_NUMBA = """
import sys
from importlib.machinery import PathFinder, SourceFileLoader

module, before, after = sys.argv[1:]

class Changed(SourceFileLoader):
    def get_data(self, path):
        source = super().get_data(path)
        assert before.encode() in source
        return source.replace(before.encode(), after.encode())

    def path_stats(self, path):
        raise OSError  # no bytecode

class Finder:
    def find_spec(name, path, target=None):
        if name == module:
            spec = PathFinder.find_spec(name, path)
            spec.loader = Changed(name, spec.origin)
            return spec

sys.meta_path.insert(0, Finder)
import numpy as np
import torch
from jointseg.crf import DenseCRF
from jointseg.crf.cpu.team import wait
DenseCRF(2)(torch.zeros(1, 2, 6, 7), image=torch.zeros(1, 3, 6, 7))
print(wait(np.zeros(1, np.int64), 0, 1))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "before", "after"),
    [
        ("numba.core.caching", "IndexDataCacheFile", "Index"),
        ("numba.core.caching", "_cache_file", "_file"),
        ("numba.core.caching", "_load_data(self, name)", "_load_data(self, name, mode)"),
        ("numba.core.caching", "_save_data", "_keep_data"),
        ("numba.core.dispatcher", "self._cache", "self._kept"),
    ],
)
def test_where_numba_keeps_code_in_another_way_each_process_compiles_for_itself(tmp_path, module, before, after):
    environment = os.environ | {"PYTHONPATH": str(Path(jointseg.__file__).parents[1]), "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", ANOTHER_NUMBA, module, before, after]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "1\n"), ended.stderr
    assert ended.stderr.count("keeps compiled code in another way than jointseg.crf knows") == 1
    assert f"numba {numba.__version__} keeps" in ended.stderr
    assert not list(tmp_path.rglob("*.nb[ci]"))


def test_without_compilation_what_needs_it_says_so():
    program = """
import torch
from jointseg.crf import DenseCRF, InputError, Kernel
print(DenseCRF(2)(torch.zeros(1, 2, 6, 7), image=torch.zeros(1, 3, 6, 7)).shape)
for kernels in (None, [Kernel(name="near", weight=1.0, position=3.0)]):
    try:
        DenseCRF(2, kernels=kernels)(torch.zeros(1, 2, 60, 60), image=torch.zeros(1, 3, 60, 60))
    except InputError as error:
        print(error)
"""
    ended = run_alone(program, NUMBA_DISABLE_JIT="1")
    said = "NUMBA_DISABLE_JIT is set, but this has to be compiled; allowed: without it, or filter='exact'"
    assert ended.stdout.splitlines() == ["torch.Size([1, 2, 6, 7])", f"kernel 'appearance': {said}", said], ended.stderr


INTERRUPTED = """
import random, signal, threading, time
import torch
from jointseg.crf import DenseCRF

torch.set_num_threads(2)
draw = torch.Generator().manual_seed(0)
logits = torch.randn(1, 2, 130, 130, generator=draw)
image = torch.randint(0, 256, (1, 3, 130, 130), generator=draw, dtype=torch.uint8)
crf = DenseCRF(2)

def call():
    with torch.no_grad():
        return crf(logits, image=image)

def interrupt(*_):
    raise KeyboardInterrupt

expected = call()

def seconds():
    started = time.perf_counter()
    call()
    return time.perf_counter() - started

one = min(seconds() for _ in range(5))
signal.signal(signal.SIGALRM, interrupt)
random.seed(0)
for _ in range(150):
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, one))
        for _ in range(4):  # not for ever: Python drops what is raised in a weak reference's callback
            call()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except (KeyboardInterrupt, SystemError, RuntimeError):  # numba and Thread.start may make the others of the one
        signal.setitimer(signal.ITIMER_REAL, 0)

def left_over():
    # Alive: where Thread.start is cut short before there is a thread, `enumerate` names it all the same.
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("crf-") and thread.is_alive()]

deadline = time.monotonic() + 30
while left_over() and time.monotonic() < deadline:
    time.sleep(0.1)
left = left_over()
print(left, torch.equal(call(), expected))
"""


@pytest.mark.slow
def test_ctrl_c_leaves_no_thread_behind_at_whatever_moment_it_comes():
    environment = os.environ | {"PYTHONPATH": str(Path(jointseg.__file__).parents[1])}
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.stdout.strip() == "[] True", ended.stderr
