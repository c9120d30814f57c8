"""Laws of filters that are kept: the same bits, nothing built twice, memory within its bound."""

from __future__ import annotations

import math

import numba
import numpy as np
import pytest
import torch

from jointseg.crf import CrfSettings, DenseCRF, Kernel
from jointseg.crf.filters import FILTERS, Features, matrices
from jointseg.crf.filters.matrices import GridMatrices
from jointseg.crf.kernels import kernel_features
from jointseg.crf.prepared import _bytes_of
from jointseg.crf.reuse import PreparedCache

SIZES = {"exact": (20, 30), "structured": (70, 80)}  # `auto` takes the exact filter for the first


def images(size, count=3):
    draw = torch.Generator().manual_seed(0)
    levels = [torch.randint(0, 256, (1, 3, *size), generator=draw, dtype=torch.uint8) for _ in range(count)]
    return [{"image": image, "depth": 1 + torch.rand(1, *size, generator=draw)} for image in levels]


def counting():
    """A filter for each kernel, and the list that grows by one with each that is built."""
    built = []

    def build(features):
        built.append(features.values_BPF.shape[2])
        return FILTERS["exact"](features)

    return build, built


def crf_at(filter="auto", **settings):
    return DenseCRF(4, CrfSettings(num_iterations=3, **settings), filter=filter)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(
    "change", [{"w_depth": 9.0}, {"theta_zeta": 0.5}, {"theta_alpha": 40.0}, {"theta_tau": 1.0, "num_iterations": 1}]
)
def test_with_and_without_the_cache_a_crf_gives_the_same_bits(size, change):
    cache, draw = PreparedCache(2**30), torch.Generator().manual_seed(1)
    logits = torch.randn(1, 4, *size, generator=draw)
    for settings in ({}, change, {}):
        crf = DenseCRF(4, CrfSettings(**{"num_iterations": 3, **settings}))
        for key, given in enumerate(images(size)):
            with torch.no_grad():
                assert torch.equal(crf(logits, prepared=cache.prepare(key, crf, **given)), crf(logits, **given))


def test_a_crf_of_other_weights_builds_nothing_and_of_another_bandwidth_that_kernel_alone():
    build, built = counting()
    cache, given = PreparedCache(2**30), images((6, 7), 1)[0]
    for settings, new in (
        ({}, [5, 3, 2]),
        ({"w_depth": 1.0}, []),
        ({"theta_zeta": 0.4}, [3]),
        ({"theta_zeta": 0.4}, []),
        ({}, [3]),
    ):
        built.clear()
        cache.prepare(0, crf_at(build, **settings), **given)
        assert built == new, settings


def test_guides_and_a_mask_are_kept_beside_the_image():
    build, built = counting()
    kernels = (Kernel(name="near", weight=1.0, position=2.0), Kernel(name="own", weight=1.0, position=2.0, guides={"g": 0.5}))
    crf, cache = DenseCRF(4, kernels=kernels, filter=build), PreparedCache(2**30)
    guides, mask = {"g": images((6, 7), 1)[0]["depth"][:, None]}, torch.ones(1, 6, 7, dtype=torch.bool)
    mask[0, 0, 0] = False
    for given, new in (
        ({"guides": guides}, [2, 3]),
        ({"guides": guides}, []),
        ({"guides": {"g": guides["g"] + 1}}, [3]),
        ({"guides": guides, "mask": mask}, [2, 3]),
        ({"guides": guides, "mask": mask}, []),
    ):
        built.clear()
        cache.prepare(0, crf, **given)
        assert built == new


