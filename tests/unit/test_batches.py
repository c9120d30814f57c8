"""Laws of what a worker is fed: which pictures, with which depth and colours, in which order, whoever cuts them.

Not here: how one is cut (test_views.py).
"""

from __future__ import annotations

import resource
import shutil
from functools import partial

import numpy as np
import pytest
import torch

from jointseg.batches import Place, ViewDataset, batches, visits_of
from jointseg.config import StageConfig
from jointseg.data.augment import coloured, view_of_visit
from jointseg.data.store import Store
from jointseg.data.views import make_views, render_view
from jointseg.errors import DiskError, InputError
from jointseg.settings import with_overrides

ALONE = Place()


@pytest.fixture(scope="module")
def views(rooms, small):
    return make_views(rooms.train, small.data)


TENSORS = ("image", "labels", "depth")


def seen(rooms, views, config, *, place=ALONE, step=0):
    dataset = ViewDataset(rooms, views, config)
    workers = config.training.loader_workers
    return list(batches(dataset, config.stage1, place, first_step=step, loader_workers=workers))


def test_two_ranks_see_what_one_rank_with_twice_the_batch_sees(rooms, views, small):
    together = seen(rooms, views, with_overrides(small, {"stage1.batch_size": 4}))
    ranks = [seen(rooms, views, small, place=Place(rank=rank, world_size=2)) for rank in (0, 1)]
    assert len(together) == 4
    for whole, *shares in zip(together, *ranks, strict=True):
        for name in TENSORS:
            assert torch.equal(getattr(whole, name), torch.cat([getattr(share, name) for share in shares]))


def test_every_view_is_seen_once_a_round_in_the_manifests_order(rooms, views, small):
    dataset = ViewDataset(rooms, views, small)
    one_round = with_overrides(small, {"stage1.iterations": len(views) + 2, "stage1.batch_size": 1})
    batch_of = seen(rooms, views, one_round)
    for index in (0, 1, len(views) - 1, len(views), len(views) + 1):
        assert torch.equal(batch_of[index].image[0], dataset[index % len(views)][0].image)


def test_a_resumed_run_sees_the_steps_that_are_left(rooms, views, small):
    whole, rest = seen(rooms, views, small), seen(rooms, views, small, step=3)
    assert len(rest) == 1
    assert torch.equal(rest[0].image, whole[3].image)


def test_who_cuts_the_views_changes_nothing(rooms, views, small):
    elsewhere = seen(rooms, views, with_overrides(small, {"training.loader_workers": 1}))
    for one, other in zip(seen(rooms, views, small), elsewhere, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in TENSORS)


def test_looking_at_batches_does_not_move_the_random_state_of_dropout(rooms, views, small):
    before = torch.get_rng_state()
    seen(rooms, views, small)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("ranks", "passes", "size"), [(1, 1, 12), (2, 1, 6), (1, 3, 4), (2, 3, 2), (3, 2, 2)])
def test_a_step_sees_the_same_pictures_however_they_are_shared_out(ranks, passes, size):
    settings = StageConfig(batch_size=size, accumulate=passes, iterations=5)
    shares = [visits_of(Place(rank, ranks), settings, steps=range(2, 5)) for rank in range(ranks)]
    for step in range(3):
        seen = [visit for share in shares for visits in share[step * passes : (step + 1) * passes] for visit in visits]
        assert sorted(seen) == list(range((step + 2) * 12, (step + 3) * 12))


def test_online_batches_do_not_depend_on_who_cuts_them_or_where_training_began(rooms, views, small):
    config = with_overrides(small, {"data.views": "online", "data.color_jitter": 0.3})
    dataset = ViewDataset(rooms, views, config)

    def seen(**options):
        return [batch.image for batch in batches(dataset, config.stage1, ALONE, **options)]

    whole = seen(first_step=0, loader_workers=0)
    assert all(torch.equal(*pair) for pair in zip(whole, seen(first_step=0, loader_workers=1), strict=True))
    assert all(torch.equal(*pair) for pair in zip(whole[3:], seen(first_step=3, loader_workers=0), strict=True))
    assert not torch.equal(whole[0], whole[2])


