"""The filters with a structure: lattice, grid, separable. Not here: the exact filter, the grid's tolerance and
cells (test_crf_grid.py), mean field in one pass over them (test_crf_one_pass.py).
"""

import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from jointseg.crf import CrfSettings, DenseCRF
from jointseg.crf.cpu import scratch
from jointseg.crf.filters import FILTERS, ExactFilter, Features, choose_filters, missing_for_block_sparse, structured
from jointseg.crf.filters.by_image import ByImage
from jointseg.crf.filters.matrices import GridMatrices, SeparableMatrices
from jointseg.crf.filters.structured import StructuredFilter, bilateral_grid
from jointseg.crf.kernels import Kernel, kernel_features, paper_kernels
from jointseg.errors import InputError
from tests.crf_scenes import memory_of_nan, scene

KERNEL_OF = {"permutohedral": 0, "bilateral_grid": 1, "separable": 2}
NAMES = pytest.mark.parametrize("name", KERNEL_OF)


@pytest.fixture(autouse=True)
def _threads_for_small_images(monkeypatch):
    """As many threads as a test sets, whatever the number of pixels."""
    monkeypatch.setattr(structured, "PIXELS_PER_THREAD", 1)


def features_for(name: str, parts, *, valid: Tensor | None = None, scale: float = 1 / 16) -> Features:
    _, image, depth = parts
    kernel = paper_kernels(CrfSettings().scaled(scale if name != "separable" else 1.0))[KERNEL_OF[name]]
    values = kernel_features(kernel, {"image": image, "depth": depth[:, None]}, like=image)
    return Features(values_BPF=values, size=tuple(image.shape[2:]), valid_BP=valid)


def messages(gaussian, values: Tensor) -> Tensor:
    return gaussian.apply(values) / gaussian.row_sums[:, None]


