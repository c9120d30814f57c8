"""Laws of what is known of the machine, and of features that go by it. Not here: training (test_modern.py), what is recorded
(test_provenance.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jointseg import hardware
from jointseg.batches import Place
from jointseg.data import features
from jointseg.resuming import begin
from jointseg.settings import with_overrides
from jointseg.stages import STAGES


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux says which CPUs a process may run on")
def test_cpus_that_a_process_may_not_run_on_are_not_counted() -> None:
    one = f"import os\nos.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\n"
    done = run(f"{one}from jointseg.hardware import usable_cpus\nprint(usable_cpus())")
    assert (done.stdout.strip(), done.stderr) == ("1", "")


@pytest.mark.parametrize(
    ("quota", "cpus"), [("max 100000", None), ("250000 100000", 2), ("50000 100000", 1), ("6400000 100000", None), ("", None)]
)
def test_of_a_containers_quota_whole_cpus_count(quota: str, cpus: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    monkeypatch.setattr(hardware, "_of_cgroup", lambda name: quota)
    assert hardware.usable_cpus() == min(there, cpus or there)


@pytest.mark.parametrize(("limit", "most"), [("max", None), ("1073741824", 2**30), (str(2**60), None), ("", None)])
def test_a_containers_limit_is_its_memory(limit: str, most: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(hardware, "_of_cgroup", lambda name: limit)
    assert hardware.usable_memory() == (most or there)


def test_a_cpu_is_made_for_bfloat16_where_it_has_its_instructions() -> None:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.is_file() else []
    flags = next((line.split() for line in lines if line.startswith("flags")), None)
    if flags is None:
        pytest.skip("reads /proc/cpuinfo of an x86-64 processor")
    assert hardware.has_bfloat16(torch.device("cpu")) == ("avx512_bf16" in flags)


def test_kept_features_are_of_float32_where_the_processor_is_not_made_for_bfloat16(rooms, views, small, monkeypatch):
    frozen = with_overrides(small, {"network.frozen_until": "conv4_3", "network.dropout": 0})
    network = begin(frozen, STAGES["stage1"], place=Place(), start=None).model.network

    def computed(precision, *, made_for_it):
        monkeypatch.setattr(hardware, "has_bfloat16", lambda device: made_for_it)
        config = with_overrides(frozen, {"training.precision": precision})
        return features.compute(network, rooms, views[:1], config, device=torch.device("cpu"))

    whole, instead, half = (
        computed(precision, made_for_it=there)
        for precision, there in (("float32", True), ("bfloat16", False), ("bfloat16", True))
    )
    assert all(np.array_equal(own, instead[layer]) for layer, own in whole.items())
    assert not any(np.array_equal(own, half[layer]) for layer, own in whole.items())
