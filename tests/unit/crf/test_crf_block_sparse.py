"""Laws of the block-sparse filter, held to the plain sum in float64; on a CPU the kernels run in Triton's interpreter.

Not here: its tiles and their pairs (test_crf_tiles.py), its speed, and the CRF around it.
"""

import math
import sys

import pytest
import torch

from jointseg import needs
from jointseg.crf.filters import block_sparse
from jointseg.crf.filters.block_sparse import BlockSparseFilter
from jointseg.crf.filters.features import Features
from jointseg.crf.filters.tile_pairs import cut_into_items, kernels
from jointseg.errors import InputError
from tests.block_sparse import (
    DEVICE,
    ROUNDING,
    TOLERANCES,
    B,
    H,
    W,
    built,
    draw,
    features_of,
    plain_matrix,
    share_of_pairs,
    wide,
)


@TOLERANCES
def test_row_sums_lose_no_more_than_the_tolerance(tolerance):
    plain = plain_matrix(wide()).sum(-1)
    valid = wide().valid_BP
    lost = 1 - built(tolerance).row_sums.double()[valid] / plain[valid]
    assert lost.max() <= tolerance + ROUNDING[tolerance]
    assert lost.min() >= -ROUNDING[tolerance]
    assert (built(tolerance).row_sums[~valid] == 1).all()


