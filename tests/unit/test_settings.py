"""Laws of settings: checked at birth, frozen, overridden by path. Not here: which settings there are (test_config.py)."""

import json
import pickle
import re

import pytest
from pydantic import ValidationError

from jointseg.config import Config
from jointseg.crf.settings import CrfSettings
from jointseg.errors import InputError
from jointseg.settings import SettingsError, differences, flatten, parse_override, with_overrides


def message_of(**overrides):
    changes = {path.replace("__", "."): value for path, value in overrides.items()}
    with pytest.raises(SettingsError) as caught:
        with_overrides(Config(), changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_override_changes_its_own_path_and_no_other():
    changed = with_overrides(Config(), {"crf.theta_beta": 4, "seed": 7})
    assert differences(Config(), changed) == {"crf.theta_beta": (3.0, 4.0), "seed": (0, 7)}


def test_an_override_leaves_the_original_as_it_was():
    config = Config()
    with_overrides(config, {"crf.theta_beta": 4})
    assert config == Config()


def test_an_unknown_path_lists_the_known_ones_beside_it():
    message = message_of(crf__theta_bta=4)
    assert message.startswith("crf.theta_bta: unknown setting; known under crf: theta_alpha, theta_beta,")


def test_an_unknown_group_lists_the_groups():
    message = message_of(cfr__theta_beta=4)
    assert message.startswith("cfr.theta_beta: unknown setting; known at the top: preset, seed, network,")


def test_a_path_through_a_single_value_says_so():
    assert "crf.theta_beta is a single value" in message_of(crf__theta_beta__unit=4)


def test_an_empty_path_is_unknown():
    with pytest.raises(SettingsError, match="unknown setting; known at the top: preset"):
        with_overrides(Config(), {"": 4})


def test_a_group_is_not_a_setting():
    message = message_of(crf=4)
    assert message.startswith("crf: names a group, not a setting; its settings: theta_alpha, theta_beta,")


@pytest.mark.parametrize(
    ("path", "value", "allowed"),
    [
        ("crf.theta_beta", -1, "a number > 0"),
        ("crf.theta_beta", "wide", "a number > 0"),
        ("crf.theta_beta", None, "a number > 0"),
        ("crf.theta_beta", float("nan"), "a finite number > 0"),
        ("crf.theta_beta", float("inf"), "a finite number > 0"),
        ("crf.num_iterations", 2.5, "an integer >= 0"),
        ("crf.pairwise", "dense", "'crfrnn' or 'hadamard'"),
        ("training.num_workers", 0, "an integer >= 1"),
        ("data.train_on_validation", "perhaps", "true or false"),
        ("seed", 2**31, "an integer >= 0 and < 2147483648"),
        ("data.source", 4, "path"),
        ("preset", 4, "text"),
        ("network.frozen_until", 4, "text"),
    ],
)
def test_a_bad_value_is_named_with_its_path_and_what_is_allowed(path, value, allowed):
    with pytest.raises(SettingsError) as caught:
        with_overrides(Config(), {path: value})
    message = str(caught.value)
    assert message.startswith(f"{path}: {value!r} is not allowed; allowed: ")
    assert allowed in message
    assert "\n" not in message


@pytest.mark.parametrize("path", ["network.width", "seed", "crf.num_iterations", "training.num_workers", "stage1.lr"])
@pytest.mark.parametrize("value", [True, False])
def test_a_truth_value_is_no_number(path, value):
    with pytest.raises(SettingsError) as caught:
        with_overrides(Config(), {path: value})
    assert re.fullmatch(rf"{path}: {value} is not allowed; allowed: an? (number|integer) >=? \d.*", str(caught.value))


def test_a_truth_value_is_taken_where_one_is_asked_for():
    assert with_overrides(Config(), {"data.train_on_validation": True}).data.train_on_validation is True


def test_a_mistake_in_settings_is_the_users():
    assert issubclass(SettingsError, InputError)


def test_the_error_keeps_path_and_problem_through_pickle():
    error = pickle.loads(pickle.dumps(SettingsError("crf.theta_beta", "too wide")))
    assert (error.path, error.problem, str(error)) == ("crf.theta_beta", "too wide", "crf.theta_beta: too wide")


def test_an_unknown_field_of_a_file_lists_the_known_ones():
    with pytest.raises(SettingsError, match=r"^crf\.theta_bta: unknown setting; known here: theta_alpha, theta_beta,"):
        Config(**{"crf": {"theta_bta": 3}})
    with pytest.raises(SettingsError, match=r"^sead: unknown setting; known here: preset, seed,"):
        Config(sead=3)


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Config().crf.theta_beta = 4


def test_json_brings_back_an_equal_config():
    config = with_overrides(Config(), {"crf.theta_beta": 0.1 + 0.2, "data.source": "some/folder", "stage3.lr": 1e-16})
    assert Config(**json.loads(config.model_dump_json())) == config
    assert Config(**config.model_dump(mode="json")) == config


def test_flat_paths_bring_back_an_equal_config():
    config = with_overrides(Config(), {"crf.theta_beta": 4, "network.weights": "weights.safetensors"})
    flat = flatten(config)
    assert json.loads(json.dumps(flat)) == flat
    assert with_overrides(Config(), flat) == config


def test_equal_settings_have_no_differences():
    assert differences(Config(), Config()) == {}


def test_scaling_the_crf_moves_positions_in_pixels_and_nothing_else():
    changed = differences(CrfSettings(), CrfSettings().scaled(0.5))
    assert changed == {"theta_alpha": (160.0, 80.0), "theta_gamma": (50.0, 25.0), "theta_tau": (3.0, 1.5)}


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("crf.theta_beta=4", ("crf.theta_beta", 4)),
        ("stage1.lr=1e-10", ("stage1.lr", 1e-10)),
        (" crf.theta_beta = 4 ", ("crf.theta_beta", 4)),
        ("crf.pairwise=hadamard", ("crf.pairwise", "hadamard")),
        (" crf.pairwise = hadamard ", ("crf.pairwise", "hadamard")),
        ("data.source=/a=b", ("data.source", "/a=b")),
        ("data.source=null", ("data.source", None)),
        ("data.train_on_validation=true", ("data.train_on_validation", True)),
        ("preset=", ("preset", "")),
    ],
)
def test_an_override_is_json_where_it_is_json_and_text_elsewhere(text, parsed):
    assert parse_override(text) == parsed


@pytest.mark.parametrize("text", ["crf.theta_beta", "crf.theta_beta 4", "=4", " =4", ""])
def test_what_is_no_override_is_refused_with_the_way_to_write_one(text):
    with pytest.raises(SettingsError, match=r"not an override; write PATH=VALUE, such as crf\.theta_beta=4"):
        parse_override(text)


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 100_000], ids=["long", "deep"])
def test_a_value_too_long_or_deep_to_read_is_refused_by_its_setting(value):
    path, value = parse_override("seed=" + value)
    with pytest.raises(SettingsError, match=r"^seed: "):
        with_overrides(Config(), {path: value})