def values_for(parts, C: int = 5, *, seed: int = 3) -> Tensor:
    B, _, H, W = parts[1].shape
    return torch.rand(B, C, H * W, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(parts[1].dtype)


@pytest.mark.parametrize(("name", "tolerance"), [("separable", 1e-4), ("bilateral_grid", 5e-3), ("permutohedral", 8e-2)])
def test_messages_are_as_near_the_exact_ones_as_stated(name, tolerance):
    parts = scene(2, H=40, W=57)
    features, values = features_for(name, parts, scale=1 / 8), values_for(parts).softmax(1)
    exact = messages(ExactFilter(features), values)
    assert ((messages(FILTERS[name](features), values) - exact).abs().mean() / exact.mean()) <= tolerance


@pytest.mark.parametrize(("name", "tolerance"), [("separable", 1e-4), ("bilateral_grid", 1e-2), ("permutohedral", 4e-2)])
def test_messages_of_sharp_regions_are_near_the_exact_ones_and_not_those_of_other_bandwidths(name, tolerance):
    """Values that hardly differ would be near whatever the filter is."""
    parts = scene(2, H=40, W=57)
    features = features_for(name, parts, scale=1 / 8)
    regions = torch.randint(5, (2, 5, 8), generator=torch.Generator().manual_seed(3)).repeat_interleave(8, 1)
    values = one_hot(regions.repeat_interleave(8, 2)[..., :57].flatten(1)).transpose(1, 2).to(parts[1].dtype)
    exact = messages(ExactFilter(features), values)

    def off(scale):
        scaled = Features(values_BPF=scale * features.values_BPF, size=features.size, valid_BP=features.valid_BP)
        return (messages(FILTERS[name](scaled), values) - exact).abs().mean() / exact.mean()

    assert off(1) <= tolerance
    assert min(off(0.8), off(1.25)) > 1.3 * tolerance


@pytest.mark.parametrize("sigma", [0.3, 0.9, 1.4, 1.6, 3.0, 7.5, 40.0, 1e4])
def test_a_separable_message_is_within_1e_4_of_the_exact_one_everywhere(sigma):
    size = (31, 44)
    values = kernel_features(Kernel(name="k", weight=1, position=sigma), {}, like=torch.zeros(1, 1, *size).double())
    features = Features(values_BPF=values, size=size)
    q = (torch.rand(1, 4, 31 * 44, generator=torch.Generator().manual_seed(0), dtype=torch.float64) > 0.5).double()
    error = messages(FILTERS["separable"](features), q) - messages(ExactFilter(features), q)
    assert error.abs().max() <= 1e-4


def test_the_grid_and_the_separable_filter_for_gpus_are_those_for_cpus():
    parts = scene(2, H=21)
    valid = torch.rand(2, 21 * 26, generator=torch.Generator().manual_seed(1)) > 0.2
    for name, cpu, gpu in (
        ("bilateral_grid", bilateral_grid, lambda f: GridMatrices(f, cells_per_sigma=structured.grid_cells(f))),
        ("separable", ExactFilter, lambda f: SeparableMatrices(f, sigma=(3.0, 3.0))),
    ):
        features, values = features_for(name, parts, valid=valid), values_for(parts)
        one, other = cpu(features), gpu(features)
        torch.testing.assert_close(other.apply(values), one.apply(values), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(other.row_sums, one.row_sums, rtol=1e-10, atol=0)
        x, y = values_for(parts, seed=4), values_for(parts, seed=5)
        torch.testing.assert_close((other.apply(x) * y).sum(), (x * other.apply_transposed(y)).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("position", [1.0, 2.0, 4.0, 50.0])
@pytest.mark.parametrize("grid", [bilateral_grid, lambda f: GridMatrices(f, cells_per_sigma=2.0)], ids=["cpu", "gpu"])
def test_a_grid_is_as_near_where_pixels_lie_on_its_points_as_where_they_lie_between(grid, position):
    """At bandwidths of 1 and 2 pixels all of them do: there interpolation does not blur. The values are noise."""
    _, _, depth = scene(H=40, W=57)
    kernel = Kernel(name="k", weight=1, position=position, guides={"depth": 0.5})
    features = Features(values_BPF=kernel_features(kernel, {"depth": depth[:, None]}, like=depth[:, None]), size=(40, 57))
    values = (torch.rand(1, 4, 40 * 57, generator=torch.Generator().manual_seed(3)) > 0.5).to(depth.dtype)
    exact = messages(ExactFilter(features), values)
    assert (messages(grid(features), values) - exact).abs().mean() / exact.mean() <= 5e-3


def test_a_finer_grid_is_nearer():
    parts = scene(H=40, W=57)
    features, values = features_for("bilateral_grid", parts, scale=1 / 8), values_for(parts)
    exact = messages(ExactFilter(features), values)
    errors = [(messages(bilateral_grid(features, tolerance=t), values) - exact).abs().mean() for t in (1e-2, 5e-3, 2e-3)]
    assert errors[0] > 1.2 * errors[1] > 2 * errors[2]


@NAMES
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("C", [1, 5, 40, 150])
def test_transposed_is_the_transpose(name, threads, C):
    torch.set_num_threads(threads)
    parts = scene(2, H=11)
    valid = torch.rand(2, 11 * 26, generator=torch.Generator().manual_seed(1)) > 0.2
    gaussian = FILTERS[name](features_for(name, parts, valid=valid))
    x, y = values_for(parts, C, seed=4), values_for(parts, C, seed=5)
    torch.testing.assert_close((gaussian.apply(x) * y).sum(), (x * gaussian.apply_transposed(y)).sum(), rtol=1e-12, atol=0)


@NAMES
def test_a_thread_may_have_no_pixel_that_takes_part(name):
    torch.set_num_threads(2)
    parts = scene()
    valid = torch.arange(19 * 26)[None] < 100
    gaussian, values = FILTERS[name](features_for(name, parts, valid=valid)), values_for(parts)
    torch.set_num_threads(1)
    alone = FILTERS[name](features_for(name, parts, valid=valid))
    torch.testing.assert_close(gaussian.apply(values), alone.apply(values), rtol=1e-9, atol=1e-12)


@NAMES
def test_a_pixel_left_out_sends_and_receives_nothing(name):
    parts = scene()
    valid = torch.ones(1, 19 * 26, dtype=torch.bool)
    valid[0, 100:120] = False
    gaussian, values = FILTERS[name](features_for(name, parts, valid=valid)), values_for(parts)
    changed = values.clone()
    changed[:, :, 100:120] += 7
    torch.testing.assert_close(gaussian.apply(values), gaussian.apply(changed), rtol=0, atol=0)
    assert (gaussian.apply(values)[:, :, 100:120] == 0).all()
    assert (gaussian.row_sums[:, 100:120] == 1).all()


@NAMES
@pytest.mark.parametrize("threads", [1, 2])
def test_an_image_without_a_valid_pixel_hears_nothing(name, threads, monkeypatch):
    torch.set_num_threads(threads)
    monkeypatch.setattr(scratch, "_take", memory_of_nan)
    parts = scene(2)
    valid = torch.ones(2, 19 * 26, dtype=torch.bool)
    valid[1] = False
    gaussian, values = FILTERS[name](features_for(name, parts, valid=valid)), values_for(parts)
    for filtered in (gaussian.apply(values), gaussian.apply_transposed(values)):
        assert filtered[0].isfinite().all()
        assert (filtered[1] == 0).all()
    assert (gaussian.row_sums[1] == 1).all()


@NAMES
def test_row_sums_are_the_filter_of_ones(name):
    parts = scene(2)
    gaussian = FILTERS[name](features_for(name, parts))
    ones = torch.ones(2, 1, 19 * 26, dtype=torch.float64)
    torch.testing.assert_close(gaussian.apply(ones)[:, 0], gaussian.row_sums, rtol=1e-12, atol=0)


def test_auto_takes_exact_for_small_images_and_what_suits_each_kernel_for_large_ones():
    _, image, depth = scene(H=65, W=65, dtype=torch.float32)
    prepared = DenseCRF(3).prepare(image=image, depth=depth)
    expected = {"appearance": "permutohedral", "depth": "bilateral_grid", "smoothness": "separable"}
    assert prepared.filter_names == expected
    assert "permutohedral" in repr(prepared)
    for side, taken in ((33, set(expected.values())), (32, {"exact"})):
        small = DenseCRF(3).prepare(image=image[:, :, :side, :side], depth=depth[:, :side, :side])
        assert set(small.filter_names.values()) == taken


def test_what_block_sparse_would_need_is_named(monkeypatch):
    assert missing_for_block_sparse(torch.float64) == "float32, not float64"
    monkeypatch.setitem(sys.modules, "triton", None)
    assert missing_for_block_sparse(torch.float32) == "the triton package"


def test_auto_takes_exact_and_says_so_for_each_image_that_leads_out_of_the_lattices_range():
    _, image, _ = scene(3, H=33, W=33, dtype=torch.float32)
    kernel = Kernel(name="k", weight=1.0, position=20.0, guides={"g": 1.0})
    crf, automatic = (DenseCRF(3, kernels=(kernel,), filter=filter) for filter in ("permutohedral", "auto"))
    within = image / 255
    guides = {"g": within * torch.tensor([1.0, 1e6, 1.0])[:, None, None, None]}
    slow = "takes 'exact' for 1089 pixels, which is slow: 'permutohedral' needs wider bandwidths or fewer than 5 features"
    with pytest.warns(UserWarning, match=slow):
        prepared = automatic.prepare(guides=guides)
    assert prepared.filter_names == {"k": "exact and permutohedral"}
    assert automatic(image, prepared=prepared).isfinite().all()
    with pytest.raises(InputError, match="filter 'permutohedral': features reach"):
        crf.prepare(guides=guides)
    with warnings.catch_warnings(action="error"):
        assert automatic.prepare(guides={"g": within}).filter_names == {"k": "permutohedral"}
    with pytest.warns(UserWarning, match="'permutohedral' needs wider bandwidths or fewer than 17 features"):
        assert automatic.prepare(guides={"g": within.repeat(1, 5, 1, 1)}).filter_names == {"k": "exact"}


def test_auto_does_not_sum_over_all_pairs_of_what_is_infinite():
    depth = torch.full((1, 33, 33), torch.inf)
    with pytest.raises(InputError, match="filter 'permutohedral': features reach inf lattice steps"):
        DenseCRF(3, check_inputs=False).prepare(image=torch.zeros(1, 3, 33, 33), depth=depth)


@pytest.mark.parametrize(("device", "most"), [("cpu", 32 * 32), ("cuda", 64 * 64)])
def test_auto_takes_exact_up_to_a_number_of_pixels_of_the_devices_own(device, most):
    """Of a device it reads the name alone."""
    for num_pixels, name in ((most, "exact"), (most + 1, "separable")):
        values = SimpleNamespace(device=SimpleNamespace(type=device), shape=(2, num_pixels, 2))
        assert choose_filters(SimpleNamespace(values_BPF=values)) == [name, name]


def test_auto_takes_the_lattice_where_the_grid_would_be_too_large():
    image = torch.rand(1, 1, 100, 100)
    kernel = Kernel(name="k", weight=1, position=0.5, guides={"image": 0.001})
    features = Features(values_BPF=kernel_features(kernel, {"image": image}, like=image), size=(100, 100))
    assert choose_filters(features) == ["permutohedral"]
    with pytest.raises(InputError, match=r"filter 'bilateral_grid': 3 features over .* cells; allowed: 3 over 262144"):
        bilateral_grid(features)


def test_auto_takes_for_each_image_what_suits_it_whatever_it_comes_with():
    logits, image, depth = scene(3, H=70, W=80, dtype=torch.float32)
    depth = depth * torch.tensor([1.0, 8.0, 1.0])[:, None, None]
    crf = DenseCRF(3, CrfSettings(theta_gamma=5, theta_zeta=0.1))
    prepared = crf.prepare(image=image, depth=depth)
    assert prepared.filter_names["depth"] == "bilateral_grid and permutohedral"
    assert isinstance(prepared.filters[1], StructuredFilter), "else nothing would run in one pass"
    with torch.no_grad():
        out = crf(logits, prepared=prepared)
        for place in range(3):
            one = crf.prepare(image=image[[place]], depth=depth[[place]])
            assert one.filter_names["depth"] == ("permutohedral" if place == 1 else "bilateral_grid")
            torch.testing.assert_close(out[[place]], crf(logits[[place]], prepared=one), rtol=1e-4, atol=1e-4)


def test_filters_of_other_kinds_serve_a_batch_together():
    """As on GPUs, where nothing has a structure for the one pass."""
    parts = scene(3, H=12, W=9)
    features, values = features_for("bilateral_grid", parts), values_for(parts)
    exact = ExactFilter(features)
    whole = ByImage([(own, ExactFilter(features.of_images(own))) for own in ([1], [2, 0])])
    assert torch.equal(whole.row_sums, exact.row_sums)
    assert torch.equal(whole.apply(values), exact.apply(values))
    assert torch.equal(whole.apply_transposed(values), exact.apply_transposed(values))


@pytest.mark.parametrize("beyond", [500.0, 1e9])
def test_pixels_that_take_no_part_have_no_say_in_the_filter(beyond):
    logits, image, depth = scene(H=70, W=80, dtype=torch.float32)
    mask = torch.ones(1, 70, 80, dtype=torch.bool)
    mask[:, 60:], depth[:, 60:] = False, beyond
    crf = DenseCRF(3, CrfSettings(theta_gamma=5, theta_zeta=0.1))
    prepared = crf.prepare(image=image, depth=depth, mask=mask)
    assert prepared.filter_names["depth"] == "bilateral_grid"
    with torch.no_grad():
        out = crf(logits, prepared=prepared)
        depth[:, 60:] = 1.0
        torch.testing.assert_close(out, crf(logits, image=image, depth=depth, mask=mask), rtol=1e-5, atol=1e-5)
    lattice = DenseCRF(3, filter="permutohedral").prepare(image=image, depth=torch.where(mask, depth, beyond), mask=mask)
    assert lattice.filters[1].row_sums.isfinite().all()


def test_what_a_filter_cannot_do_is_one_clear_error():
    parts = scene()
    with pytest.raises(InputError, match=r"tolerance is 0\.001; allowed: 0\.002\.\.0\.01"):
        bilateral_grid(features_for("bilateral_grid", parts), tolerance=1e-3)
    with pytest.raises(InputError, match=r"tolerance is 0\.02; allowed: 0\.002\.\.0\.01"):
        bilateral_grid(features_for("bilateral_grid", parts), tolerance=2e-2)
    with pytest.raises(InputError, match="filter 'separable': features are not the pixels' x and y"):
        FILTERS["separable"](features_for("permutohedral", parts))
    guides = Kernel(name="k", weight=1, position=99.0, guides={"g": 9.0})
    with pytest.raises(InputError, match=r"filter 'permutohedral': 17 features; allowed: up to 16"):
        DenseCRF(3, kernels=(guides,), filter="permutohedral").prepare(guides={"g": torch.rand(1, 15, 4, 5)})
    with pytest.raises(InputError, match="filter 'permutohedral': features reach"):
        DenseCRF(3, CrfSettings(theta_beta=1e-4), filter="permutohedral").double().prepare(image=parts[1])
