"""Laws of the whole config: what it refuses, and that every setting is explained. Not here: values (test_presets.py)."""

import pytest
from pydantic import BaseModel

from jointseg.config import OPERATIONAL, Config, DataConfig, NetworkConfig
from jointseg.settings import SettingsError, flatten, with_overrides


def is_group(field):
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


GROUPS = [Config, *{field.annotation: None for field in Config.model_fields.values() if is_group(field)}]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_every_setting_is_explained_under_its_field(group):
    assert [name for name, field in group.model_fields.items() if not is_group(field) and not field.description] == []


@pytest.mark.parametrize("size", [65, 129, 257, 513, 73])
def test_an_input_of_whole_steps_is_taken(size):
    assert NetworkConfig(input_size=size).input_size == size


@pytest.mark.parametrize("size", [66, 128, 512, 514])
def test_another_input_size_names_those_that_are_allowed(size):
    with pytest.raises(SettingsError, match=rf"^network\.input_size: {size} is not allowed; allowed: 8k \+ 1, such as 65"):
        with_overrides(Config(), {"network.input_size": size})


def test_an_input_below_65_is_refused():
    with pytest.raises(SettingsError, match=r"^network\.input_size: 57 is not allowed; allowed: an integer >= 65"):
        with_overrides(Config(), {"network.input_size": 57})


def test_crops_grow_from_the_smallest_to_the_largest():
    with pytest.raises(SettingsError, match=r"crop_scale_min is 0\.95; allowed: up to crop_scale_max = 0\.9"):
        with_overrides(Config(), {"data.crop_scale_min": 0.95})
    assert DataConfig(crop_scale_min=0.9).crop_scale_max == 0.9
    assert DataConfig(crop_scale_min=0.95, views="online").views == "online", "online crops go up to the whole frame"


def test_a_rule_between_two_settings_names_their_group():
    with pytest.raises(SettingsError) as caught:
        with_overrides(Config(), {"data.crop_scale_min": 0.95})
    assert caught.value.path == "data"


@pytest.mark.parametrize("other", [{"search.fidelity": "finetune"}, {"search.objective": "miou,seconds"}])
def test_trials_stop_early_for_one_objective_of_the_crf_alone(other):
    assert with_overrides(Config(), {"search.early_stop": True}).search.early_stop
    with pytest.raises(SettingsError, match=r"^search\.early_stop: is for objective=miou and fidelity=inference"):
        with_overrides(Config(), {"search.early_stop": True} | other)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("network.width", 0),
        ("network.width", 1e18),
        ("network.dropout", 1),
        ("network.num_depth_bins", 1),
        ("network.variant", "resnet"),
        ("data.validation_frames", 0),
        ("data.crop_scale_max", 1.1),
        ("loss.lambda_semantic", 0),
        ("stage1.lr", 0),
        ("stage2.momentum", 1),
        ("stage3.weight_decay", -1e-4),
        ("stage3.loss_unit", "pixel"),
        ("training.checkpoint_every", 0),
        ("search.trials", 0),
        ("evaluation.crop", "centre"),
        ("evaluation.num_figures", -1),
        ("crf_reference_size", 0),
        ("crf_train_iterations", 0),
    ],
)
def test_values_outside_their_range_are_refused_by_path(path, value):
    with pytest.raises(SettingsError) as caught:
        with_overrides(Config(), {path: value})
    assert caught.value.path == path
    assert "allowed: " in caught.value.problem
    assert repr(value) in caught.value.problem


def test_settings_that_change_no_number_are_settings():
    assert flatten(Config()).keys() > OPERATIONAL
