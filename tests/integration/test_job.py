"""What a job on a given cluster may and may not do. That a whole run works as one: test_pipeline.py."""

from __future__ import annotations

from tests.integration.conftest import Head


def test_a_job_with_a_relative_out_is_refused(head: Head) -> None:
    done = head.submit("train", "--stage", "1", "--out", "runs/lost")
    assert done.returncode != 0
    assert "give an absolute path" in done.stdout + done.stderr
