"""Laws of the kernels as machine code: they compile for GPUs that are not there, and fit into them.

Not here: what they compute (crf/test_crf_block_sparse.py, crf/test_crf_on_gpu_filters.py, test_bilinear.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

KERNELS = {
    "_sorted_tile", "_node_keys", "_near_tiles", "_cut", "_factors", "_shares", "_gather", "_apply", "_scatter",
    "_moments", "_blur", "_splat", "_gather_corners", "_read", "_softmax_of_difference",
}  # fmt: skip
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="the kernels need the triton package")


def compiled_for(capability: int) -> dict[str, list[dict[str, Any]]]:
    """The kernels of the CRF's filters and of the network as `tests.gpu_code` finds them: a row for each way of calling one."""
    command = [sys.executable, "-m", "tests.gpu_code", str(capability)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    here = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    return found


def spilled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What does not keep to registers. Triton 3.8 alone gives the weights of three tf32 terms a layout that takes too many."""
    layout = "_apply" if version("triton").startswith("3.8.") else ""
    return [
        row for row in rows if row["stack"] and not (row["kernel"] == layout and all("tf32" in used for used in row["matrix"]))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [pytest.param(100, id="B200"), pytest.param(120, id="RTX 5090")])
def test_every_kernel_compiles_for_newer_gpus(capability: int) -> None:
    found = compiled_for(capability)
    assert {row["kernel"] for row in found["filters"]} == KERNELS
    assert {row["kernel"] for row in found["network"]} == {"_upsample", "_gradients"}


@pytest.mark.parametrize(
    ("capability", "shared", "matrix"),
    [
        pytest.param(80, 163 * 1024, "mma.sync.aligned.m16n8k", id="A100", marks=pytest.mark.slow),
        pytest.param(90, 227 * 1024, "wgmma.mma_async.sync.aligned", id="H100"),
    ],
)
def test_every_kernel_compiles_onto_tensor_cores_and_keeps_to_registers(capability: int, shared: int, matrix: str) -> None:
    found = compiled_for(capability)
    rows = found["filters"]
    assert {row["kernel"] for row in rows} == KERNELS
    assert spilled(rows) == []
    assert [row for row in rows if row["shared"] > shared] == []
    summing = [row for row in rows if row["kernel"] in {"_apply", "_moments", "_blur", "_splat"}]
    assert [row for row in summing if not all(used.startswith(matrix) for used in row["matrix"]) or not row["matrix"]] == []
    rows = found["network"]
    assert {row["kernel"] for row in rows} == {"_upsample", "_gradients"}
    assert spilled(rows) == []
    assert [row for row in (rows[0], rows[2]) if not row["vectors"]] == [], "16 bytes at once where channels are innermost"
    assert [row for row in rows if row["shared"] > 48 * 1024] == []
