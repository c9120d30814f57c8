"""What the CRF is given besides logits, and what of it is refused.

Not here: what is done with it (prepared.py, dense_crf.py).
"""

# B images, C classes, P pixels (H*W, row-major)

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor, nn

from jointseg.crf.filters import DEVICES
from jointseg.crf.fingerprint import fingerprints
from jointseg.crf.kernels import Kernel
from jointseg.errors import InputError

MASK = "mask"
"""Its name beside those of the channels."""
LARGEST = 1e18
"""Of a guide's values and of bandwidths, whose least is its inverse: float32 holds every quotient."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Guides:
    """Everything that kernels may compare, for B images of H x W."""

    channels: Mapping[str, Tensor]
    """By name, each (B, channels, H, W): `image`, `depth` and the user's own."""
    mask: Tensor | None = None
    """(B, H, W), bool: where False, a pixel sends and receives no message at all."""

    @staticmethod
    def of(*, image: Tensor | None, depth: Tensor | None, guides: Mapping[str, Tensor] | None, mask: Tensor | None) -> Guides:
        """Gather what `DenseCRF.forward` was given."""
        if guides is not None:
            refuse_others("guides", guides, Mapping, "a mapping of names to torch.Tensor")
        channels = dict(guides or {})
        for name, tensor in channels.items():
            refuse_others("a guide's name", name, str, "str")
            refuse_others(f"guides[{name!r}]", tensor)
        for name, given in (("image", image), ("depth", depth), (MASK, mask)):
            if given is not None:
                refuse_others(name, given)
        for name in ("image", "depth", MASK):
            if name in channels:
                raise InputError(f"guides holds {name!r}; allowed: names of your own (give {name}= by itself)")
        if image is not None:
            channels["image"] = image
        if depth is not None:
            if depth.ndim != 3:
                raise InputError(f"depth has shape {tuple(depth.shape)}; allowed: (B, H, W)")
            channels["depth"] = depth[:, None]
        return Guides(channels=channels, mask=mask)

    def compared_by(self, kernels: Sequence[Kernel]) -> list[Kernel]:
        """Those kernels that have all they compare; without depth, those that need it alone are left out.

        Raises:
            InputError: a guide is missing for another kernel, no kernel compares one that was given, or none is left.
        """
        unused = self.channels.keys() - {"image", "depth"} - {name for kernel in kernels for name in kernel.guides}
        if unused:
            compared = ", ".join(dict.fromkeys(name for kernel in kernels for name in kernel.guides)) or "nothing"
            raise InputError(f"guides holds {min(unused)!r}, which no kernel compares; allowed here: {compared}")
        having = []
        for kernel in kernels:
            missing = [name for name in kernel.guides if name not in self.channels]
            if not missing:
                having.append(kernel)
            elif not kernel.needs_depth_alone:
                given = ", ".join(self.channels) or "none"
                raise InputError(f"kernel {kernel.name!r} compares {', '.join(missing)}; given: {given}")
        if kernels and not having:
            raise InputError("depth is not given, and no kernel compares anything else; allowed: depth=")
        return having

    def without_masked(self) -> Guides:
        """The same with 0 where the mask leaves a pixel out: what is there may be no number."""
        if self.mask is None:
            return self
        out_B1HW = ~self.mask[:, None]
        return Guides(channels={name: guide.masked_fill(out_B1HW, 0) for name, guide in self.channels.items()}, mask=self.mask)

    def valid_for(self, kernel: Kernel) -> Tensor | None:
        """(B, P): which pixels take part in this kernel; None where all do. A depth that is not above 0 is none."""
        parts = [] if self.mask is None else [self.mask]
        if "depth" in kernel.guides:
            there_BHW = self.channels["depth"][:, 0] > 0
            if not there_BHW.all():
                parts.append(there_BHW)
        return torch.stack(parts).all(0).flatten(1) if parts else None

    def digests(self) -> dict[str, str]:
        """What tells each channel's values and the mask's from others, by name: SHA-256, and of tensors that are not on a CPU
        their fingerprints. Waits for the device.
        """
        given = {**self.channels, **({} if self.mask is None else {MASK: self.mask})}
        there = {name: tensor for name, tensor in given.items() if tensor.device.type != "cpu"}
        return {name: _digest(tensor) for name, tensor in given.items() if name not in there} | fingerprints(there)

    def check_dimensions(self) -> None:
        """Refuse what is not (B, channels, H, W), or empty."""
        for name, guide in self.channels.items():
            if guide.ndim != 4 or guide.numel() == 0 or (name == "image" and guide.shape[1] != 3):
                shown = tuple(guide.shape) if name != "depth" else (guide.shape[0], *guide.shape[2:])
                allowed = {"image": "(B, 3, H, W)", "depth": "(B, H, W)"}.get(name, "(B, channels, H, W)")
                raise InputError(f"{_called(name)} has shape {shown}; allowed: {allowed}, not empty")
        if self.mask is not None and (self.mask.ndim != 3 or self.mask.numel() == 0):
            raise InputError(f"mask has shape {tuple(self.mask.shape)}; allowed: (B, H, W), not empty")

    def check(self, *, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        """Refuse shapes, dtypes and devices that do not fit logits of B, H, W = `shape`."""
        B, H, W = shape
        for name, guide in self.channels.items():
            channels = {"image": 3, "depth": 1}.get(name)
            fits = guide.ndim == 4 and guide.shape[0] == B and guide.shape[2:] == (H, W) and guide.shape[1] > 0
            if not fits or (channels is not None and guide.shape[1] != channels):
                shown = tuple(guide.shape) if name != "depth" else (guide.shape[0], *guide.shape[2:])
                allowed = f"({B}, {H}, {W})" if name == "depth" else f"({B}, {channels or 'channels'}, {H}, {W})"
                raise InputError(f"{_called(name)} has shape {shown}; allowed here: {allowed}")
            dtypes = (dtype,) if name == "depth" else (torch.uint8, dtype)
            if guide.dtype not in dtypes:
                raise InputError(
                    f"{_called(name)} is {guide.dtype}; allowed beside these logits: {', '.join(map(str, dtypes))}"
                )
            if guide.device != device:
                raise InputError(f"{_called(name)} is on {guide.device} but the rest is on {device}; move one of them")
        if self.mask is not None and (self.mask.shape != shape or self.mask.dtype != torch.bool or self.mask.device != device):
            found = f"{tuple(self.mask.shape)} {self.mask.dtype} on {self.mask.device}"
            raise InputError(f"mask is {found}; allowed here: {shape} torch.bool on {device}")

    def check_values(self) -> None:
        """Refuse values that no image, depth or guide has. Waits for the device."""
        given = {name: guide for name, guide in self.channels.items() if guide.dtype != torch.uint8}
        for (name, guide), (low, high) in zip(given.items(), _ranges(list(given.values())), strict=True):
            allowed = "metres, 0 where there is none (torch.nan_to_num)" if name == "depth" else "finite"
            _refuse_infinite(_called(name), guide, (low, high), allowed=allowed)
            if not -LARGEST <= low <= high <= LARGEST:
                raise InputError(f"{_called(name)} has values in {low:g}..{high:g}; allowed: up to {LARGEST:g} in size")
            if name == "image":
                _check_levels(guide, low, high)
            if name == "depth" and low < 0:
                raise InputError(f"depth has values in {low:g}..{high:g}; allowed: metres, 0 where there is none")


def _called(name: str) -> str:
    return name if name in {"image", "depth"} else f"guides[{name!r}]"


def check_kernels(kernels: Sequence[Kernel]) -> None:
    """Refuse kernels that cannot be computed with, and two of one name.

    Raises:
        InputError: a name, a guide's name, a bandwidth or a weight is not as `Kernel` says.
    """
    for place, kernel in enumerate(kernels):
        refuse_others(f"kernels[{place}]", kernel, Kernel, "Kernel")
        refuse_others(f"kernel {kernel.name!r}: guides", kernel.guides, Mapping, "a mapping of names to bandwidths")
        refuse_others(f"kernel {kernel.name!r}: weight", kernel.weight, Real, "one number (a matrix goes into crf.weights)")
        for name in kernel.guides:
            if not isinstance(name, str) or name in {MASK, "position"}:
                raise InputError(f"kernel {kernel.name!r} compares {name!r}; allowed: a name that is not 'mask' or 'position'")
        for name, bandwidth in {"position": kernel.position, **kernel.guides}.items():
            one = "one number (where channels differ, divide those of a guide by their own before)"
            refuse_others(f"kernel {kernel.name!r}: bandwidth of {name}", bandwidth, Real, one)
    names = [kernel.name for kernel in kernels]
    for kernel in kernels:
        refuse_others("the name of a kernel", kernel.name, str, "str")
        if not kernel.name or "." in kernel.name or hasattr(nn.ParameterDict(), kernel.name):
            raise InputError(
                f"a kernel is called {kernel.name!r}; allowed: a name without dots that no ParameterDict has for itself"
            )
        if names.count(kernel.name) > 1:
            raise InputError(f"kernel {kernel.name!r} is there {names.count(kernel.name)} times; allowed: one of a name")
        check_bandwidths(kernel)
        if not abs(kernel.weight) <= torch.finfo(torch.float32).max:
            raise InputError(f"kernel {kernel.name!r} has weight {kernel.weight}; allowed: finite in float32")


def check_bandwidths(kernel: Kernel) -> None:
    """Refuse what nothing can be divided by in float32.

    Raises:
        InputError: a bandwidth is 0, less, NaN, infinite, or beyond what float32 can divide by.
    """
    if not all(1 / LARGEST <= bandwidth <= LARGEST for bandwidth in kernel.bandwidths):
        allowed = f"{1 / LARGEST:g} to {LARGEST:g}"
        raise InputError(f"kernel {kernel.name!r} has bandwidths {kernel.bandwidths}; allowed: {allowed}")


def check_parameters(compatibility_CC: Tensor) -> None:
    """Refuse a CRF, of whose parameters this is one, that was moved to where it cannot compute.

    Raises:
        InputError: its dtype is neither float32 nor float64, or no filter runs on its device.
    """
    if compatibility_CC.dtype not in (torch.float32, torch.float64):
        allowed = "torch.float32, torch.float64 (crf.float() does not bring back what was rounded: convert the rest alone)"
        raise InputError(f"the CRF's weights are {compatibility_CC.dtype}; allowed: {allowed}")
    if compatibility_CC.device.type not in DEVICES:
        raise InputError(f"the CRF is on {compatibility_CC.device}; allowed: {', '.join(DEVICES)}")


def check_logits(logits: Tensor, compatibility_CC: Tensor) -> None:
    """Refuse logits that a CRF with this parameter does not take; their values are not looked at.

    Raises:
        InputError: as `check_parameters`; the logits are no tensor, not (B, C, H, W), empty, or of another dtype or device.
    """
    check_parameters(compatibility_CC)
    refuse_others("logits", logits)
    C = len(compatibility_CC)
    if logits.ndim != 4 or logits.shape[1] != C or logits.numel() == 0:
        raise InputError(f"logits have shape {tuple(logits.shape)}; allowed: (B, {C}, H, W), not empty")
    if logits.dtype not in (torch.float32, torch.float64):
        raise InputError(f"logits are {logits.dtype}; allowed: torch.float32, torch.float64 (call logits.float())")
    if logits.dtype != compatibility_CC.dtype:
        raise InputError(f"logits are {logits.dtype} but the CRF's weights are {compatibility_CC.dtype}; make them the same")
    if logits.device != compatibility_CC.device:
        raise InputError(f"logits are on {logits.device} but the CRF is on {compatibility_CC.device}; move one of them")


def refuse_others(
    name: str, given: object, kind: type = Tensor, allowed: str = "torch.Tensor (torch.from_numpy makes one of an array)"
) -> None:
    """Raise InputError for what is of another kind."""
    if not isinstance(given, kind):
        raise InputError(f"{name} is a {type(given).__name__}; allowed: {allowed}")


def _digest(tensor: Tensor) -> str:
    values = tensor.detach().contiguous().numpy()
    digest = hashlib.sha256(f"{values.dtype} {values.shape}".encode())
    digest.update(values.data)
    return digest.hexdigest()


def _check_levels(image: Tensor, low: float, high: float) -> None:
    if low < 0 or high > 255:
        raise InputError(
            f"image has values in {low:g}..{high:g}; allowed: RGB levels 0..255, not normalised (clamp if resized)"
        )
    # Fractions tell an image in 0..1 from a nearly black one, whose levels are 0 and 1.
    if 0 < high <= 1 and bool((image != image.round()).any()):
        raise InputError(
            f"image has values in {low:g}..{high:g}, as if scaled to 0..1; allowed: RGB levels 0..255 (image * 255)"
        )


def least_and_greatest(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of all values; NaN where one of them is."""
    if values.ndim > 2 and values.movedim(-3, -1).is_contiguous():
        values = values.movedim(-3, -1)  # channels last, in the order that they lie in
    if not values.is_contiguous():  # on CPUs torch takes fifty times longer for both at once
        return values.amin(), values.amax()
    low, high = values.aminmax()
    return low, high


def finite_range(name: str, values: Tensor, *, allowed: str = "finite") -> tuple[float, float]:
    """The least and the greatest of the values.

    Raises:
        InputError: one of them is NaN or infinite.
    """
    ((low, high),) = _ranges([values])
    _refuse_infinite(name, values, (low, high), allowed=allowed)
    return low, high


def _ranges(tensors: Sequence[Tensor]) -> list[tuple[float, float]]:
    """The least and the greatest of each one's values, all of one dtype: one wait for the device."""
    ends = [end for values in tensors for end in least_and_greatest(values.detach())]
    numbers = torch.stack(ends).tolist() if ends else []
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _refuse_infinite(name: str, values: Tensor, ends: tuple[float, float], *, allowed: str) -> None:
    if not all(abs(end) < float("inf") for end in ends):
        raise InputError(
            f"{name}: {int((~values.isfinite()).sum())} of {values.numel()} values are NaN or infinite; allowed: {allowed}"
        )
