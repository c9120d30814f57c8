"""Bilinear upsampling of one map onto another, and its gradients, in Triton: the large map is read once and written once.

Not here: the function that learns (bilinear.py). It needs triton: import it when needed.

A program takes what lies between two rows of the small map. Maps are contiguous or channels_last, and are read and written
along what is innermost. The number of scores is known to the compiler, so that it knows what is aligned. No kernel adds
atomically: a sum has one order.
"""

# B images, K scores, h side of the small map, F factor, H = F(h - 1) + 1

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
# ruff: noqa: PLR0917  # kernels take no keywords

import torch
import triton
import triton.language as tl
from torch import Tensor

_MOST_SCORES, _PLACES = 64, 64
"""Scores, and places along a row of the large map, that a program takes at once."""


@triton.jit
def _at(k, pixel, num_pixels, K: tl.constexpr, LAST: tl.constexpr):
    """Where the scores k (of K) of some pixels are in a map, (scores, pixels). LAST: channels_last."""
    return pixel[None, :] * K + k[:, None] if LAST else k[:, None] * num_pixels + pixel[None, :]


@triton.jit
def _loaded(source, k, pixel, there, num_pixels, K: tl.constexpr, LAST: tl.constexpr):
    """The scores k of some pixels as float32, (scores, pixels); 0 there where there are none."""
    mask = (k < K)[:, None] & (there & (pixel >= 0) & (pixel < num_pixels))[None, :]
    return tl.load(source + _at(k, pixel, num_pixels, K, LAST), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _stored(target, k, pixel, there, num_pixels, value, K: tl.constexpr, LAST: tl.constexpr):
    """Write the scores k of some pixels, (scores, pixels)."""
    mask = (k < K)[:, None] & (there & (pixel >= 0) & (pixel < num_pixels))[None, :]
    tl.store(target + _at(k, pixel, num_pixels, K, LAST), value.to(target.dtype.element_ty), mask=mask)


@triton.jit
def _upsample(
    small, score, out, h, K: tl.constexpr, F: tl.constexpr, SMALL_LAST: tl.constexpr, SCORE_LAST: tl.constexpr,
    ADDED: tl.constexpr, BLOCK_K: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """F rows of the output: out[F i + y, x] for 0 <= y < F, for some scores and places x. ADDED: plus the score."""
    H = (h - 1) * F + 1
    x = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    i = tl.program_id(1)
    parts: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    k = tl.program_id(2) % parts * BLOCK_K + tl.arange(0, BLOCK_K)
    image = (tl.program_id(2) // parts).to(tl.int64)
    small += image * (h * h) * K
    score += image * (H * H) * K
    out += image * (H * H) * K
    there = x < H
    along = ((x % F).to(tl.float32) * (1.0 / F))[None, :]
    left, right = x // F, tl.minimum(x // F + 1, h - 1)
    top = _loaded(small, k, i * h + left, there, h * h, K, SMALL_LAST) * (1.0 - along)
    top += _loaded(small, k, i * h + right, there, h * h, K, SMALL_LAST) * along
    below = tl.minimum(i + 1, h - 1)
    bottom = _loaded(small, k, below * h + left, there, h * h, K, SMALL_LAST) * (1.0 - along)
    bottom += _loaded(small, k, below * h + right, there, h * h, K, SMALL_LAST) * along
    for y in tl.range(F, loop_unroll_factor=2):
        down = y * (1.0 / F)
        pixel = (i * F + y) * H + x
        value = top * (1.0 - down) + bottom * down
        if ADDED:
            value += _loaded(score, k, pixel, there, H * H, K, SCORE_LAST)
        _stored(out, k, pixel, there, H * H, value, K, False)


@triton.jit
def _gradients(
    grad, by_small, by_score, h, K: tl.constexpr, F: tl.constexpr, GRAD_LAST: tl.constexpr, SMALL_LAST: tl.constexpr,
    SCORE_LAST: tl.constexpr, SUMMED: tl.constexpr, COPIED: tl.constexpr, BLOCK_K: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """SUMMED: by_small[i, j] = sum over -F < y, x < F of (1 - |y|/F) (1 - |x|/F) grad[F i + y, F j + x], for some scores and
    places j. COPIED: by_score = grad, there where 0 <= y and 0 <= x.
    """
    H = (h - 1) * F + 1
    J: tl.constexpr = PLACES // F
    x = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    i = tl.program_id(1)
    parts: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    k = tl.program_id(2) % parts * BLOCK_K + tl.arange(0, BLOCK_K)
    image = (tl.program_id(2) // parts).to(tl.int64)
    grad += image * (H * H) * K
    by_small += image * (h * h) * K
    by_score += image * (H * H) * K
    if COPIED:
        for y in tl.range(F, loop_unroll_factor=2):
            pixel = (i * F + y) * H + x
            value = _loaded(grad, k, pixel, x < H, H * H, K, GRAD_LAST)
            _stored(by_score, k, pixel, x < H, H * H, value, K, SCORE_LAST)
    if SUMMED:
        j = tl.program_id(0) * J + tl.arange(0, J)
        total = tl.zeros((BLOCK_K, J), tl.float32)
        for y in range(1 - F, F):
            row = i * F + y
            down = 1.0 - tl.abs(y * (1.0 / F))
            for over in tl.static_range(1 - F, F):
                place = j * F + over
                there = (place >= 0) & (place < H) & (place * 0 + row >= 0)
                value = _loaded(grad, k, row * H + place, there, H * H, K, GRAD_LAST)
                total += value * (down * (1.0 - (over if over > 0 else -over) / F))
        _stored(by_small, k, i * h + j, j < h, h * h, total, K, SMALL_LAST)


def upsampled(small: Tensor, factor: int, score: Tensor | None) -> Tensor:
    """The small map upsampled, plus the score if there is one: (B, K, H, H), float32, contiguous."""
    B, K, h, _ = small.shape
    H = factor * (h - 1) + 1
    out = torch.empty((B, K, H, H), dtype=torch.float32, device=small.device)
    with torch.cuda.device_of(small):
        _upsample[_grid(B, K, h, H)](
            small, out if score is None else score, out, h, K=K, F=factor, SMALL_LAST=_last(small),
            SCORE_LAST=score is not None and _last(score), ADDED=score is not None, BLOCK_K=_scores(K), PLACES=_PLACES,
            num_warps=8, enable_fp_fusion=True,
        )  # fmt: skip
    return out


def gradients(grad: Tensor, factor: int, by_small: Tensor | None, by_score: Tensor | None) -> None:
    """Fill the gradients by the small map and by the score, of those that are wanted, from the one by the output."""
    wanted = by_small if by_small is not None else by_score
    assert wanted is not None
    B, K, H, _ = grad.shape
    h = (H - 1) // factor + 1
    with torch.cuda.device_of(grad):
        _gradients[_grid(B, K, h, H)](
            grad, wanted if by_small is None else by_small, wanted if by_score is None else by_score, h, K=K, F=factor,
            GRAD_LAST=_last(grad), SMALL_LAST=by_small is not None and _last(by_small),
            SCORE_LAST=by_score is not None and _last(by_score), SUMMED=by_small is not None, COPIED=by_score is not None,
            BLOCK_K=_scores(K), PLACES=_PLACES, num_warps=8, enable_fp_fusion=True,
        )  # fmt: skip


def _grid(B: int, K: int, h: int, H: int) -> tuple[int, int, int]:
    assert K * H * H < 2**31, (K, H)  # places in an image are int32
    return triton.cdiv(H, _PLACES), h, B * triton.cdiv(K, _scores(K))


def _scores(K: int) -> int:
    return min(_MOST_SCORES, int(triton.next_power_of_2(K)))


def _last(x: Tensor) -> bool:
    assert x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last), x.stride()
    return not x.is_contiguous()
