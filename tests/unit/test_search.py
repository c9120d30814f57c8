"""Laws of what is searched and what was found. Not here: the trials, and the order they are asked in (test_study.py)."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import optuna
import pyarrow.parquet as pq
import pytest
import torch

import tune_spaces
from jointseg.checkpoint import Checkpoint, load_final, save_checkpoint, save_final
from jointseg.crf.settings import CrfSettings
from jointseg.errors import InputError
from jointseg.presets import demo
from jointseg.settings import differences, with_overrides
from pipeline.search import (
    best_so_far,
    flatten_point,
    load_settings,
    load_space,
    paper_point,
    point_key,
    save_result,
)

SPACES = ("crf", "crf_bandwidths", "crf_weights")
WEIGHTS = {"crf/w_appearance": 7.0, "crf/w_depth": 4.0, "crf/w_smoothness": 3.0}
BANDWIDTHS = {
    "crf/theta_alpha": 160.0,
    "crf/theta_beta": 3.0,
    "crf/theta_gamma": 50.0,
    "crf/theta_zeta": 0.2,
    "crf/theta_tau": 3.0,
}


def space_named(name):
    return load_space(with_overrides(demo(), {"search.space": name}))


@pytest.fixture
def own_space(tmp_path, monkeypatch):
    """Puts a file of the user's among tune_spaces/."""

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setattr(tune_spaces, "__path__", [*tune_spaces.__path__, str(tmp_path)])
        monkeypatch.delitem(sys.modules, f"tune_spaces.{name}", raising=False)
        monkeypatch.delattr(tune_spaces, name, raising=False)
        return name

    return write


def refusal(act, *arguments):
    with pytest.raises(InputError) as caught:
        act(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Spaces


@pytest.mark.parametrize(
    ("name", "point"), [("crf", WEIGHTS | BANDWIDTHS), ("crf_weights", WEIGHTS), ("crf_bandwidths", BANDWIDTHS)]
)
def test_a_space_searches_what_it_is_named_for_and_the_papers_point_is_the_papers(name, point):
    assert paper_point(space_named(name)) == point


@pytest.mark.parametrize("name", SPACES)
def test_the_papers_point_lies_inside_every_space(name):
    space = space_named(name)
    for path, value in paper_point(space).items():
        assert space[path].low < value < space[path].high, path


@pytest.mark.parametrize("name", SPACES)
def test_every_point_of_a_space_is_a_config(name):
    space = space_named(name)
    corners = [
        {path: bound(distribution) for path, distribution in space.items()} for bound in (lambda d: d.low, lambda d: d.high)
    ]
    sampler = optuna.samplers.RandomSampler(seed=0)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler)
    drawn = [study.ask(space).params for _ in range(20)]
    for point in [*corners, *drawn]:
        settings = {path.replace("/", "."): value for path, value in point.items()}
        changed = with_overrides(demo(), settings)
        assert set(differences(demo(), changed)) <= set(settings)


def test_an_unknown_space_lists_the_known_ones():
    message = refusal(space_named, "nope")
    assert message == "search.space: 'nope' is not in tune_spaces/; allowed: crf, crf_bandwidths, crf_weights"


@pytest.mark.parametrize("path", ["crf/theta_omega", "crf.theta_beta", "stage1/lr", "theta_beta"])
def test_a_space_may_only_name_settings_of_the_crf(own_space, path):
    text = f"from optuna.distributions import FloatDistribution\ndef space(): return {{{path!r}: FloatDistribution(0.1, 1)}}"
    message = refusal(space_named, own_space("wrong", text))
    assert message.startswith(f"tune_spaces/wrong.py: {path!r} is not a setting of the CRF; allowed: crf/theta_alpha,")


def test_a_space_without_the_function_is_named(own_space):
    assert refusal(space_named, own_space("empty", "")) == "tune_spaces/empty.py: has no function space()"


def test_a_space_of_the_users_own_is_found_and_may_be_of_any_kind(own_space):
    text = (
        "from optuna.distributions import CategoricalDistribution, IntDistribution\n"
        "def space():\n"
        "    forms = CategoricalDistribution(['crfrnn', 'hadamard'])\n"
        "    return {'crf/num_iterations': IntDistribution(0, 20), 'crf/pairwise': forms}"
    )
    assert paper_point(space_named(own_space("own", text))) == {"crf/num_iterations": 10, "crf/pairwise": "crfrnn"}


# Points and rows