@TOLERANCES
def test_apply_is_the_plain_sum_to_the_tolerance(tolerance):
    values, matrix = draw(B, 3, H * W, seed=1), plain_matrix(wide())
    error = (built(tolerance).apply(values).double() - values.double() @ matrix).abs()
    assert (error <= (tolerance + ROUNDING[tolerance]) * matrix.sum(-1)[:, None] + 1e-30).all()
    assert (error[~wide().valid_BP[:, None].expand_as(error)] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("tile_size", [16, 128])
def test_tiles_of_any_size_give_the_plain_sum_to_the_tolerance(tile_size):
    P = 15 * tile_size if tile_size < 64 else H * W
    features = Features(values_BPF=wide().values_BPF[:, :P], size=(1, P), valid_BP=wide().valid_BP[:, :P])
    values, matrix = draw(B, 3, P, seed=1), plain_matrix(features)
    block = BlockSparseFilter(features, tile_size=tile_size)
    error = (block.apply(values).double() - values.double() @ matrix).abs()
    assert (error <= (1e-3 + ROUNDING[1e-3]) * matrix.sum(-1)[:, None] + 1e-30).all()
    assert (block.row_sums.double() - matrix.sum(-1))[features.valid_BP].abs().max() <= 2e-3 * matrix.sum(-1).max()
    moments = block.bandwidth_gradient(values, values)
    of_64 = BlockSparseFilter(features, tile_size=64).bandwidth_gradient(values, values)
    torch.testing.assert_close(moments, of_64, rtol=2e-2, atol=1e-2)


@TOLERANCES
def test_it_is_its_own_transpose(tolerance):
    block, x, y = built(tolerance), draw(B, 2, H * W, seed=2).abs(), draw(B, 2, H * W, seed=3).abs()
    left = (block.apply(x).double() * y.double()).sum()
    right = (x.double() * block.apply_transposed(y).double()).sum()
    torch.testing.assert_close(left, right, rtol=1e-6, atol=0)


def test_the_same_input_gives_the_same_bits():
    values = torch.rand(B, 2, H * W, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    again = BlockSparseFilter(wide(), tolerance=1e-3, tile_size=64)
    assert torch.equal(again.row_sums, built(1e-3).row_sums)
    assert torch.equal(again.apply(values), built(1e-3).apply(values))


def test_a_batch_is_its_images():
    values_BPF, values = wide().values_BPF[:, :300], draw(B, 2, 300, seed=5)
    batch = BlockSparseFilter(features_of(values_BPF))
    for b in range(B):
        single = BlockSparseFilter(features_of(values_BPF[b : b + 1]))
        assert torch.equal(single.apply(values[b : b + 1]), batch.apply(values)[b : b + 1])
        assert torch.equal(single.row_sums, batch.row_sums[b : b + 1])


@pytest.mark.parametrize("P", [1, 5, 65])
def test_images_of_few_pixels(P):
    features = features_of(torch.linspace(0, 3, P)[None, :, None])
    block, values = BlockSparseFilter(features), draw(1, 1, P, seed=7)
    torch.testing.assert_close(block.row_sums.double(), plain_matrix(features).sum(-1), rtol=2.5e-3, atol=0)
    error = block.apply(values).double() - values.double() @ plain_matrix(features)
    assert error.abs().max() <= 2.5e-3 * block.row_sums.max()


@pytest.mark.parametrize("C", [1, 3, 40, 150])
@TOLERANCES
def test_any_number_of_channels(C, tolerance):
    P = 130
    features = features_of(torch.rand(1, P, 2, generator=torch.Generator().manual_seed(2)) * 2)
    block, values = BlockSparseFilter(features, tolerance=tolerance), draw(P, 1, C, seed=8).permute(1, 2, 0)
    error = block.apply(values).double() - values.double() @ plain_matrix(features)
    assert block.apply(values).is_contiguous()
    assert error.abs().max() <= (tolerance + ROUNDING[tolerance]) * block.row_sums.max()


@pytest.mark.slow
def test_sixteen_features_and_small_tiles():
    features = features_of(torch.rand(1, 100, 16, generator=torch.Generator().manual_seed(3)) * 2)
    block, values = BlockSparseFilter(features, tolerance=1e-6, tile_size=16), draw(1, 3, 100, seed=9)
    torch.testing.assert_close(block.row_sums.double(), plain_matrix(features).sum(-1), rtol=1e-5, atol=0)
    torch.testing.assert_close(block.apply(values).double(), values.double() @ plain_matrix(features), rtol=0, atol=1e-4)


def test_equal_features_make_every_row_the_sum_of_all():
    block = BlockSparseFilter(features_of(torch.full((1, 150, 3), 85.0)))
    values = draw(1, 2, 150, seed=10)
    assert (block.row_sums == 150).all()
    torch.testing.assert_close(block.apply(values), values.sum(-1, keepdim=True).expand_as(values), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-6, 7.0, 1e6, 1e30])
def test_values_of_any_size_keep_their_digits(size):
    features = features_of(torch.rand(1, 130, 2, generator=torch.Generator().manual_seed(2)))
    values = draw(1, 3, 130, seed=16) * size * torch.tensor([1.0, 0.25, 0.001], device=DEVICE)[:, None]
    plain = values.double() @ plain_matrix(features)
    error = (BlockSparseFilter(features).apply(values).double() - plain).abs()
    peaks = values.double().abs().amax(-1, keepdim=True)
    assert (error <= (1e-3 + ROUNDING[1e-3]) * peaks * plain_matrix(features).sum(-1)[:, None]).all()


@pytest.mark.parametrize("size", [4e37, 5e37, 3e38])
def test_values_near_the_largest_float_keep_their_digits(size):
    block = BlockSparseFilter(features_of(1e3 * torch.arange(20.0)[None, :, None]))  # each pixel hears itself alone
    values = torch.full((1, 1, 20), size, device=DEVICE)
    torch.testing.assert_close(block.apply(values), values, rtol=1e-3, atol=0)


@pytest.mark.parametrize("C", [3, *(pytest.param(C, marks=pytest.mark.slow) for C in (1, 64))])
def test_the_first_application_brings_the_row_sums_along_and_they_change_nothing(C):
    """Into the padding, where there is some: 64 channels have none."""
    asked, applied = built(1e-3), BlockSparseFilter(wide(), tile_size=64)
    values = draw(B, C, H * W, seed=18)
    sums = asked.row_sums  # asked for before any application
    with torch.inference_mode():
        first = applied.apply(values)
    assert applied.has_row_sums == (C != 64)
    assert torch.equal(applied.row_sums, sums)
    assert torch.equal(first, asked.apply(values))
    assert first.is_contiguous()
    assert not applied.row_sums.is_inference()


def test_many_faint_weights_are_summed():
    """64 pixels and 512 others at weights of about 2^-25.5, below float16's least 2^-24 and its rounding."""
    far = math.sqrt(2 * 25.5 * math.log(2))
    features = features_of(torch.cat([torch.zeros(64), torch.full((512,), far)])[None, :, None])
    block = BlockSparseFilter(features, tolerance=1e-3)
    tiles, pairs = block._tiles, block._pairs
    everyone = torch.arange(len(tiles.pixels_GT), device=DEVICE)
    G = len(everyone)
    whole = cut_into_items(everyone.repeat_interleave(G), everyone.repeat(G), G, 256)
    assert len(whole.columns_E) >= len(pairs.columns_E)
    values = torch.zeros(1, 1, 576, device=DEVICE)
    values[..., 64:] = 1
    found = kernels().apply_pairs(tiles, whole, values, precision="float16")[0, 0, :64]
    torch.testing.assert_close(found, torch.full_like(found, 512 * 2**-25.5), rtol=2e-3, atol=0)


def test_what_a_pixel_that_is_not_valid_holds_changes_no_other():
    valid = torch.rand(1, 130, generator=torch.Generator().manual_seed(2)) > 0.1
    valid[0, 3] = False
    block = BlockSparseFilter(features_of(torch.rand(1, 130, 2, generator=torch.Generator().manual_seed(2)), valid))
    values = 1e-3 * draw(1, 3, 130, seed=16)
    expected = block.apply(values)
    for held in (1e6, 1e12, torch.inf, torch.nan):
        values[0, :, 3] = held
        assert torch.equal(block.apply(values), expected)


def test_far_apart_features_make_the_identity():
    block = BlockSparseFilter(features_of(torch.arange(150.0)[None, :, None] * torch.tensor([1e4, -1e4])), tile_size=64)
    values = draw(1, 2, 150, seed=11)
    assert (block.row_sums == 1).all()
    assert torch.equal(block.apply(values), values)
    assert share_of_pairs(block) == pytest.approx(1 / 3)


def test_an_image_without_a_valid_pixel_hears_nothing():
    valid = torch.tensor([[False] * 70, [True] * 70])
    block = BlockSparseFilter(features_of(torch.zeros(2, 70, 2), valid))
    result = block.apply(torch.ones(2, 1, 70, device=DEVICE))
    assert (result[0] == 0).all()
    assert (result[1] == 70).all()
    assert (block.row_sums[0] == 1).all()
    nothing = BlockSparseFilter(features_of(torch.zeros(1, 70, 2), valid[:1]))
    assert (nothing.apply(torch.ones(1, 1, 70, device=DEVICE)) == 0).all()
    assert (nothing.bandwidth_gradient(*torch.ones(2, 1, 1, 70, device=DEVICE)) == 0).all()


def test_a_nan_is_heard_by_valid_pixels_and_from_valid_pixels_only():
    valid = torch.ones(1, 20, dtype=torch.bool)
    valid[0, 3] = False
    block = BlockSparseFilter(features_of(torch.zeros(1, 20, 2), valid))
    values = torch.ones(1, 1, 20, device=DEVICE)
    values[0, 0, 3] = torch.nan
    assert not block.apply(values).isnan().any()
    values[0, 0, 4] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    assert torch.equal(block.apply(values).isnan()[0], valid.to(DEVICE))


@TOLERANCES
@pytest.mark.parametrize("C", [2, pytest.param(70, marks=pytest.mark.slow)])
def test_the_bandwidth_gradient_is_that_of_the_plain_sum(tolerance, C):
    features = Features(values_BPF=wide().values_BPF[:, :300], size=(6, 50), valid_BP=wide().valid_BP[:, :300])
    y, v = draw(B, C, 300, seed=12), draw(B, C, 300, seed=13)
    log_bandwidth = torch.zeros(B, 1, 3, dtype=torch.float64, device=DEVICE, requires_grad=True)
    scaled = Features(values_BPF=features.values_BPF / log_bandwidth.exp(), size=features.size, valid_BP=features.valid_BP)
    product = (y.double() * (v.double() @ plain_matrix(scaled))).sum()
    expected = torch.autograd.grad(product, log_bandwidth)[0].squeeze(1)
    values = features.values_BPF.double()
    moments = (plain_matrix(features)[..., None] * (values[:, :, None] - values[:, None]).square()).sum((1, 2))
    error = BlockSparseFilter(features, tolerance=tolerance).bandwidth_gradient(y, v).double() - expected
    assert (error.abs() <= {1e-3: 1e-2, 1e-6: 1e-5}[tolerance] * C * moments).all()


def test_nothing_is_recorded():
    values = draw(B, 1, H * W, seed=14).requires_grad_()
    assert not built(1e-3).apply(values).requires_grad
    assert not built(1e-3).row_sums.requires_grad


@pytest.mark.parametrize("tolerance", [0.0, 9e-7, 0.11, -1e-3, float("nan")])
def test_a_tolerance_out_of_range_is_refused(tolerance):
    with pytest.raises(InputError, match="1e-6 to 1e-1"):
        BlockSparseFilter(wide(), tolerance=tolerance)


def test_float64_is_refused():
    with pytest.raises(InputError, match="float64; use 'exact'"):
        BlockSparseFilter(Features(values_BPF=torch.zeros(1, 4, 2, dtype=torch.float64), size=(2, 2)))


def test_a_cpu_is_refused_without_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match="needs a CUDA device, but the features are on cpu"):
        BlockSparseFilter(Features(values_BPF=torch.zeros(1, 4, 2), size=(2, 2)))


