"""Laws of a batch whose images are computed side by side. Not here: the threads of one image (test_crf_one_pass.py)."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from jointseg.crf import CrfSettings, DenseCRF
from jointseg.crf.cpu.abreast import each_image
from jointseg.errors import InputError
from tests.crf_scenes import automatic, learned, scene


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("filter", [automatic, "permutohedral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_is_its_images_to_the_bit(filter, dtype):
    logits, image, depth = scene(5, dtype=dtype)
    crf = learned(3, "crfrnn", filter, dtype=dtype)
    together = crf(logits.requires_grad_(), image=image, depth=depth)
    together.square().sum().backward()
    by_logits, by_weights = logits.grad.clone(), [parameter.grad.clone() for parameter in crf.parameters()]
    logits.grad, _ = None, crf.zero_grad()
    alone = torch.cat([crf(logits[i : i + 1], image=image[i : i + 1], depth=depth[i : i + 1]) for i in range(5)])
    alone.square().sum().backward()
    assert torch.equal(together, alone)
    assert torch.equal(by_logits, logits.grad)
    for own, other in zip(by_weights, crf.parameters(), strict=True):
        torch.testing.assert_close(own, other.grad)  # added up in another order


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_can_be_prepared_and_used_where_nothing_is_recorded(mode):
    logits, image, depth = scene(4)
    crf = learned(3, "crfrnn", automatic)
    with mode():
        prepared = crf.prepare(image=image.clone(), depth=depth.clone())
        assert torch.equal(crf(logits.clone(), prepared=prepared), crf(logits, image=image, depth=depth))


@pytest.mark.parametrize(("threads_each", "at_once"), [(1, 3), (2, 1), (3, 1)])
def test_as_many_are_at_once_as_there_are_threads_for(threads_each, at_once):
    working, most, lock = 0, 0, threading.Lock()

    def work(i):
        nonlocal working, most
        with lock:
            working += 1
            most = max(most, working)
        time.sleep(0.05)
        with lock:
            working -= 1
        return i**2

    assert each_image(work, 7, threads_each=threads_each) == [i**2 for i in range(7)]
    assert most == at_once


def test_the_first_image_that_is_refused_is_named_and_the_rest_has_ended():
    ended = []

    def work(i):
        time.sleep(0.02)
        ended.append(i)
        if i in {1, 2}:
            raise InputError(f"image {i}")

    with pytest.raises(InputError, match="image 1"):
        each_image(work, 1000, threads_each=1)
    so_far = len(ended)
    time.sleep(0.1)
    assert len(ended) == so_far < 1000


def test_images_of_a_batch_that_no_lattice_can_number_are_refused_as_one_is():
    crf = DenseCRF(2, CrfSettings(theta_beta=1e-4), filter="permutohedral")
    logits, image, _ = scene(3, C=2, dtype=torch.float32)
    with pytest.raises(InputError, match="lattice steps; allowed"):
        crf(logits, image=image)
