"""Which CRFs take what one of them prepared, where its filter is a function.

Not here: other bandwidths, sizes, kernels and named filters (test_crf_one_pass.py), what is built anew (test_crf_reuse.py).
"""

import copy
import pickle
from functools import partial

import pytest
import torch

from jointseg.crf import DenseCRF
from jointseg.crf.filters import FILTERS, ExactFilter, Features
from jointseg.errors import InputError
from tests.crf_scenes import automatic, scene


def mine(features: Features):
    return FILTERS["exact"](features)


def another_of_its_name():
    def mine(features: Features):
        return FILTERS["permutohedral"](features)

    return mine


def exact(features: Features):
    return FILTERS["permutohedral"](features)


@pytest.mark.parametrize(
    ("own", "by", "found", "allowed"),
    [
        (mine, automatic, "'automatic' (a function)", "'mine' (the same function)"),
        (mine, another_of_its_name(), "'mine' (a function)", "'mine' (the same function)"),
        (mine, "exact", "'exact'", "'mine' (the same function)"),
        (mine, "auto", "'exact'", "'mine' (the same function)"),
        ("exact", exact, "'exact' (a function)", "'exact'"),
        (partial(ExactFilter, budget_bytes=1), partial(ExactFilter, budget_bytes=2), None, None),
        (partial(mine), mine, None, None),
    ],
)
def test_what_another_function_prepared_is_refused(own, by, found, allowed):
    logits, image, depth = scene(dtype=torch.float32)
    prepared = DenseCRF(3, filter=by).prepare(image=image, depth=depth)
    with pytest.raises(InputError, match=r"^prepared with filter .* for kernel 'appearance'; allowed: this CRF's, ") as caught:
        DenseCRF(3, filter=own)(logits, prepared=prepared)
    if found is not None:
        assert str(caught.value) == f"prepared with filter {found} for kernel 'appearance'; allowed: this CRF's, {allowed}"
    assert DenseCRF(3)(logits, prepared=prepared).isfinite().all(), "auto takes all"


@pytest.mark.parametrize("filter", [mine, partial(ExactFilter, budget_bytes=10**7), ExactFilter, "exact", "permutohedral"])
def test_what_was_prepared_serves_copies_of_the_crf_and_so_does_its_copy(filter):
    """A moving average of the weights is such a copy, and so is what a worker process gets."""
    logits, image, depth = scene(dtype=torch.float32)
    crf = DenseCRF(3, filter=filter)
    prepared = crf.prepare(image=image, depth=depth)
    expected = crf(logits, image=image, depth=depth)
    for other in (copy.deepcopy(crf), pickle.loads(pickle.dumps(crf))):
        for its in (prepared, copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
            assert torch.equal(other(logits, prepared=its), expected)


def test_a_filters_own_function_is_the_filter_of_that_name():
    logits, image, _ = scene(dtype=torch.float32)
    named, given = DenseCRF(3, filter="exact"), DenseCRF(3, filter=FILTERS["exact"])
    assert torch.equal(named(logits, prepared=given.prepare(image=image)), given(logits, prepared=named.prepare(image=image)))