def test_without_triton_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert block_sparse.missing_for_triton() == "the triton package"
    with pytest.raises(InputError, match="needs the triton package"):
        BlockSparseFilter(Features(values_BPF=torch.zeros(1, 4, 2), size=(2, 2)))


def test_without_a_c_compiler_for_triton_it_says_so(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="needs a C compiler for Triton"):
        BlockSparseFilter(Features(values_BPF=torch.zeros(1, 4, 2), size=(2, 2)))
    monkeypatch.setenv("CC", "my-cc")
    assert "C compiler" not in (block_sparse.missing_for_triton() or "")


def test_without_pythons_headers_or_a_folder_for_what_is_compiled_it_says_so(monkeypatch, tmp_path):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("CC", "my-cc")
    monkeypatch.setattr(needs.sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    assert needs.missing_for_triton() == (
        f"Python's headers for Triton (no {tmp_path / 'Python.h'}; on Debian the package python3-dev)"
    )
    (tmp_path / "Python.h").touch()
    for name in ("TRITON_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, str(tmp_path / "Python.h" / "no_folder"))
        said = needs.missing_for_triton()
        assert said is not None
        assert said.startswith(f"a folder for Triton's code ({tmp_path / 'Python.h' / 'no_folder'}")
        assert "Not a directory; TRITON_CACHE_DIR names another" in said
        monkeypatch.delenv(name)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "kept"))
    assert needs.missing_for_triton() is None


