"""DenseCRF(probabilities=True): softmax of what it returns otherwise, by every filter, and its gradients."""

import pytest
import torch

from jointseg.crf import CrfSettings, DenseCRF
from jointseg.crf.cpu.fused import as_rows, empty_like
from jointseg.crf.cpu.transpose import from_rows
from jointseg.crf.filters import structured

FILTERS = pytest.mark.parametrize("filter", ["auto", "exact", "permutohedral"])


@pytest.fixture(autouse=True)
def _threads_for_small_images(monkeypatch):
    monkeypatch.setattr(structured, "PIXELS_PER_THREAD", 1)


def scene(*, B: int = 2, C: int = 5, H: int = 65, W: int = 70, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(B, C, H, W, generator=draw, dtype=torch.float64)
    image = 255 * torch.rand(B, 3, H, W, generator=draw, dtype=torch.float64)
    depth = 1 + 4 * torch.rand(B, H, W, generator=draw, dtype=torch.float64)
    return logits.to(dtype), {"image": image.to(dtype), "depth": depth.to(dtype)}


@FILTERS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("num_iterations", [0, 1, 3])
def test_probabilities_are_the_softmax_of_the_logits(filter, dtype, tolerance, num_iterations):
    size = {"H": 12, "W": 17} if filter == "exact" else {}
    logits, given = scene(dtype=dtype, **size)
    crf = DenseCRF(5, CrfSettings(num_iterations=num_iterations).scaled(1 / 8), filter=filter).to(dtype).requires_grad_(False)
    q = crf(logits, **given, probabilities=True)
    torch.testing.assert_close(q, crf(logits, **given).softmax(1), rtol=0, atol=tolerance)
    assert q.is_contiguous()


@FILTERS
def test_gradients_through_probabilities_are_those_through_the_softmax(filter):
    logits, given = scene(H=12, W=17) if filter == "exact" else scene()
    crf = DenseCRF(5, CrfSettings(num_iterations=2).scaled(1 / 8), filter=filter).double()
    target = torch.rand_like(logits)

    def gradients(*, probabilities: bool):
        unary = logits.clone().requires_grad_()
        out = crf(unary, **given, probabilities=probabilities)
        q = out if probabilities else out.softmax(1)
        return torch.autograd.grad((q * target).sum(), [unary, *crf.parameters()])

    torch.testing.assert_close(gradients(probabilities=True), gradients(probabilities=False), rtol=1e-12, atol=1e-14)


def test_probabilities_without_recording_gradients_are_the_same():
    logits, given = scene()
    crf = DenseCRF(5, CrfSettings(num_iterations=2).scaled(1 / 8)).double()
    recorded = crf(logits, **given, probabilities=True)
    with torch.no_grad():
        torch.testing.assert_close(crf(logits, **given, probabilities=True), recorded.detach(), rtol=0, atol=1e-12)
    assert recorded.requires_grad


@pytest.mark.parametrize("C", [1, 3, 8, 13, 40, 70])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_rows_of_any_width_and_back(C, threads, channels_last):
    for P in (1, 7, 64, 133):
        values = torch.rand(C, P, generator=torch.Generator().manual_seed(P))
        if channels_last:
            values = values.mT.contiguous().mT
        back = empty_like(values)
        assert back.is_contiguous() == values.is_contiguous()
        with as_rows(values, -5.0, threads) as rows_PC:
            assert (rows_PC[:, :C] == values.T.numpy()).all()
            assert (rows_PC[:, C:] == -5).all()
            from_rows(rows_PC, back.numpy(), threads)
        assert torch.equal(back, values)


@pytest.mark.parametrize("C", [5, 8], ids=["padded", "whole vectors"])
@pytest.mark.parametrize("masked", [False, True])
def test_channels_last_gives_the_same_bits_in_channels_last(C, masked):
    logits, given = scene(C=C)
    given["mask"] = torch.rand(given["depth"].shape, generator=torch.Generator().manual_seed(1)) > 0.2 if masked else None
    crf = DenseCRF(C, CrfSettings(num_iterations=3).scaled(1 / 8)).double()
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        own = logits.clone(memory_format=layout).requires_grad_()
        before = own.detach().clone()
        with torch.no_grad():
            alone, q = crf(own, **given), crf(own, **given, probabilities=True)
        recorded = crf(own, **given)
        by_logits, by_weights = torch.autograd.grad(recorded.square().sum(), [own, next(crf.parameters())])
        assert torch.equal(own, before), "the logits given were written to"
        for result in (alone, q, recorded, by_logits):
            assert result.is_contiguous(memory_format=layout)
        results.append((alone, q, recorded, by_logits, by_weights))
    for contiguous, last in zip(*results, strict=True):
        assert torch.equal(contiguous, last)
