"""Small scenes and CRFs for tests of the filters with a structure. Not here: real frames."""

import numpy as np
import torch
from torch import Tensor

from jointseg.crf import CrfSettings, DenseCRF
from jointseg.crf.filters import FILTERS, Features


def scene(B: int = 1, C: int = 3, H: int = 19, W: int = 26, *, seed: int = 0, dtype=torch.float64):
    """Logits, image and depth: four flat regions with some noise, as rooms have."""
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(B, C, H, W, generator=draw, dtype=torch.float64)
    levels = torch.rand(B, 4, 2, 2, generator=draw, dtype=torch.float64)
    planes = torch.nn.functional.interpolate(levels, (H, W), mode="nearest")
    noise = torch.randn(B, 3, H, W, generator=draw, dtype=torch.float64)
    image = (255 * planes[:, :3] + 3 * noise).clamp(0, 255)
    depth = 1 + 4 * planes[:, 3] + 0.1 * torch.rand(B, H, W, generator=draw, dtype=torch.float64)
    return logits.to(dtype), image.to(dtype), depth.to(dtype)


def infer(crf: DenseCRF, logits: Tensor, image: Tensor, depth: Tensor | None, **options) -> Tensor:
    with torch.no_grad():
        return crf(logits, image=image, depth=depth, **options)


def learned(C: int, form: str, filter, *, dtype=torch.float64, **changes) -> DenseCRF:
    crf = DenseCRF(C, CrfSettings(pairwise=form, num_iterations=3, **changes).scaled(1 / 8), filter=filter).to(dtype)
    draw = torch.Generator().manual_seed(1)
    for parameter in crf.parameters():
        parameter.data += (0.3 * torch.randn(C, C, generator=draw, dtype=torch.float64)).to(dtype)
    return crf


def automatic(features: Features):
    """What `auto` takes for large images."""
    large = Features(values_BPF=features.values_BPF.expand(-1, -1, -1), size=features.size, valid_BP=features.valid_BP)
    F = large.values_BPF.shape[2]
    return FILTERS[{2: "separable", 3: "bilateral_grid", 5: "permutohedral"}[F]](large)


def apart(features: Features):
    """The same filter as `automatic`, in a wrapper that the fused pass does not know: plain mean field over it."""
    gaussian = automatic(features)

    class Wrapped:
        row_sums = gaussian.row_sums
        apply, apply_transposed = staticmethod(gaussian.apply), staticmethod(gaussian.apply_transposed)

    return Wrapped()


def memory_of_nan(size: int):
    """In place of `scratch._take`: nothing may count on what was there before."""
    return np.full(size, 0xFF, np.uint8)