# One group of pixels at 0, and the others so far that each of their weights is small and all of them together are not: what is
# skipped costs a row nearly what it may.
FAINT = {
    "not measured": lambda tolerance, G: 64 / 16 * 0.9 * (G - 1) / G * tolerance,
    "measured": lambda tolerance, G: 2.9 * tolerance,
}


def loss_of(values, tolerance):
    features = Features(values_BPF=values[None, :, None], size=(1, len(values)))
    sums = BlockSparseFilter(features, tolerance=tolerance, tile_size=64).row_sums[0].double()
    plain = torch.exp(-0.5 * (values.double()[:, None] - values.double()) ** 2).sum(1)
    return (1 - sums / plain).max().item()


@pytest.mark.slow
@pytest.mark.parametrize("tolerance", [1e-3, pytest.param(1e-6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", FAINT)
def test_many_faint_tiles_cost_a_row_no_more_than_the_tolerance(kind, tolerance):
    G = 17
    weight = FAINT[kind](tolerance, G) / (G - 1)
    far = math.sqrt(-2 * math.log(weight))
    lost = loss_of(torch.cat([torch.zeros(64), torch.full(((G - 1) * 64,), far)]), tolerance)
    assert lost <= tolerance


@pytest.mark.parametrize("tolerance", [1e-3, pytest.param(1e-6, marks=pytest.mark.slow)])
def test_a_pair_that_one_of_its_tiles_needs_is_kept_for_both(tolerance):
    G = 17
    far = math.sqrt(-2 * math.log(5 * tolerance / (G - 1)))
    assert loss_of(torch.cat([torch.full((64,), far), torch.zeros((G - 1) * 64)]), tolerance) <= tolerance
