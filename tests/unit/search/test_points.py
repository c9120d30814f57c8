"""Laws of the points that are tried: those tried first, grids. Not here: what is drawn from (test_spaces.py), by whom
(test_samplers.py).
"""

from __future__ import annotations

import json

import pytest

from jointseg.crf.settings import CrfSettings
from jointseg.settings import flatten, with_overrides
from pipeline.study.grid import grid
from pipeline.study.spaces import load_space, start_points
from tests.own_spaces import WEIGHTS, config_with, fixed, refusal, space_named

# The points tried first


def points(**search):
    config = config_with(**search)
    return start_points(load_space(config), config)


def test_the_papers_point_is_first_and_ones_own_is_second(tmp_path):
    (tmp_path / "start.json").write_text(json.dumps({"settings": {"crf.w_depth": 2.5}}))
    first, second = points(space="crf_weights", start=str(tmp_path / "start.json"))
    assert first == (WEIGHTS, {path.replace(".", "/"): value for path, value in WEIGHTS.items()}, True)
    assert second[0] == WEIGHTS | {"crf.w_depth": 2.5}


def test_what_is_searched_begins_at_the_papers_values_whatever_the_runs_own_are(tmp_path):
    """And what a start does not hold is the paper's too."""
    (tmp_path / "start.json").write_text('{"crf.w_depth": 2.5}')
    config = config_with(space="crf_weights", start=str(tmp_path / "start.json"))
    config = with_overrides(config, {"crf.w_depth": 9.0, "crf.w_smoothness": 5.0})
    first, second = start_points(load_space(config), config)
    assert (first[0], second[0]) == (WEIGHTS, WEIGHTS | {"crf.w_depth": 2.5})


def test_a_start_may_lie_outside_the_ranges(tmp_path):
    (tmp_path / "start.json").write_text('{"crf.w_depth": 400}')
    point, _, inside = points(space="crf_weights", start=str(tmp_path / "start.json"))[1]
    assert point["crf.w_depth"] == 400
    assert not inside


def test_the_papers_value_need_not_be_among_the_choices(own_file):
    text = fixed("{'crf/num_iterations': CategoricalDistribution([5, 15])}")
    assert points(space=own_file(text)) == [({"crf.num_iterations": 10}, {"crf/num_iterations": 10}, False)]


def test_a_start_says_nothing_of_what_it_does_not_hold(tmp_path):
    (tmp_path / "start.json").write_text('{"crf.w_depth": 2.5}')
    config = with_overrides(config_with(space="crf_weights", start=str(tmp_path / "start.json")), {"crf.num_iterations": 5})
    assert start_points(load_space(config), config)[1][0] == WEIGHTS | {"crf.w_depth": 2.5}


def test_a_start_without_depth_kernel_is_one_in_the_conditional_space(tmp_path):
    found = flatten(CrfSettings(w_depth=0))
    (tmp_path / "start.json").write_text(json.dumps({"settings": {f"crf.{name}": value for name, value in found.items()}}))
    point, params, inside = points(space="depth_or_not", start=str(tmp_path / "start.json"))[1]
    assert (point["crf.w_depth"], params["depth_kernel"], inside) == (0.0, "off", True)
    assert "crf.theta_zeta" not in point


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"crf.theta_zeta": 0.5}', "crf.theta_zeta is 0.5 there, and 0.2 in this run; the space tune_spaces/crf_weights.py"),
        ('{"crf.w_dept": 1}', "crf.w_dept is not a setting of the CRF; allowed: crf.theta_alpha, "),
        ('{"seed": 1}', "seed is not a setting of the CRF"),
        ('{"crf/w_depth": 1}', "crf/w_depth is not a setting of the CRF; allowed: crf.theta_alpha, "),
        ("{}", "holds no settings"),
        ('{"crf.w_depth": -1}', "crf.w_depth: -1 is not allowed"),
        ("[", "no JSON: "),
        ("[4]", "holds no settings"),
        ("[" * 100_000, "no JSON: maximum recursion depth exceeded"),
    ],
)
def test_a_start_that_is_no_point_is_refused(tmp_path, text, said):
    path = tmp_path / "start.json"
    path.write_text(text)
    message = refusal(points, space="crf_weights", start=str(path))
    assert str(path) in message
    assert said in message


def test_a_start_that_is_not_there_is_refused(tmp_path):
    path = tmp_path / "none.json"
    said = f"{path}: No such file or directory; allowed: a search's crf_settings.json, or JSON of values by path"
    assert refusal(points, space="crf_weights", start=str(path)).startswith(said)


# Grids


def test_a_grid_has_every_level_of_every_number_and_both_ends():
    space = space_named("crf_weights")
    found = grid(space, levels=3, seed=0)
    assert len(found) == 27 == len({tuple(point.values()) for point in found})
    for path, own in space.distributions.items():
        levels = sorted({point[path] for point in found})
        assert (levels[0], levels[2]) == (own.low, own.high)
        assert levels[1] == pytest.approx((own.low * own.high) ** 0.5)


def test_a_grid_takes_every_choice_and_no_whole_number_twice(own_file):
    text = fixed(
        "{'crf/num_iterations': IntDistribution(1, 2), 'crf/pairwise': CategoricalDistribution(['crfrnn', 'hadamard'])}"
    )
    assert len(grid(space_named(own_file(text)), levels=5, seed=0)) == 4


def test_a_grid_keeps_to_the_steps(own_file):
    text = fixed("{'crf/num_iterations': IntDistribution(5, 15, step=5), 'crf/w_depth': FloatDistribution(1, 2, step=0.5)}")
    found = grid(space_named(own_file(text)), levels=4, seed=0)
    assert {point["crf/num_iterations"] for point in found} == {5, 10, 15}
    assert {point["crf/w_depth"] for point in found} == {1.0, 1.5, 2.0}


def test_a_grid_over_a_range_of_one_number_has_it_once(own_file):
    text = fixed("{'crf/num_iterations': IntDistribution(1, 2), 'crf/w_depth': FloatDistribution(4, 4)}")
    found = grid(space_named(own_file(text)), levels=3, seed=0)
    assert sorted(tuple(point.values()) for point in found) == [(1, 4.0), (2, 4.0)]


def test_a_grids_order_is_the_seeds():
    space = space_named("crf_weights")
    assert grid(space, levels=2, seed=0) == grid(space, levels=2, seed=0)
    assert grid(space, levels=2, seed=0) != grid(space, levels=2, seed=1)
