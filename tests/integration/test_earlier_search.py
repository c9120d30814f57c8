"""A whole run on all frames with settings that an earlier search found, or that were given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jointseg.checkpoint import describe_final
from jointseg.data.manifest import read_manifest
from jointseg.data.store import Store
from jointseg.stages import STAGES
from pipeline.workspace import Workspace
from tests.integration.command_line import CommandLine
from tests.integration.conftest import TINY, as_options
from tests.made_up_runs import save_search


@pytest.mark.slow
@pytest.mark.parametrize("with_study", [True, False])
def test_a_last_training_takes_all_frames_and_the_settings_found_before(
    jointseg: CommandLine, store: Store, tmp_path: Path, with_study: bool
) -> None:
    earlier, place = Workspace(tmp_path / "earlier"), Workspace(tmp_path / "last")
    save_search(earlier, [0.1, 0.12])
    if not with_study:
        earlier.crf_settings.write_text(json.dumps({"settings": json.loads(earlier.crf_settings.read_text())["settings"]}))
    frozen = {"network.frozen_until", "data.cache_features"}  # wants weights to begin from
    own = {path: value for path, value in TINY.items() if path not in frozen}
    last = {"data.train_on_validation": True, "search.settings": earlier.crf_settings}
    said = jointseg("run", "--data", str(store.path), "--out", str(place.out), *as_options({**own, **last}))
    assert f"nothing is searched; {'best mean IoU 12.00 %' if with_study else 'crf.theta_alpha, '}" in " ".join(said.split())
    assert {view.frame for view in read_manifest(place.views)} == set(store.train)
    found = json.loads(earlier.crf_settings.read_text())["settings"]["crf.theta_beta"]
    assert describe_final(place.final(STAGES["stage2"]))[1].crf.theta_beta != found
    assert describe_final(place.final(STAGES["stage3"]))[1].crf.theta_beta == found
    report = json.loads((place.out / "report.json").read_text())
    assert report["search"]["taken_from"] == str(earlier.crf_settings)
    assert (place.figures / "search.png").is_file() == with_study
    assert "to the last digit" in jointseg("reproduce", str(place.out / "report.json"))
    assert not (place.search / "unaries").exists()
