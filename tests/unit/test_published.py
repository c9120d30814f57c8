"""Laws of the paper's printed numbers: typed here a second time, as PAPER.md section 5 gives them."""

from __future__ import annotations

import pytest

from jointseg.published import ROW_NAMES, TABLE2, TABLE2_METRICS, TABLE2_RIVALS, TABLE3, TABLE3_METRICS, TABLE3_RIVALS
from jointseg.stages import STAGES

OWN = {
    "unary_sem": "36.0/49.1/66.0",
    "unary_sem_depth": "36.5/49.2/66.6",
    "sem_crf": "38.4/51.2/68.0",
    "sem_crf_plus": "39.2/52.3/68.6",
}
RIVALS = {
    "Deng et al., RGB-D": "–/31.5/63.8",
    "FCN, RGB": "29.2/42.2/60.0",
    "FCN + Depth, RGB-D": "34.0/46.1/65.4",
    "Eigen & Fergus, RGB": "34.1/45.1/65.6",
}
DEPTH = {  # delta1..3, abs rel, sq rel, rmse, rmse log, si std, si variance
    "sem_crf_plus": ".568 .856 .956 .200 .301 .816 .314 – .061",
    "Eigen & Fergus": ".769 .950 .988 .158 .121 .641 .214 .171 –",
    "Liu et al.": ".614 .883 .971 .230 – .824 – – –",
}


def test_table_3_is_the_papers_in_shares_of_one() -> None:
    printed = {
        row: "/".join(f"{100 * metrics[name]:.1f}" if name in metrics else "–" for name in TABLE3_METRICS)
        for row, metrics in {**TABLE3, **TABLE3_RIVALS}.items()
    }
    assert printed == {**OWN, **RIVALS}


def test_table_2_is_the_papers() -> None:
    printed = {
        row: " ".join(f"{metrics[name]:.3f}".lstrip("0") if name in metrics else "–" for name in TABLE2_METRICS)
        for row, metrics in {**TABLE2, **TABLE2_RIVALS}.items()
    }
    assert printed == DEPTH


def test_every_evaluated_row_has_the_papers_name_and_numbers() -> None:
    rows = {stage.row for stage in STAGES.values()}
    assert rows == set(ROW_NAMES) == set(TABLE3)
    assert set(TABLE2) <= rows


@pytest.mark.parametrize("metrics", [*TABLE2.values(), *TABLE2_RIVALS.values()])
def test_the_scale_invariant_error_is_below_the_logarithmic_one(metrics: dict[str, float]) -> None:
    """Its variance is rmse_log squared less the bias squared: what tells a standard deviation from a variance."""
    if "rmse_log" in metrics:
        assert metrics.get("si_log_std", metrics.get("si_log_var", 0.0) ** 0.5) < metrics["rmse_log"]
