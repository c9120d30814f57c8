"""Laws of the six views of a frame, of what they are rendered to, and of the list of them on disk."""

from __future__ import annotations

import multiprocessing
import resource
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jointseg.config import DataConfig, NetworkConfig
from jointseg.data.frame import Frame
from jointseg.data.manifest import read_manifest, read_origin, write_manifest
from jointseg.data.nyu import NyuFolder
from jointseg.data.views import (
    MEAN_PIXEL,
    Sample,
    View,
    content_size,
    depth_target,
    draw_validation,
    make_views,
    random_crop,
    render_input,
    render_view,
    scenes_of,
    subset_digest,
)
from jointseg.errors import InputError
from jointseg.labels import VOID
from jointseg.network.network import CAFFE_MEAN_BGR

NETWORK = NetworkConfig(input_size=129)
WHOLE = View(1, "original", 0, 0, 480, 640, zoom=1.0, mirror=False)


@pytest.fixture(scope="module")
def frame(small_nyu: Path) -> Frame:
    with NyuFolder.open(small_nyu) as nyu:
        return nyu.read(1)


def crops(views: tuple[View, ...]) -> dict[int, list[View]]:
    by_frame: dict[int, list[View]] = {}
    for view in views:
        if view.kind == "crop":
            by_frame.setdefault(view.frame, []).append(view)
    return {number: sorted(found, key=lambda v: (v.top, v.left, v.height)) for number, found in by_frame.items()}


# Which views there are


def test_795_frames_have_4770_views_six_each() -> None:
    views = make_views(range(1, 796), DataConfig())
    assert len(set(views)) == len(views) == 4770
    assert Counter(view.kind for view in views) == {"crop": 4 * 795, "original": 795, "mirror": 795}
    assert set(Counter(view.frame for view in views).values()) == {6}