@pytest.mark.parametrize("changes", [{"data.num_crops": 0}, {"data.num_crops": 7}, {"data.crop_scale_max": 0.6}])
def test_online_visits_do_not_depend_on_what_offline_views_are_cut_by(rooms, small, changes):
    def visits(config):
        dataset = ViewDataset(rooms, make_views(rooms.train, config.data), config)
        return [dataset[visit][0].image for visit in range(2 * len(rooms.train))]

    online = with_overrides(small, {"data.views": "online"})
    pairs = zip(visits(online), visits(with_overrides(online, changes)), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_online_visits_are_of_the_frames_that_the_list_names_in_whatever_order(rooms, small):
    online = with_overrides(small, {"data.views": "online"})
    listed = make_views(rooms.train, small.data)
    forth, back = (ViewDataset(rooms, views, online) for views in (listed, listed[::-1]))
    assert forth.numbers == back.numbers == rooms.train
    assert all(torch.equal(forth[visit][0].image, back[visit][0].image) for visit in range(len(rooms.train)))


@pytest.mark.parametrize("how", ["offline", "online"])
@pytest.mark.parametrize("depth", ["raw", "filled"])
def test_the_depth_that_is_asked_for_is_trained_on(rooms, views, small, how, depth):
    config = with_overrides(small, {"data.views": how, "data.train_depth": depth})
    dataset = ViewDataset(rooms, views, config)
    for visit in range(6):
        view = view_of_visit(dataset.numbers, visit, config.data)[0] if how == "online" else views[visit]
        expected = render_view(rooms.frame(view.frame), view, network=config.network, depth=depth)
        assert torch.equal(dataset[visit][0].depth, expected.depth)


def test_colours_change_where_that_is_asked_for_and_labels_stay(rooms, views, small):
    plain = with_overrides(small, {"data.views": "online"})
    jittered = with_overrides(plain, {"data.color_jitter": 0.4})
    as_they_are, changed = (ViewDataset(rooms, views, config) for config in (plain, jittered))
    for visit in range(4):
        one, other = as_they_are[visit][0], changed[visit][0]
        view, colour = view_of_visit(changed.numbers, visit, jittered.data)
        frame = rooms.frame(view.frame)
        recoloured = render_view(frame, view, network=plain.network, depth="raw", recolour=partial(coloured, colour=colour))
        assert torch.equal(other.image, recoloured.image)
        assert not torch.equal(other.image, one.image)
        assert torch.equal(other.labels, one.labels)


class Filling(ViewDataset):
    """From its second picture on its process may write no more than a thousand bytes into a file, or into shared memory."""

    def __getitem__(self, index):
        if index:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        return super().__getitem__(index)


def test_shared_memory_that_is_full_is_said_and_not_waited_for(rooms, views, small):
    dataset = Filling(rooms, views, small)
    with pytest.raises(RuntimeError, match=r"unable to (allocate shared memory|resize file)"):
        list(batches(dataset, small.stage1, ALONE, first_step=0, loader_workers=1))


@pytest.mark.parametrize("loader_workers", [0, 1])
def test_a_label_that_is_none_is_one_line_whoever_cuts_the_views(rooms, views, small, tmp_path, loader_workers):
    store = shutil.copytree(rooms.path, tmp_path / "store")
    labels = np.load(store / "labels.npy", mmap_mode="r+")
    labels[...] = 77
    labels.flush()
    with pytest.raises(InputError, match=rf"^{store}/labels.npy: frame \d has a label 77; .*$"):
        seen(Store.open(store), views, with_overrides(small, {"training.loader_workers": loader_workers}))


class Failing(ViewDataset):
    """Its disk does."""

    def __getitem__(self, index):
        raise DiskError("image.npy: cannot be read: Input/output error")


@pytest.mark.parametrize("loader_workers", [0, 1])
def test_what_a_disk_did_stays_that_whoever_cuts_the_views(rooms, views, small, loader_workers):
    with pytest.raises(DiskError, match=r"^image.npy: cannot be read: Input/output error$"):
        list(batches(Failing(rooms, views, small), small.stage1, ALONE, first_step=0, loader_workers=loader_workers))
