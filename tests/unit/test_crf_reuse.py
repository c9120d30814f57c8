"""Laws of filters that are kept: the same bits, nothing built twice, memory within its bound."""

from __future__ import annotations

import pytest
import torch

from jointseg.crf import CrfSettings, DenseCRF
from jointseg.crf.filters import FILTERS
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


def test_another_filter_or_number_of_threads_or_size_takes_nothing_over():
    build, built = counting()
    given, other = images((6, 7), 1)[0], images((7, 6), 1)[0]
    first = crf_at("exact").prepare(**given)
    assert crf_at("exact").prepare(**given, reusing=first) is first
    crf_at(build).prepare(**given, reusing=first)
    assert len(built) == 3
    assert crf_at("exact").prepare(**other, reusing=first).filters[0] is not first.filters[0]


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


def test_a_cache_of_nothing_keeps_nothing():
    cache, given, crf = PreparedCache(0), images((6, 7), 1)[0], crf_at()
    assert cache.prepare(0, crf, **given) is not cache.prepare(0, crf, **given)
    assert cache.num_bytes == 0


def test_bytes_are_those_of_the_arrays():
    prepared = crf_at("exact").prepare(**images((6, 7), 1)[0])
    matrices = 3 * 4 * 42**2
    assert matrices <= prepared.num_bytes <= 1.5 * matrices