@given(seed=st.integers(0, 2**31 - 1), low=st.floats(0.05, 1), high=st.floats(0.05, 1))
def test_a_crop_lies_inside_keeps_the_aspect_and_its_zoom_is_its_scale(seed: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    config = DataConfig(views_seed=seed, crop_scale_min=low, crop_scale_max=high)
    for view in make_views([1, 2], config):
        assert 0 <= view.top <= 480 - view.height
        assert 0 <= view.left <= 640 - view.width
        assert 3 * view.width == 4 * view.height
        assert view.zoom == 480 / view.height == 640 / view.width
        if view.kind == "crop":
            assert low - 1 / 320 <= 1 / view.zoom <= high + 1 / 320  # the nearest of 160 whole steps


def test_crop_scales_fill_their_range_evenly() -> None:
    scales = [1 / view.zoom for view in make_views(range(1, 796), DataConfig()) if view.kind == "crop"]
    counts, _ = np.histogram(scales, bins=4, range=(0.5, 0.9))
    assert (abs(counts - 795) < 5 * 795**0.5).all()


def test_crops_reach_every_place() -> None:
    draw = np.random.default_rng(0)
    crops = [random_crop(1, draw, scale=(0.993, 0.996)) for _ in range(300)]  # 477 x 636
    assert {crop.top for crop in crops} == {0, 1, 2, 3}
    assert {crop.left for crop in crops} == {0, 1, 2, 3, 4}


def test_leaving_frames_out_changes_no_other_frames_crops() -> None:
    every, some = (crops(make_views(numbers, DataConfig())) for numbers in (range(1, 50), [3, 30, 7]))
    assert some == {number: every[number] for number in (3, 30, 7)}
    assert len({tuple((v.top, v.left) for v in found) for found in every.values()}) == 49


def test_the_seed_decides_the_views_and_their_order() -> None:
    numbers = range(1, 20)
    views = make_views(numbers, DataConfig(views_seed=1))
    assert views == make_views(numbers, DataConfig(views_seed=1))
    other = make_views(numbers, DataConfig(views_seed=2))
    assert crops(views) != crops(other)
    assert [v.frame for v in views] != [v.frame for v in other]
    assert [v.frame for v in views] != sorted(v.frame for v in views)


@pytest.mark.parametrize("changes", [{}, {"num_crops": 0}, {"crop_scale_min": 0.95}, {"views_seed": 3}])
def test_of_views_that_are_drawn_at_each_visit_the_list_names_each_frame_once_and_whole(changes: dict[str, float]) -> None:
    views = make_views((5, 2, 9), DataConfig(views="online", **changes))
    assert views == tuple(replace(WHOLE, frame=number) for number in (2, 5, 9))


def test_validation_frames_are_drawn_from_train_by_the_seed() -> None:
    train = tuple(range(10, 805))
    drawn = draw_validation(train, DataConfig())
    assert list(drawn) == sorted({*drawn} & {*train})
    assert len(drawn) == 100
    assert drawn == draw_validation(train[::-1], DataConfig()) != draw_validation(train, DataConfig(validation_seed=1))


def test_scenes_are_validated_on_whole_or_trained_on() -> None:
    lengths = (29, 2, 1, 9, 5, 5, 3, 3, 1, 1, 1, 1, 8, 6)
    train = [number for run, length in enumerate(lengths) for number in range(100 * run, 100 * run + length)]
    config = DataConfig(validation_frames=40, validation_by="scene")
    drawn = set(draw_validation(train[::-1], config))
    assert len(drawn) == 40
    assert [number for number in drawn if {number - 1, number + 1} & (set(train) - drawn)] == []
    assert len({draw_validation(train, config.model_copy(update={"validation_seed": seed})) for seed in range(9)}) > 3
    with pytest.raises(InputError, match=r"data\.validation_by: 'scene' finds no 40 frames in 1 whole run\(s\) of consecutive"):
        draw_validation(range(1, 60), config)


def test_frames_are_of_the_scene_of_their_neighbours_where_the_config_says_so() -> None:
    by_scene = DataConfig(validation_by="scene")
    assert scenes_of((3, 4, 7, 9, 10, 11), by_scene) == (0, 0, 1, 2, 2, 2)
    assert scenes_of((3, 4, 7), DataConfig()) is None
    assert scenes_of((3, 4, 5), by_scene) is None, "one run says nothing: made-up rooms are numbered without gaps"


def test_some_frame_must_be_left_to_train_on() -> None:
    assert len(draw_validation((4, 5, 9), DataConfig(validation_frames=2))) == 2
    with pytest.raises(InputError, match=r"data\.validation_frames: 3 is not allowed; allowed: up to 2 of the 3 train frames"):
        draw_validation((4, 5, 9), DataConfig(validation_frames=3))


def test_a_subset_is_named_by_its_frames_seed_and_store() -> None:
    name = subset_digest((1, 2, 3), 0, "abc")
    assert name == subset_digest([3, 1, 2], 0, "abc")
    assert (
        len({name, subset_digest((1, 2), 0, "abc"), subset_digest((1, 2, 3), 1, "abc"), subset_digest((1, 2, 3), 0, "b")}) == 4
    )


# Depth targets


def targets(metres: list[float]) -> list[float]:
    return depth_target(torch.tensor(metres), depth_bin=0.14, num_bins=50).tolist()


def test_every_half_bin_rounds_up_in_float32() -> None:
    halves = [(k - 0.5) * 0.14 for k in range(1, 51)]
    assert targets(halves) == pytest.approx([k * 0.14 for k in range(1, 51)])
    assert targets([half - 1e-5 for half in halves[1:]]) == pytest.approx([k * 0.14 for k in range(1, 50)])


def test_every_bin_is_its_own_target_and_ends_are_clipped() -> None:
    bins = (torch.arange(1, 51) * 0.14).tolist()
    assert targets(bins) == pytest.approx(bins)
    assert targets([0.07, 0.001, 7.0, 7.2, 9.99]) == pytest.approx([0.14, 0.14, 7.0, 7.0, 7.0])


def test_a_missing_depth_stays_missing() -> None:
    assert targets([0.0, float("nan"), float("inf"), -1.0]) == [0, 0, 0, 0]


# Rendering


def test_the_content_of_513_is_385_high_or_all_of_it() -> None:
    assert content_size(480, 640, 513, "fit") == (385, 513)
    assert content_size(480, 640, 513, "stretch") == (513, 513)
    assert content_size(640, 480, 513, "fit") == (513, 385)
    assert content_size(480, 640, 65, "fit") == (49, 65)


def test_padding_is_the_mean_that_the_network_takes_off_to_half_a_level() -> None:
    assert MEAN_PIXEL == (123, 117, 104)
    assert MEAN_PIXEL[::-1] == pytest.approx(CAFFE_MEAN_BGR, abs=0.5)


@pytest.mark.parametrize("size", [65, 513])
def test_padding_is_right_and_below_mean_pixel_void_and_missing(frame: Frame, size: int) -> None:
    network = NetworkConfig(input_size=size)
    height, width = content_size(480, 640, size, "fit")
    sample = render_view(frame, WHOLE, network=network, depth="filled")
    assert sample.image.shape == (3, size, size)
    assert sample.labels.shape == sample.depth.shape == (size, size)
    assert (sample.image.dtype, sample.labels.dtype, sample.depth.dtype) == (torch.uint8, torch.uint8, torch.float32)
    assert (sample.image[:, height:] == torch.tensor(MEAN_PIXEL)[:, None, None]).all()
    assert (sample.labels[height:] == VOID).all()
    assert (sample.depth[height:] == 0).all()
    assert (sample.depth[:height, :width] > 0).all()


def test_a_stretched_view_has_no_padding(frame: Frame) -> None:
    network = NetworkConfig(input_size=129, resize="stretch")
    assert (render_view(frame, WHOLE, network=network, depth="filled").depth > 0).all()


def test_labels_and_depth_are_picked_never_mixed(frame: Frame) -> None:
    sample = render_view(frame, WHOLE, network=NETWORK, depth="raw")
    rows, columns = (torch.arange(97) + 0.5) * 480 / 97, (torch.arange(129) + 0.5) * 640 / 129
    at = (rows.long()[:, None], columns.long())
    assert torch.equal(sample.labels[:97], torch.from_numpy(frame.labels)[at])
    picked = torch.from_numpy(frame.raw_depth)[at]
    assert torch.equal(sample.depth[:97], depth_target(picked, depth_bin=0.14, num_bins=50))
    assert (sample.depth[:97] == 0).any(), "raw depth has holes"


def test_a_crop_shows_its_own_pixels(frame: Frame) -> None:
    network = NetworkConfig(input_size=161)  # the crop's own width: nothing is resized
    crop = View(1, "crop", 64, 32, 121, 161, zoom=640 / 161, mirror=False)
    sample = render_view(frame, crop, network=network, depth="filled")
    np.testing.assert_array_equal(sample.image[:, :121].permute(1, 2, 0), frame.image[64:185, 32:193])
    np.testing.assert_array_equal(sample.labels[:121], frame.labels[64:185, 32:193])


def test_a_mirror_is_the_original_from_right_to_left(frame: Frame) -> None:
    def mirrored(sample: Sample) -> Sample:
        flip = [t[..., :97, :].flip(-1) for t in (sample.image, sample.labels, sample.depth)]
        return Sample(*(torch.cat([t, rest[..., 97:, :]], -2) for t, rest in zip(flip, vars(sample).values(), strict=True)))

    original = render_view(frame, WHOLE, network=NETWORK, depth="raw")
    mirror = render_view(frame, replace(WHOLE, kind="mirror", mirror=True), network=NETWORK, depth="raw")
    for once, twice in ((mirrored(original), mirror), (original, mirrored(mirror))):
        assert all(torch.equal(a, b) for a, b in zip(vars(once).values(), vars(twice).values(), strict=True))
    assert not torch.equal(original.image, mirror.image)


def constant_depth(frame: Frame, metres: float) -> Frame:
    return replace(frame, raw_depth=np.full((480, 640), metres, np.float32))


def test_depth_is_divided_by_the_zoom_before_it_is_clipped_and_rounded(frame: Frame) -> None:
    twice = View(1, "crop", 100, 100, 240, 320, zoom=2.0, mirror=False)
    far = render_view(constant_depth(frame, 9.8), twice, network=NETWORK, depth="raw").depth[:97]
    torch.testing.assert_close(far, torch.full_like(far, 4.9))  # clipped first it would be 3.5
    near = render_view(constant_depth(frame, 0.35), twice, network=NETWORK, depth="raw").depth[:97]
    torch.testing.assert_close(near, torch.full_like(near, 0.14))  # .175 is 1.25 bins; rounded first: .42 / 2, so 2 bins
    beyond = render_view(constant_depth(frame, 9.8), WHOLE, network=NETWORK, depth="raw").depth[:97]
    torch.testing.assert_close(beyond, torch.full_like(beyond, 7.0))


def test_a_rendered_input_is_the_image_of_the_original_view(frame: Frame) -> None:
    view = render_view(frame, WHOLE, network=NETWORK, depth="raw")
    assert torch.equal(render_input(frame.image, network=NETWORK), view.image)


def test_rendering_leaves_the_frame_as_it_was(frame: Frame) -> None:
    before = [array.copy() for array in (frame.image, frame.labels, frame.raw_depth)]
    for view in make_views([1], DataConfig()):
        sample = render_view(frame, view, network=NETWORK, depth="raw")
        sample.image.zero_(), sample.labels.zero_(), sample.depth.zero_()
    for was, now in zip(before, (frame.image, frame.labels, frame.raw_depth), strict=True):
        np.testing.assert_array_equal(was, now)


# On disk


def test_a_manifest_comes_back_exactly(tmp_path: Path) -> None:
    views = make_views(range(1, 796), DataConfig())
    path = tmp_path / "deep" / "views.parquet"
    write_manifest(views, path, seeds={"data.views_seed": 0, "data.validation_seed": 3}, store_digest="abc")
    assert read_manifest(path) == views
    origin = read_origin(path)
    assert (origin.seeds, origin.store_digest) == ({"data.views_seed": 0, "data.validation_seed": 3}, "abc")
    assert list(path.parent.iterdir()) == [path]


def write_with_files_limited(path: Path) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        write_manifest(make_views(range(1, 99), DataConfig()), path, seeds={}, store_digest="")
    except InputError as error:
        return str(error)
    return "no error"


def test_a_manifest_that_the_disk_has_no_room_for_is_named_and_not_there(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        said = pool.apply(write_with_files_limited, (tmp_path / "views",))
    assert said == f"{tmp_path / 'views'}: cannot be written: File too large"
    assert list(tmp_path.iterdir()) == []


def test_manifest_rows_may_be_reordered_by_others(tmp_path: Path) -> None:
    views = make_views(range(1, 9), DataConfig())
    write_manifest(views, tmp_path / "views", seeds={}, store_digest="")
    pq.write_table(pq.read_table(tmp_path / "views").sort_by("frame"), tmp_path / "sorted")
    assert read_manifest(tmp_path / "sorted") == views


def test_what_is_no_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such file"):
        read_manifest(tmp_path / "nowhere")
    (tmp_path / "text").write_text("frame,kind\n")
    with pytest.raises(InputError, match="text: not a Parquet file"):
        read_manifest(tmp_path / "text")
    write_manifest(make_views(range(1, 9), DataConfig()), tmp_path / "views", seeds={}, store_digest="")
    without_zoom = pq.read_table(tmp_path / "views").drop_columns("zoom")
    for table, columns in ((pa.table({"frame": [1]}), "frame"), (without_zoom, "frame, kind, ")):
        pq.write_table(table, tmp_path / "other")
        with pytest.raises(InputError, match=f"other: not a list of views; its columns: {columns}"):
            read_manifest(tmp_path / "other")
