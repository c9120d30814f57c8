"""Laws of frozen layers and of their features, computed once. Not here: training on Ray, starting weights' files."""

from __future__ import annotations

import copy
import errno
import json
import os
import pickle
import shutil
from collections import Counter

import numpy as np
import pytest
import torch

from jointseg.batches import Place, ViewDataset
from jointseg.checkpoint import save_final
from jointseg.config import Config, NetworkConfig
from jointseg.data import features
from jointseg.data.features import FeatureStore
from jointseg.data.manifest import write_manifest
from jointseg.errors import DiskError, InputError
from jointseg.network.network import build_network
from jointseg.network.table import LARGE_FOV, VARIANTS, Conv, layers_up_to
from jointseg.resuming import begin, resume
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from jointseg.training import train
from pipeline.features import cached_features
from tests.starting_weights import torchvision_vgg16

ALONE = Place()
CONVOLUTIONS = [layer.name for layer in LARGE_FOV.layers if isinstance(layer, Conv)]


@pytest.fixture(scope="module")
def frozen(small):
    return with_overrides(small, {"network.frozen_until": "conv4_3", "network.dropout": 0})


@pytest.fixture
def kept(rooms, views, frozen, tmp_path):
    """The features of every view."""
    network = begin(frozen, STAGES["stage1"], place=ALONE, start=None).model.network
    arrays = features.create(tmp_path, network, size=65, num_views=len(views))
    for layer, values in features.compute(network, rooms, views, frozen, device=ALONE.device).items():
        arrays[layer][:] = values
    (tmp_path / features.DESCRIPTION).write_text(json.dumps(features.stamp(network, frozen, views, rooms)))
    return FeatureStore.open(tmp_path)


def train_on(run, rooms, views, **options):
    reports = []
    train(run, rooms, views, place=ALONE, report=reports.append, **options)
    return [report.metrics["loss/total"] for report in reports]


def picture(batch=2, size=65):
    return torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_layer_is_computed_from_all_before_it_in_its_branch_and_in_the_branches_that_it_reads():
    assert layers_up_to(VARIANTS["vgg16_msc"], "conv2_1") == ["conv1_1", "conv1_2", "pool1", "conv2_1"]
    assert layers_up_to(VARIANTS["table1_literal"], "conv3-1") == ["conv2-1", "conv2-2", "pool2", "conv3-1"]
    assert layers_up_to(VARIANTS["vgg16_msc"], "conv9_9") == []


@pytest.mark.parametrize(
    ("variant", "until", "read"),
    [
        ("vgg16_msc", "conv4_3", ("pool1", "pool2", "pool3", "conv4_3")),
        ("vgg16_msc", "pool2", ("pool1", "pool2")),
        ("vgg16_msc", "drop7", ("pool1", "pool2", "pool3", "drop7")),
        ("vgg16_msc", "data_conv2", ("data_conv2",)),
        ("deeplab_msc", "conv5_3", ("pool1", "pool2", "pool3", "pool4", "conv5_3")),
        ("table1_literal", "conv4-2", ("pool2", "pool3", "conv4-2")),
    ],
)
@pytest.mark.parametrize("recompute", [False, True])
def test_scores_from_kept_features_are_those_from_the_image(variant, until, read, recompute):
    config = NetworkConfig(variant=variant, width=0.0625, input_size=65, frozen_until=until, dropout=0)
    network = build_network(config, seed=0)
    network.recompute = recompute
    kept = network.frozen_features(picture())
    assert network.frozen_outputs() == tuple(kept) == read
    whole, from_kept = network(picture()), network(picture(), features=kept)
    assert torch.equal(whole.logits, from_kept.logits)
    assert torch.equal(whole.depth_logits, from_kept.depth_logits)
    everything_trained = build_network(config.model_copy(update={"frozen_until": None}), seed=0)
    assert torch.equal(everything_trained(picture()).logits, whole.logits)


def test_nothing_drops_out_of_frozen_layers_in_training():
    config = NetworkConfig(width=0.0625, input_size=65, frozen_until="fc7", dropout=0.5)
    network = build_network(config, seed=0).train()
    one, other = network.frozen_features(picture()), network.frozen_features(picture())
    assert one["fc7"].any()
    assert torch.equal(one["fc7"], other["fc7"])


def test_recomputing_runs_the_trunk_twice_and_changes_no_gradient():
    gradients, runs = [], []
    for recompute in (False, True):
        network = build_network(NetworkConfig(width=0.0625, input_size=65), seed=0)
        network.recompute = recompute
        torch.manual_seed(3)  # dropout
        runs.append([])
        for name in CONVOLUTIONS:
            network.get_submodule(name).register_forward_hook(lambda *_, own=name: runs[-1].append(own))
        network(picture()).logits.square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    assert [Counter(own) for own in runs] == [Counter(dict.fromkeys(CONVOLUTIONS, times)) for times in (1, 2)]
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


