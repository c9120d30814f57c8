"""Laws of fingerprints: the same for the same bits, others for others. They are computed where the tensor is."""

import pytest
import torch

from jointseg.crf import fingerprint
from jointseg.crf.fingerprint import fingerprints

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32, torch.float64])


def of(tensor):
    return fingerprints({"it": tensor.to(DEVICE)})["it"]


def drawn(dtype, *shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return values > 0 if dtype == torch.bool else (50 * values).abs().to(dtype)


def bytes_of(tensor):
    return tensor.flatten().view(torch.uint8)


@DTYPES
@pytest.mark.parametrize("shape", [(1,), (3, 7, 11), (2, 3, 67, 71)], ids=str)
def test_the_same_values_have_the_same_one_whatever_their_strides(dtype, shape):
    given = drawn(dtype, *shape)
    assert of(given) == of(given.clone())
    assert of(given) == of(given.movedim(0, -1).contiguous().movedim(-1, 0))
    assert of(given) == of(torch.cat([given.flatten()[:1], given.flatten()])[1:].view(shape)), "at another place in memory"
    assert of(given[:1].expand(5, *shape[1:])) == of(given[:1].repeat(5, *[1] * (len(shape) - 1)))


@DTYPES
def test_any_single_bit_changes_it(dtype):
    given = drawn(dtype, 5, 9000)
    whole, changed = of(given), given.clone()
    bits = (0,) if dtype == torch.bool else range(8)
    for place in (0, 1, 4095, 4096, 20000, len(bytes_of(given)) - 1):
        for bit in bits:
            bytes_of(changed)[place] ^= 1 << bit
            assert of(changed) != whole, (place, bit)
            bytes_of(changed)[place] ^= 1 << bit
    assert of(changed) == whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 4096, 8192, 20000])
def test_other_signs_change_it_however_many(dtype, count):
    """A sign is the uppermost bit, which a product modulo 2^64 may lose."""
    given = drawn(dtype, 20000)
    negated = torch.cat([-given[:count], given[count:]])
    assert of(negated) != of(given)
    assert of(torch.cat([given[:-count], -given[-count:]])) not in {of(given), of(negated)} or count == 20000


@DTYPES
def test_any_two_values_change_places_in_it(dtype):
    given = drawn(dtype, 3, 9000)
    flat, whole = given.flatten(), of(given)
    first = int((flat != flat[0]).nonzero()[0])
    for one, least in ((0, first), (first, 4096 * 2), (4097, 4096 * 3 + 1), (1, 4096), (2, 8192), (4098, 8193)):
        other = least + int((flat[least:] != flat[one]).nonzero()[0])
        swapped = flat.clone()
        swapped[[one, other]] = flat[[other, one]]
        assert of(swapped.view(given.shape)) != whole, (one, other)
    assert of(given.flip(1)) != whole
    assert of(given[[1, 0, 2]]) != whole


def test_other_shapes_and_dtypes_of_the_same_bits_have_others():
    given = drawn(torch.float32, 4, 6)
    assert len({of(given), of(given.T), of(given.reshape(6, 4)), of(given.view(torch.int32)), of(given[None])}) == 5
    zeros = {of(torch.zeros(count)) for count in (1, 2, 4095, 4096, 4097)}
    assert len(zeros) == 5


def test_it_is_the_same_however_many_rows_are_multiplied_at_once(monkeypatch):
    given = drawn(torch.float32, 30000)
    whole = of(given)
    for at_once in (1, 3, 10**6):
        monkeypatch.setattr(fingerprint, "_ROWS_AT_ONCE", at_once)
        assert of(given) == whole


def test_three_levels_of_sums_tell_values_apart(monkeypatch):
    monkeypatch.setattr(fingerprint, "_WIDTH", 8)
    fingerprint._multipliers.cache_clear()
    given = drawn(torch.uint8, 300)
    found = {of(given)}
    for place in range(300):
        changed = given.clone()
        changed[place] += 1
        found.add(of(changed))
    fingerprint._multipliers.cache_clear()
    assert len(found) == 301


def test_each_tensor_has_its_own_by_its_name():
    one, other = drawn(torch.uint8, 1, 3, 4, 5).to(DEVICE), drawn(torch.float32, 1, 1, 4, 5).to(DEVICE)
    assert fingerprints({"one": one, "other": other}) == {"one": of(one), "other": of(other)}
    assert fingerprints({}) == {}
