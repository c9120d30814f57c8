"""Mean field in one pass over filters with a structure. Not here: each filter by itself (test_crf_structured.py)."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jointseg.crf import CrfSettings, DenseCRF, Kernel
from jointseg.crf.cpu import scratch
from jointseg.crf.filters import structured
from jointseg.crf.inputs import Guides
from jointseg.crf.kernels import kernel_features, paper_kernels
from jointseg.crf.mean_field import mean_field
from jointseg.crf.prepared import PreparedImages
from jointseg.errors import InputError
from tests.crf_scenes import apart, automatic, infer, learned, memory_of_nan, scene

FORMS = pytest.mark.parametrize("form", ["crfrnn", "hadamard"])


@pytest.fixture(autouse=True)
def _threads_for_small_images(monkeypatch):
    """As many threads as a test sets, whatever the number of pixels."""
    monkeypatch.setattr(structured, "PIXELS_PER_THREAD", 1)


@FORMS
@pytest.mark.parametrize("C", [2, 3, 40, 150])
@pytest.mark.parametrize("threads", [1, 2])
def test_one_pass_over_all_kernels_equals_one_filter_after_another(form, C, threads):
    torch.set_num_threads(threads)
    parts = scene(2, C)
    parts[2][0, 3:6] = 0  # holes
    plain, fused = learned(C, form, apart), learned(C, form, automatic)
    torch.testing.assert_close(infer(fused, *parts), infer(plain, *parts), rtol=1e-11, atol=1e-10)


@FORMS
@pytest.mark.parametrize("C", [3, 40])
@pytest.mark.parametrize("frozen", [False, True], ids=["learning", "frozen"])
def test_gradients_of_one_pass_equal_those_of_one_filter_after_another(form, C, frozen):
    torch.set_num_threads(2)
    parts = scene(2, C)
    parts[2][0, 3:6] = 0
    grads = []
    for filter in (apart, automatic):
        crf = DenseCRF(C, CrfSettings().scaled(1 / 8), filter=filter).double() if frozen else learned(C, form, filter)
        crf.requires_grad_(not frozen)
        logits = parts[0].clone().requires_grad_()
        out = crf(logits, image=parts[1], depth=parts[2]).softmax(1)
        (out * torch.rand(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)).sum().backward()
        grads.append([logits.grad, *(p.grad for p in crf.parameters() if not frozen)])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@FORMS
def test_gradients_of_one_pass_are_those_of_finite_differences(form):
    crf, (logits, image, depth) = learned(3, form, automatic), scene(H=4, W=5)
    names, parameters = zip(*crf.named_parameters(), strict=True)

    def q(logits: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(crf, state, (logits,), {"image": image, "depth": depth}).softmax(1)

    assert torch.autograd.gradcheck(q, (logits.requires_grad_(), *parameters))


def test_training_keeps_q_of_the_iterations_and_gives_the_logits_of_inference():
    crf, parts = learned(40, "crfrnn", automatic, dtype=torch.float32), scene(C=40, dtype=torch.float32)
    out = crf(parts[0], image=parts[1], depth=parts[2], num_iterations=5)
    fused = out.grad_fn.next_functions[0][0]
    assert torch.equal(out.detach(), infer(crf, *parts, num_iterations=5))
    assert [tuple(kept.shape) for kept in fused.saved_tensors] == [(3, 40, 40), (5, 19 * 26 * 40)]
    out.sum().backward()
    with pytest.raises(RuntimeError, match="they have already been freed"):
        _ = fused.saved_tensors


@FORMS
def test_laws_of_q(form):
    logits, image, depth = scene(C=4)
    crf = learned(4, form, automatic)
    out = infer(crf, logits, image, depth)
    shift = torch.linspace(-20, 20, 19 * 26, dtype=torch.float64).reshape(1, 1, 19, 26)
    torch.testing.assert_close(infer(crf, logits + shift, image, depth).softmax(1), out.softmax(1), rtol=1e-9, atol=1e-11)
    order = [2, 0, 3, 1]
    permuted = learned(4, form, automatic)
    for parameter in permuted.parameters():
        parameter.data = parameter.data[order][:, order]
    torch.testing.assert_close(infer(permuted, logits[:, order], image, depth), out[:, order], rtol=1e-10, atol=1e-10)
    crf.weights["depth"].data.zero_()
    torch.testing.assert_close(infer(crf, logits, image, depth), infer(crf, logits, image, None), rtol=1e-12, atol=1e-12)
    for weight in crf.weights.values():
        weight.data.zero_()
    torch.testing.assert_close(infer(crf, logits, image, depth), logits, rtol=0, atol=0)
    assert infer(crf, logits, image, depth, num_iterations=0) is logits


@FORMS
def test_a_batch_equals_its_images_one_by_one(form):
    logits, image, depth = scene(B=3)
    crf = learned(3, form, automatic)
    singles = [infer(crf, logits[i : i + 1], image[i : i + 1], depth[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(infer(crf, logits, image, depth), torch.cat(singles), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3)])
@pytest.mark.parametrize("C", [2, 150])
@pytest.mark.parametrize("threads", [1, 4])
def test_any_size_and_class_count_gives_finite_logits(size, C, threads):
    torch.set_num_threads(threads)
    dtype = torch.float64 if C == 150 else torch.float32  # as other tests have it: each is compiled for
    parts = scene(2, C, *size, dtype=dtype)
    out = infer(learned(C, "crfrnn", automatic, dtype=dtype), *parts)
    assert out.shape == parts[0].shape
    assert out.isfinite().all()


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bandwidth", [0.01, 1.0, 1e4])
def test_extreme_bandwidths_give_finite_logits(form, bandwidth, dtype):
    parts = scene(H=70, W=70, dtype=dtype)
    thetas = dict.fromkeys(("theta_alpha", "theta_beta", "theta_gamma", "theta_zeta", "theta_tau"), bandwidth)
    out = infer(DenseCRF(3, CrfSettings(pairwise=form, **thetas)).to(dtype), *parts)
    assert out.isfinite().all()


@settings(max_examples=40)
@given(
    size=st.tuples(st.integers(1, 17), st.integers(1, 17)), C=st.sampled_from([2, 3, 8, 33, 40]), threads=st.integers(1, 3),
    tau=st.floats(0.2, 30), gamma=st.floats(2, 60), zeta=st.floats(0.1, 3), seed=st.integers(0, 9),
)  # fmt: skip
def test_without_the_lattice_mean_field_is_near_the_exact_one(*, size, C, threads, tau, gamma, zeta, seed):
    torch.set_num_threads(threads)
    parts = scene(1, C, *size, seed=seed)
    changes = {"theta_tau": tau, "theta_gamma": gamma, "theta_zeta": zeta, "w_appearance": 0.0, "num_iterations": 1}
    crfs = [DenseCRF(C, CrfSettings(**changes), filter=filter).double() for filter in (automatic, "exact")]
    fused, exact = (infer(crf, *parts).softmax(1) for crf in crfs)
    assert (fused - exact).abs().mean() <= 0.02


def test_prepared_once_serves_other_weights():
    logits, image, depth = scene()
    one = learned(3, "crfrnn", automatic)
    other = DenseCRF(3, one.settings.model_copy(update={"w_depth": 1.0}), filter=automatic).double()
    prepared = one.prepare(image=image, depth=depth)
    with torch.no_grad():
        for crf in (one, other):
            assert torch.equal(crf(logits, prepared=prepared), infer(crf, logits, image, depth))


def test_prepared_for_other_bandwidths_or_sizes_is_refused():
    logits, image, depth = scene()
    prepared = DenseCRF(3).double().prepare(image=image, depth=depth)
    with pytest.raises(InputError, match="prepared with bandwidths"):
        DenseCRF(3, CrfSettings(theta_beta=4.0)).double()(logits, prepared=prepared)
    with pytest.raises(InputError, match="beside what was prepared"):
        DenseCRF(3).double()(logits[:, :, 1:], prepared=prepared)
    mask = torch.ones(image[:, 0].shape, dtype=torch.bool)
    for beside in ({"image": image}, {"depth": depth}, {"guides": {}}, {"mask": mask}):
        with pytest.raises(InputError, match="give either prepared, or image, depth, guides and mask"):
            DenseCRF(3).double()(logits, prepared=prepared, **beside)


def test_prepared_by_another_filter_than_the_one_named_is_refused():
    logits, image, depth = scene()
    by_auto = DenseCRF(3).double().prepare(image=image, depth=depth)  # exact: the images are small
    assert DenseCRF(3, filter="exact").double()(logits, prepared=by_auto).isfinite().all()
    lattice = DenseCRF(3, filter="permutohedral").double()
    with pytest.raises(InputError, match=r"prepared with filter 'exact' for kernel 'appearance'; allowed: .* 'permutohedral'"):
        lattice(logits, prepared=by_auto)
    assert DenseCRF(3).double()(logits, prepared=lattice.prepare(image=image)).isfinite().all()


def test_prepared_for_other_kernels_is_refused():
    logits, image, depth = scene()

    def crf_of(*kernels):
        return DenseCRF(3, kernels=kernels).double()

    near, far = Kernel(name="near", weight=3.0, position=3.0), Kernel(name="far", weight=1.0, position=9.0)
    of_a, of_b = (Kernel(name="k", weight=1.0, position=9.0, guides={name: 0.5}) for name in "ab")
    guide = depth[:, None]
    paper, of_near = DenseCRF(3).double(), crf_of(near).prepare(image=image)
    for crf, prepared, said in (
        (paper, of_near, "bandwidths position 3 for kernel 'near'; allowed: this CRF's kernels, appearance, depth, smoothness"),
        (crf_of(near, far), of_near, "prepared for kernels near, not for 'far'; allowed: this CRF's kernels"),
        (crf_of(of_b), crf_of(of_a).prepare(guides={"a": guide}), "position 9, a 0.5 for kernel 'k'; allowed: .* 9, b 0.5"),
    ):
        with pytest.raises(InputError, match=said):
            crf(logits, prepared=prepared)
    assert crf_of(near, far)(logits, prepared=crf_of(far, near).prepare(image=image)).isfinite().all()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_lattice_without_a_valid_pixel_says_nothing(threads, monkeypatch):
    torch.set_num_threads(threads)
    monkeypatch.setattr(scratch, "_take", memory_of_nan)
    logits, image, depth = scene()
    kernels = (
        Kernel(name="colour", weight=3.0, position=20.0, guides={"image": 5.0}),
        Kernel(name="surface", weight=3.0, position=20.0, guides={"depth": 0.5, "slopes": 0.5}),
    )
    crf, without = (
        DenseCRF(3, CrfSettings(num_iterations=2), kernels=some, filter="permutohedral").double()
        for some in (kernels, kernels[:1])
    )
    given = {"image": image, "depth": torch.zeros_like(depth), "guides": {"slopes": image[:, :2]}}
    torch.testing.assert_close(crf(logits, **given), without(logits, image=image), rtol=1e-12, atol=1e-12)
    nowhere = torch.zeros(1, 19, 26, dtype=torch.bool)
    out = crf(logits.requires_grad_(), **given, mask=nowhere)
    assert torch.equal(out, logits)
    out.sum().backward()
    assert (logits.grad == 1).all()
    assert all((weight.grad == 0).all() for weight in crf.weights.values())


def test_every_run_gives_the_same_bits_and_thread_counts_agree_to_1e_6():
    parts = scene(C=21, H=150, W=170, dtype=torch.float32)  # enough pixels for three threads
    outs = []
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        outs.append(infer(DenseCRF(21, CrfSettings().scaled(1 / 4), filter=automatic), *parts).softmax(1))
    assert torch.equal(outs[1], outs[2])
    for out in outs[1:]:
        assert (out - outs[0]).abs().max() <= 1e-6


def test_several_python_threads_at_once_give_what_one_gives():
    torch.set_num_threads(2)
    parts = scene(C=8, dtype=torch.float32)
    crf = learned(8, "crfrnn", automatic, dtype=torch.float32)
    expected = infer(crf, *parts)
    with ThreadPoolExecutor(4) as pool:
        outs = list(pool.map(lambda _: infer(crf, *parts), range(12)))
    assert all(torch.equal(out, expected) for out in outs)


def test_float32_lattice_is_near_its_float64():
    parts = scene(C=5, H=40, W=57)
    double = infer(learned(5, "crfrnn", automatic), *parts).softmax(1)
    single = infer(learned(5, "crfrnn", automatic, dtype=torch.float32), *(part.float() for part in parts)).softmax(1)
    assert (single - double).abs().mean() <= 1e-5


def test_the_lattice_is_pydensecrfs():
    densecrf = pytest.importorskip("pydensecrf.densecrf", reason="needs pydensecrf2")
    H, W, C = 60, 75, 7
    logits, image, depth = scene(C=C, H=H, W=W, dtype=torch.float32)
    settings_ = CrfSettings().scaled(1 / 4)
    peer = densecrf.DenseCRF(H * W, C)
    peer.setUnaryEnergy(np.ascontiguousarray(-logits[0].flatten(1).numpy()))
    for kernel in paper_kernels(settings_):
        values = kernel_features(kernel, {"image": image, "depth": depth[:, None]}, like=image)[0].T
        peer.addPairwiseEnergy(
            np.ascontiguousarray(values.numpy()), compat=kernel.weight, normalization=densecrf.NORMALIZE_AFTER
        )
    expected = np.array(peer.inference(10)).reshape(C, H, W)
    q = infer(DenseCRF(C, settings_, filter="permutohedral"), logits, image, depth).softmax(1)[0]
    distances = (q - torch.from_numpy(expected)).abs()
    assert distances.mean() <= 1e-7
    assert distances.max() <= 1e-5


def test_mean_field_of_prepared_images_without_structure_is_the_plain_one():
    logits, image, depth = scene(H=6, W=7)
    kernels = paper_kernels(CrfSettings())
    guides = Guides(channels={"image": image, "depth": depth[:, None]})
    prepared = PreparedImages(kernels, guides, like=logits, filter="exact")
    matrices = -torch.stack([kernel.weight * torch.eye(3).double() for kernel in kernels])
    run = partial(mean_field, logits.flatten(2), prepared.filters, matrices_KCC=matrices, num_iterations=2)
    torch.testing.assert_close(prepared.mean_field(logits.flatten(2), matrices_KCC=matrices, num_iterations=2), run())


@FORMS
def test_weights_that_were_learned_a_little_count_in_inference_as_in_training(form):
    """Kernels of exact filters are added up before inference where their weights allow it: here they do not."""
    logits, image, depth = scene(H=6, W=7)
    crf = DenseCRF(3, CrfSettings(pairwise=form, theta_beta=60.0), filter="exact").double()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        crf.weights["depth"].add_(1e-3 * torch.randn(3, 3, generator=draw, dtype=torch.float64))
    in_training = crf(logits, image=image, depth=depth).detach()
    torch.testing.assert_close(infer(crf, logits, image, depth), in_training, rtol=1e-10, atol=1e-11)