@pytest.mark.parametrize("stage", STAGES)
def test_frozen_layers_keep_their_weights_to_the_bit_and_all_others_learn(rooms, views, frozen, stage):
    run = begin(frozen, STAGES[stage], place=ALONE, start=None)
    before = {name: weight.clone() for name, weight in run.model.network.state_dict().items()}
    train_on(run, rooms, views)
    kept = {name for name, weight in run.model.network.state_dict().items() if torch.equal(weight, before[name])}
    trunk = {f"{name}.{leaf}" for name in layers_up_to(VARIANTS["vgg16_msc"], "conv4_3") for leaf in ("weight", "bias")}
    others = {name for name in before if "depth" in name} if stage == "stage1" else set()
    assert kept - {"mean_bgr"} == (trunk | others) & before.keys()


def test_training_on_kept_features_is_training_on_images_up_to_half_precision(rooms, views, frozen, kept):
    on_images, on_features = (begin(frozen, STAGES["stage2"], place=ALONE, start=None) for _ in range(2))
    losses = train_on(on_images, rooms, views), train_on(on_features, rooms, views, features=kept)
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert losses[1] != losses[0], "the features were not used"


def test_a_run_on_kept_features_goes_on_bit_for_bit(rooms, views, frozen, kept, tmp_path):
    left_alone = begin(frozen, STAGES["stage1"], place=ALONE, start=None)
    reports = []

    def report(one):
        reports.append(one)
        if one.step == 2:
            one.save(tmp_path / "checkpoint")

    train(left_alone, rooms, views, place=ALONE, report=report, features=kept)
    resumed = resume(frozen, STAGES["stage1"], tmp_path / "checkpoint", place=ALONE)
    train_on(resumed, rooms, views, features=kept)
    weights = left_alone.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_features_go_by_the_views_row_and_travel_to_other_processes(rooms, views, frozen, kept):
    dataset = ViewDataset(rooms, views, frozen, pickle.loads(pickle.dumps(kept)))
    network = begin(frozen, STAGES["stage1"], place=ALONE, start=None).model.network
    for visit in (0, 7, len(views) + 3):
        sample, found = dataset[visit]
        expected = network.frozen_features(sample.image[None])
        for layer, values in expected.items():
            torch.testing.assert_close(found[layer].float(), values[0], rtol=1e-3, atol=1e-4)


def test_the_stamp_changes_with_whatever_the_features_depend_on(rooms, views, frozen):
    def stamp(config: Config, listed=views):
        network = begin(config, STAGES["stage1"], place=ALONE, start=None).model.network
        return features.stamp(network, config, listed, rooms)

    same = stamp(with_overrides(frozen, {"stage1.lr": 5e-3, "network.dropout": 0.3}))
    assert same == stamp(frozen)
    changes = [{"seed": 1}, {"network.frozen_until": "conv4_2"}, {"network.input_size": 129}, {"network.resize": "stretch"}]
    changes.append({"training.precision": "bfloat16"})
    others = [stamp(with_overrides(frozen, change)) for change in changes] + [stamp(frozen, views[1:])]
    assert same not in others


def test_the_stamp_is_of_these_frames_and_of_what_is_taken_off_the_image(rooms, views, frozen):
    network = begin(frozen, STAGES["stage1"], place=ALONE, start=None).model.network
    before = features.stamp(network, frozen, views, rooms)
    others = copy.copy(rooms)
    others.digest = "0" * 64
    assert features.stamp(network, frozen, views, others) != before
    network.mean_bgr.add_(1)
    assert features.stamp(network, frozen, views, rooms) != before