def test_other_values_of_what_a_kernel_compares_are_not_taken_for_those_before():
    build, built = counting()
    cache, given = PreparedCache(2**30), images((6, 7), 1)[0]
    crf = crf_at(build)
    cache.prepare(0, crf, **given)
    deeper, darker = {**given, "depth": given["depth"] + 1}, {**given, "image": given["image"] // 2}
    for other, new in ((deeper, [3]), (darker, [5, 3]), (given, [5])):
        built.clear()
        cache.prepare(0, crf, **other)
        assert built == new
    built.clear()
    prepared = crf.prepare(**given)
    mask = torch.ones(1, 6, 7, dtype=torch.bool)
    mask[0, 0, 0] = False
    masked = crf.prepare(**given, mask=mask, reusing=prepared)
    assert built == [5, 3, 2] * 2
    logits = torch.randn(1, 4, 6, 7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(crf(logits, prepared=masked), crf(logits, **given, mask=mask))
    given["depth"] += 1  # in place
    assert crf.prepare(**given, reusing=prepared).filters[1] is not prepared.filters[1]


def test_another_filter_or_number_of_threads_or_size_takes_nothing_over():
    build, built = counting()
    given, other = images((6, 7), 1)[0], images((7, 6), 1)[0]
    first = crf_at("exact").prepare(**given)
    assert crf_at("exact").prepare(**given, reusing=first) is first
    crf_at(build).prepare(**given, reusing=first)
    assert len(built) == 3
    assert crf_at("exact").prepare(**other, reusing=first).filters[0] is not first.filters[0]
    torch.set_num_threads(2)
    again = crf_at("exact").prepare(**given, reusing=first)
    assert again.num_threads == 2
    assert not {id(one) for one in again.filters} & {id(one) for one in first.filters}


def test_another_precision_takes_nothing_over():
    """An image of bytes is the same beside logits of either."""
    kernel = Kernel(name="colour", weight=1.0, position=2.0, guides={"image": 3.0})
    crf, image = DenseCRF(4, kernels=(kernel,), filter="exact"), images((6, 7), 1)[0]["image"]
    single = crf.prepare(image=image)
    double = crf.double().prepare(image=image, reusing=single)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert double.filters[0].row_sums.dtype == torch.float64


def test_a_kernel_of_another_name_takes_the_filter_and_keeps_its_name():
    def crf_of(name):
        return DenseCRF(4, kernels=(Kernel(name=name, weight=1.0, position=2.0),), filter="exact")

    image = images((6, 7), 1)[0]["image"]
    first = crf_of("one").prepare(image=image)
    again = crf_of("other").prepare(image=image, reusing=first)
    assert again.filter_names == {"other": "exact"}
    assert again.filters[0] is first.filters[0]


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_memory_stays_within_the_bound_and_what_came_first_is_kept(size):
    given = images(size)
    whole = PreparedCache(2**40)
    crf = crf_at()
    each = [whole.prepare(key, crf, **one).num_bytes for key, one in enumerate(given)]
    assert whole.num_bytes == sum(each)
    tight = PreparedCache(sum(each[:2]))
    first = [tight.prepare(key, crf, **one) for key, one in enumerate(given)]
    again = [tight.prepare(key, crf, **one) for key, one in enumerate(given)]
    assert [one is other for one, other in zip(first, again, strict=True)] == [True, True, False]
    assert tight.num_bytes == sum(each[:2])


def test_memory_is_that_of_the_image_that_has_the_key_now():
    cache, crf = PreparedCache(2**30), crf_at("exact")
    for size in ((6, 7), (12, 14), (5, 5)):
        prepared = cache.prepare("key", crf, **images(size, 1)[0])
        assert cache.num_bytes == prepared.num_bytes


def test_a_cache_of_nothing_keeps_nothing():
    cache, given, crf = PreparedCache(0), images((6, 7), 1)[0], crf_at()
    assert cache.prepare(0, crf, **given) is not cache.prepare(0, crf, **given)
    assert cache.num_bytes == 0


def test_bytes_of_sparse_matrices_are_counted():
    """The bilateral grid as `auto` takes it on GPUs."""
    kernel = Kernel(name="k", weight=1.0, position=5.0, guides={"depth": 0.3})
    crf = DenseCRF(4, kernels=(kernel,), filter=lambda features: GridMatrices(features, cells_per_sigma=2.0))
    prepared = crf.prepare(depth=images((6, 7), 1)[0]["depth"])
    corners = 8 * 42  # of each pixel's cell: a float32 and an int64 each, to read and to write
    assert prepared.num_bytes >= 2 * corners * (4 + 8)


def test_bytes_of_what_kernels_of_our_own_go_by_are_counted(monkeypatch):
    """The same grid where there is Triton: no matrices, but the order of the pixels and the cells' items."""
    monkeypatch.setattr(matrices, "_takes_kernels", lambda values: True)
    monkeypatch.setattr(matrices, "_row_sums", lambda gaussian, ones_B1P, valid_BP: ones_B1P[:, 0])
    features = kernel_features(Kernel(name="k", weight=1.0, position=5.0), {}, like=torch.zeros(1, 1, 6, 7))
    gaussian = GridMatrices(Features(values_BPF=features, size=(6, 7)), cells_per_sigma=2.0)
    (grid,) = gaussian._images
    corners, cells = 4 * 42, math.prod(grid.shape)
    held = corners * (8 + 4) + 4 * (42 + cells + 1)  # of each corner an int64 and a float32; of pixels and cells an int32
    small = 4 * (len(grid._items.bounds) + 4 + 42) + sum(4 * length**2 for length in grid.shape) + 8 * 8
    assert not any(value.layout == torch.sparse_csr for value in vars(grid).values() if isinstance(value, torch.Tensor))
    assert held <= _bytes_of(gaussian) <= held + small


def test_bytes_are_those_of_the_arrays():
    prepared = crf_at("exact").prepare(**images((6, 7), 1)[0])
    matrices = 3 * 4 * 42**2
    assert matrices <= prepared.num_bytes <= 1.5 * matrices


def test_bytes_of_what_compiled_code_made_are_counted_once():
    """The base of such an array is numba's own."""
    made = numba.njit(lambda: np.zeros(1000))()
    assert _bytes_of([made]) == _bytes_of([made, made[10:]]) == made.nbytes


@pytest.mark.parametrize("filter", ["exact", "separable"])
def test_what_was_prepared_in_inference_mode_serves_training_too(filter):
    crf = DenseCRF(4, kernels=(Kernel(name="near", weight=3.0, position=2.0),), filter=filter)
    image = images((6, 7), 1)[0]["image"]
    with torch.inference_mode():
        prepared = crf.prepare(image=image)
    logits = torch.randn(1, 4, 6, 7, generator=torch.Generator().manual_seed(1))
    crf(logits, prepared=prepared).logsumexp(1).sum().backward()
    assert crf.weights["near"].grad.isfinite().all()
