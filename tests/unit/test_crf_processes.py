"""Compiled code across processes: several at once on an empty cache, and one that finds it full. Not here: threads."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import hashlib
import torch
from jointseg.crf import DenseCRF
from jointseg.crf.cpu import lattice, passes, program

torch.set_num_threads(2)
draw = torch.Generator().manual_seed(0)
logits = torch.randn(1, 2, 130, 130, generator=draw)
image = torch.randint(0, 256, (1, 3, 130, 130), generator=draw, dtype=torch.uint8)
with torch.no_grad():
    out = DenseCRF(2)(logits, image=image, depth=1 + torch.rand(1, 130, 130, generator=draw))
compiled = sum(sum(f.stats.cache_misses.values()) for f in (passes.pixel_pass, program.settle, lattice.embed, lattice.chains))
print(hashlib.sha256(out.numpy().tobytes()).hexdigest(), compiled)
"""


def start(cache: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    return subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, text=True)


def test_processes_that_compile_at_once_agree_and_later_ones_compile_nothing(tmp_path):
    both = [start(tmp_path), start(tmp_path)]
    first, second = (process.communicate()[0].split() for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert first[0] == second[0]
    assert int(first[1]) > 0
    later = start(tmp_path)
    assert later.communicate()[0].split() == [first[0], "0"]