@pytest.mark.usefixtures("last_share_first")
def test_features_are_computed_again_for_other_weights_and_where_they_are_damaged_and_else_kept(
    rooms, views, small, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.features.VIEWS_A_SHARE", 4)
    write_manifest(views, tmp_path / "views", seeds={}, store_digest=rooms.digest)
    folder, done = tmp_path / "features", []

    def computed(seed):
        done.clear()
        config = with_overrides(small, {"network.frozen_until": "pool1", "seed": seed})
        no_final = tmp_path / "stage1" / "final"
        options = {"store": rooms.path, "views": tmp_path / "views", "folder": folder, "say": print}
        cached_features(config, no_final, progress=done.append, **options)
        return done[-1] if done else 0

    assert [computed(seed) for seed in (3, 3, 4)] == [len(views), 0, len(views)]
    assert all(own.any() for own in np.load(folder / "pool1.npy"))
    (folder / "pool1.npy").write_bytes(b"")
    assert [computed(4), computed(4)] == [len(views), 0]


@pytest.mark.usefixtures("last_share_first")
def test_once_stage_1_has_ended_features_are_those_of_its_trunk_whatever_became_of_the_starting_weights(
    rooms, views, frozen, fit, tmp_path
):
    file, final = tmp_path / "vgg16.pth", tmp_path / "final"
    torch.save(torchvision_vgg16(frozen.network.width), file)
    config = with_overrides(frozen, {"network.weights": str(file), "network.unit_features": True, "stage1.ema": 0.9})
    write_manifest(views, tmp_path / "views", seeds={}, store_digest=rooms.digest)
    done = []

    def computed():
        done.clear()
        options = {"store": rooms.path, "views": tmp_path / "views", "folder": tmp_path / "features"}
        cached_features(config, final, **options, progress=done.append, say=print)
        return bool(done)

    assert [computed(), computed()] == [True, False]
    fit(begin(config, STAGES["stage1"], place=ALONE, start=None), save_to=tmp_path)
    save_final(final, tmp_path / "4")
    torch.save(torchvision_vgg16(frozen.network.width, seed=1), file)
    assert not computed()
    file.unlink()
    assert not computed()
    shutil.rmtree(tmp_path / "features")
    assert computed()
    stage2 = begin(config, STAGES["stage2"], place=ALONE, start=final)
    train_on(stage2, rooms, views, features=FeatureStore.open(tmp_path / "features"))
    assert stage2.step == 4


def test_features_of_another_trunk_than_the_models_are_not_trained_on(rooms, views, frozen, kept):
    other = begin(with_overrides(frozen, {"seed": 1}), STAGES["stage1"], place=ALONE, start=None)
    with pytest.raises(InputError, match=rf"^{kept.path}: features of other weights than the frozen layers have"):
        train_on(other, rooms, views, features=kept)
    assert other.step == 0


def test_shares_come_back_to_their_rows_and_no_task_writes_where_another_does(rooms, views, frozen, tmp_path, monkeypatch):
    """Over NFS a page that two machines write keeps what one of them wrote."""
    write_manifest(views, tmp_path / "views", seeds={}, store_digest=rooms.digest)
    folder = tmp_path / "features"

    def written():
        return {path.name: path.read_bytes() for path in tmp_path.rglob("*.npy")}

    def shared_out(load, shares, *, config, say):
        work = load(torch.device("cpu"))
        for place in reversed(range(len(shares))):
            before = written()
            found = work(shares[place])
            assert written() == before
            yield place, pickle.loads(pickle.dumps(found))

    monkeypatch.setattr("pipeline.features.shared_out", shared_out)
    monkeypatch.setattr("pipeline.features.VIEWS_A_SHARE", 5)
    options = {"store": rooms.path, "views": tmp_path / "views", "folder": folder, "progress": lambda _: None, "say": print}
    kept = cached_features(frozen, tmp_path / "final", **options)
    network = begin(frozen, STAGES["stage1"], place=ALONE, start=None).model.network
    expected = features.compute(network, rooms, views, frozen, device=ALONE.device)
    assert len(views) % 5
    for row in range(len(views)):
        assert all(np.array_equal(values, expected[layer][row]) for layer, values in kept.row(row).items())


@pytest.mark.usefixtures("last_share_first")
def test_a_disk_that_fills_up_before_features_are_kept_is_named_and_leaves_nothing(rooms, views, frozen, tmp_path, monkeypatch):
    def full(descriptor, num_bytes):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("jointseg.mapped.fallocate", full)
    write_manifest(views, tmp_path / "views", seeds={}, store_digest=rooms.digest)
    folder = tmp_path / "features"
    options = {"store": rooms.path, "views": tmp_path / "views", "folder": folder, "progress": lambda _: None, "say": print}
    with pytest.raises(DiskError, match=rf"^{folder}: cannot be written: No space left on device$"):
        cached_features(frozen, tmp_path / "final", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["views"]


def test_features_that_half_precision_cannot_hold_are_refused(rooms, views, frozen):
    network = begin(frozen, STAGES["stage1"], place=ALONE, start=None).model.network
    with torch.no_grad():
        network.get_submodule("conv4_3").weight.mul_(1e9)
    with pytest.raises(InputError, match=r"data\.cache_features: layer conv4_3 on frame \d+ reaches .* half precision"):
        features.compute(network, rooms, views[:1], frozen, device=ALONE.device)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network.frozen_until": "conv9"}, r"network\.frozen_until: vgg16_msc has no layer 'conv9'; allowed: conv1_1, "),
        ({"data.color_jitter": 0.2}, r"data\.color_jitter: 0.2 needs data\.views=online"),
        ({"data.cache_features": True}, r"data\.cache_features: needs network\.frozen_until"),
        ({"data.cache_features": True, "network.frozen_until": "conv4_3", "data.views": "online"}, "data.views=offline"),
    ],
)
def test_what_cannot_be_frozen_kept_or_coloured_is_refused(changes, said):
    with pytest.raises(InputError, match=said):
        with_overrides(Config(), changes)


def test_no_features_is_said_by_name(tmp_path):
    with pytest.raises(InputError, match=rf"{tmp_path}: no features"):
        FeatureStore.open(tmp_path)


def test_what_is_damaged_is_said_by_name(kept):
    path = kept.path / "pool2.npy"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(InputError, match=rf"{path}: missing or cut short: .*; remove {kept.path} to compute features again"):
        FeatureStore.open(kept.path)
    (kept.path / features.DESCRIPTION).write_text('{"layers": [')
    assert features.description(kept.path) is None
    with pytest.raises(InputError, match=rf"{kept.path}: no features"):
        FeatureStore.open(kept.path)