def test_rays_nested_point_becomes_config_paths():
    assert flatten_point({"crf": {"theta_beta": 3.0, "w_depth": 4.0}, "seed": 1}) == {
        "crf.theta_beta": 3.0,
        "crf.w_depth": 4.0,
        "seed": 1,
    }
    assert flatten_point({}) == {}


def test_a_points_key_is_that_of_its_values_in_any_order():
    assert point_key({"crf.w_depth": 4.0, "crf.theta_beta": 3.0}) == point_key({"crf.theta_beta": 3.0, "crf.w_depth": 4.0})
    assert point_key({"crf.theta_beta": 0.1 + 0.2}) != point_key({"crf.theta_beta": 0.3})


def test_a_points_key_survives_the_log():
    point = {"crf.theta_beta": 0.1 + 0.2, "crf.theta_zeta": 1e-5 / 3}
    assert point_key(json.loads(json.dumps(point))) == point_key(point)


def test_the_best_so_far_only_rises_and_passes_over_failures():
    rows = [{"score": score} for score in (None, 0.25, 0.125, None, 0.5)]
    assert best_so_far(rows) == [-math.inf, 0.25, 0.25, 0.25, 0.5]
    assert best_so_far([]) == []


# Results


@pytest.fixture
def final(tmp_path):
    """A finished stage's weights, as far as a search looks at them."""
    save_checkpoint(tmp_path / "last", Checkpoint("stage2", 1, demo(), {"weight": torch.zeros(1)}, {}, []))
    save_final(tmp_path / "final", tmp_path / "last")
    return tmp_path / "final"


ROWS = [
    {"trial": 0, "state": "finished", "score": 0.25, "crf.theta_beta": 3.0},
    {"trial": 1, "state": "failed", "score": None, "crf.theta_beta": 4.0},
    {"trial": 2, "state": "finished", "score": 0.5, "crf.theta_beta": 6.5},
    {"trial": 3, "state": "finished", "score": float("nan"), "crf.theta_beta": 8.0},
    {"trial": 4, "state": "finished", "score": 0.5, "crf.theta_beta": 7.5},
]


def saved(rows, final, folder: Path):
    trials, settings = folder / "search" / "trials.parquet", folder / "crf_settings.json"
    save_result(rows, demo(), trials=trials, settings=settings, start=final, subset="the digest of the subset")
    return trials, settings


def test_the_best_trial_is_the_result_and_all_trials_are_kept(final, tmp_path):
    trials, settings = saved(ROWS, final, tmp_path)
    found = json.loads(settings.read_text())
    assert found == {
        "settings": {f"crf.{name}": value for name, value in CrfSettings(theta_beta=6.5).model_dump().items()},
        "score": 0.5,
        "paper_score": 0.25,
        "trial": 2,
        "trials": 5,
        "seed": 0,
        "frames": "the digest of the subset",
        "checkpoint": load_final(final)[1],
    }
    assert pq.read_table(trials).column_names == ["trial", "state", "score", "crf.theta_beta"]
    assert str(pq.read_table(trials).to_pylist()) == str(ROWS)
    assert [path.name for path in trials.parent.iterdir()] == ["trials.parquet"]


def test_stage_3_takes_the_settings_that_were_found_and_keeps_the_rest(final, tmp_path):
    _, settings = saved(ROWS, final, tmp_path)
    config = with_overrides(demo(), {"crf.theta_beta": 9, "seed": 4})
    assert differences(demo(), load_settings(settings, config)) == {"seed": (0, 4), "crf.theta_beta": (3.0, 6.5)}


def test_a_search_in_which_every_trial_failed_is_no_result(final, tmp_path):
    assert refusal(saved, ROWS[1:2], final, tmp_path) == "search: none of 1 trials has a score"
    assert not (tmp_path / "crf_settings.json").exists()


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"{}", b'{"settings": 4}', b'{"settings": [4]}', b"\xff\xfe", b'{"settings": {"crf.theta_beta": -1}}',
     b'{"settings": {"crf.theta_bta": 1}}'],
)  # fmt: skip
def test_what_is_no_result_of_a_search_is_refused_by_file(tmp_path, text):
    path = tmp_path / "crf_settings.json"
    path.write_bytes(text)
    assert refusal(load_settings, path, demo()).startswith(f"{path}: ")


def test_a_result_that_is_not_there_is_refused_by_file(tmp_path):
    assert refusal(load_settings, tmp_path / "crf_settings.json", demo()).startswith(f"{tmp_path / 'crf_settings.json'}: ")
