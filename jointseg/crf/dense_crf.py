"""The fully connected CRF as a module: learned weights, one call with everything.

Not here: the equations of inference (mean_field.py), the kernels (kernels.py), how messages are filtered (filters/).
"""

# B images, C classes, P pixels (H*W, row-major), K kernels

from __future__ import annotations

import torch
from torch import Tensor, nn

from jointseg.crf.filters import BuildFilter, FilterName, check_filter
from jointseg.crf.kernels import paper_kernels
from jointseg.crf.mean_field import pairwise_matrices
from jointseg.crf.prepared import PreparedImages, valid_pixels
from jointseg.crf.settings import CrfSettings
from jointseg.errors import InputError


class DenseCRF(nn.Module):
    """The paper's CRF (Eq 5-7) on the logits of any segmentation network.

    `crf(logits, image=image, depth=depth)` is Sem-CRF+; without depth it is Sem-CRF, kernels 1 and 3 alone.

    Learned: `weights` (`appearance`, `depth`, `smoothness`) and `compatibility`, each (C, C). At the start weights are w(k)
    times I and compatibility is -I (`crfrnn`), or filled with w(k) and 1 - I (`hadamard`): the same q by both.
    `settings` gives initial weights, and bandwidths in pixels of the logits' grid (see `CrfSettings.scaled`).
    """

    def __init__(
        self,
        num_classes: int,
        settings: CrfSettings | None = None,
        *,
        filter: FilterName | BuildFilter = "auto",
        check_inputs: bool = True,
    ) -> None:
        """Set up the weights.

        Args:
            num_classes: C.
            settings: bandwidths, initial weights, iterations and pairwise form; the paper's where None.
            filter: a name for all kernels, or what builds a filter from `Features`. `auto` takes `exact` for images of up to
                4096 pixels; larger ones on CUDA get `block_sparse`, on CPUs for each kernel what suits it: `separable`,
                `bilateral_grid` or `permutohedral`. What `prepare` returns tells which.
            check_inputs: look at the values of what `forward` is given, and not only at shapes and dtypes. On CUDA
                this waits for the device at each call; turn it off once the pipeline is trusted.

        Raises:
            InputError: `num_classes` is below 1, or `filter` is unknown.
        """
        super().__init__()
        if num_classes < 1:
            raise InputError(f"num_classes is {num_classes}; allowed: at least 1")
        self.num_classes = num_classes
        self.settings = settings if settings is not None else CrfSettings()
        self.check_inputs = check_inputs
        check_filter(filter)
        self.filter = filter
        self.kernels = paper_kernels(self.settings)
        identity_CC, ones_CC = torch.eye(num_classes), torch.ones(num_classes, num_classes)
        crfrnn = self.settings.pairwise == "crfrnn"
        start_CC = identity_CC if crfrnn else ones_CC
        self.weights = nn.ParameterDict({kernel.name: nn.Parameter(kernel.weight * start_CC) for kernel in self.kernels})
        self.compatibility = nn.Parameter(-identity_CC if crfrnn else ones_CC - identity_CC)

    def forward(
        self,
        logits: Tensor,
        *,
        image: Tensor | None = None,
        depth: Tensor | None = None,
        prepared: PreparedImages | None = None,
        num_iterations: int | None = None,
    ) -> Tensor:
        """Mean-field inference; differentiable by logits, weights and compatibility. Image and depth are inputs: no gradient.

        Args:
            logits: (B, C, H, W), float32 or float64 as the module's parameters; higher is likelier.
            image: (B, 3, H, W), RGB in 0..255; uint8, or the dtype of the logits.
            depth: (B, H, W), metres, the dtype of the logits; None leaves the depth kernel out. Where it is 0 a pixel has no
                depth: it sends and receives no message of the depth kernel.
            prepared: what `prepare` made of the image and the depth, in place of both.
            num_iterations: in place of the settings'; 0 returns the logits as they are.

        Returns:
            Logits (B, C, H, W); softmax over C gives q.

        Raises:
            InputError: a shape, dtype, device or value is not as above.
        """
        num_iterations = self.settings.num_iterations if num_iterations is None else num_iterations
        if num_iterations < 0:
            raise InputError(f"num_iterations is {num_iterations}; allowed: 0 or more")
        if (image is None) == (prepared is None) or (prepared is not None and depth is not None):
            raise InputError("give either image (and depth, if there is one) or prepared")
        self._check_logits(logits)
        if image is not None:
            _check_guides(image, depth, dtype=logits.dtype, device=logits.device, shape=(logits.shape[0], *logits.shape[2:]))
        if self.check_inputs:
            _finite_range("logits", logits)
            if image is not None:
                _check_guide_values(image, depth)
        if num_iterations == 0:
            return logits
        # Sums over all pixels overflow float16, and its steps are wider than the distances compared.
        with torch.autocast(logits.device.type, enabled=False):
            if image is not None:
                prepared = self._prepare(image, depth)
            assert prepared is not None
            self._check_prepared(prepared, logits)
            weights_KCC = torch.stack([self.weights[kernel.name] for kernel in prepared.kernels])
            matrices_KCC = pairwise_matrices(weights_KCC, self.compatibility, form=self.settings.pairwise)
            logits_BCP = prepared.mean_field(logits.flatten(2), matrices_KCC=matrices_KCC, num_iterations=num_iterations)
            return logits_BCP.reshape(logits.shape)

    def prepare(self, *, image: Tensor, depth: Tensor | None = None) -> PreparedImages:
        """What inference needs to know of the images, for any logits and any weights: `crf(logits, prepared=prepared)`.

        It depends on the bandwidths, not on the weights: other CRFs with the same bandwidths take it too.

        Args:
            image: as in `forward`.
            depth: as in `forward`; without it, Sem-CRF is prepared.

        Raises:
            InputError: as `forward`.
        """
        reference = self.compatibility
        if image.ndim != 4 or image.numel() == 0:
            raise InputError(f"image has shape {tuple(image.shape)}; allowed: (B, 3, H, W), not empty")
        shape = (image.shape[0], *image.shape[2:])
        _check_guides(image, depth, dtype=reference.dtype, device=reference.device, shape=shape)
        if self.check_inputs:
            _check_guide_values(image, depth)
        with torch.autocast(image.device.type, enabled=False):
            return self._prepare(image, depth)

    def extra_repr(self) -> str:
        """What `print(crf)` says beside the parameters."""
        name = self.filter if isinstance(self.filter, str) else getattr(self.filter, "__name__", repr(self.filter))
        return f"num_classes={self.num_classes}, filter={name!r}, {self.settings!r}"

    def _prepare(self, image: Tensor, depth: Tensor | None) -> PreparedImages:
        guides = {"image": image.detach().to(self.compatibility.dtype)}
        if depth is not None:
            depth = depth.detach()
            guides["depth"] = depth[:, None]
        kernels = [kernel for kernel in self.kernels if kernel.guide is None or kernel.guide in guides]
        H, W = image.shape[2:]
        return PreparedImages(kernels, guides, size=(H, W), valid=valid_pixels(depth), filter=self.filter)

    def _check_prepared(self, prepared: PreparedImages, logits: Tensor) -> None:
        shape = (prepared.num_images, self.num_classes, *prepared.size)
        if logits.shape != shape or logits.dtype != prepared.dtype or logits.device != prepared.device:
            raise InputError(
                f"logits are {tuple(logits.shape)} {logits.dtype} on {logits.device}; allowed beside what was prepared: "
                f"{shape} {prepared.dtype} on {prepared.device}"
            )
        own = {kernel.name: kernel.bandwidths for kernel in self.kernels}
        for kernel in prepared.kernels:
            if own.get(kernel.name) != kernel.bandwidths:
                raise InputError(
                    f"prepared with bandwidths {kernel.bandwidths} for kernel {kernel.name!r}; allowed: this CRF's, "
                    f"{own.get(kernel.name)}"
                )

    def _check_logits(self, logits: Tensor) -> None:
        C = self.num_classes
        if logits.ndim != 4 or logits.shape[1] != C or logits.numel() == 0:
            raise InputError(f"logits have shape {tuple(logits.shape)}; allowed: (B, {C}, H, W), not empty")
        if logits.dtype not in (torch.float32, torch.float64):
            raise InputError(f"logits are {logits.dtype}; allowed: torch.float32, torch.float64 (call logits.float())")
        if logits.dtype != self.compatibility.dtype:
            raise InputError(
                f"logits are {logits.dtype} but the CRF's weights are {self.compatibility.dtype}; make them the same"
            )
        if logits.device != self.compatibility.device:
            raise InputError(f"logits are on {logits.device} but the CRF is on {self.compatibility.device}; move one of them")


def _check_guides(
    image: Tensor, depth: Tensor | None, *, dtype: torch.dtype, device: torch.device, shape: tuple[int, int, int]
) -> None:
    B, H, W = shape
    _check_guide("image", image, dtypes=(torch.uint8, dtype), device=device, shape=(B, 3, H, W))
    if depth is not None:
        _check_guide("depth", depth, dtypes=(dtype,), device=device, shape=shape)


def _check_guide(
    name: str, guide: Tensor, *, dtypes: tuple[torch.dtype, ...], device: torch.device, shape: tuple[int, ...]
) -> None:
    if guide.shape != shape:
        raise InputError(f"{name} has shape {tuple(guide.shape)}; allowed here: {shape}")
    if guide.dtype not in dtypes:
        raise InputError(f"{name} is {guide.dtype}; allowed beside these logits: {', '.join(map(str, dtypes))}")
    if guide.device != device:
        raise InputError(f"{name} is on {guide.device} but the rest is on {device}; move one of them")


def _check_guide_values(image: Tensor, depth: Tensor | None) -> None:
    if image.dtype != torch.uint8:
        low, high = _finite_range("image", image)
        if low < 0 or high > 255:
            raise InputError(
                f"image has values in {low:g}..{high:g}; allowed: RGB levels 0..255, not normalised (clamp if resized)"
            )
        # Fractions tell an image in 0..1 from a nearly black one, whose levels are 0 and 1.
        if 0 < high <= 1 and bool((image != image.round()).any()):
            raise InputError(
                f"image has values in {low:g}..{high:g}, as if scaled to 0..1; allowed: RGB levels 0..255 (image * 255)"
            )
    if depth is not None:
        low, high = _finite_range("depth", depth)
        if low < 0:
            raise InputError(f"depth has values in {low:g}..{high:g}; allowed: metres, 0 where there is none")


def _finite_range(name: str, values: Tensor) -> tuple[float, float]:
    low, high = (bound.item() for bound in values.detach().aminmax())
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise InputError(
            f"{name}: {int((~values.isfinite()).sum())} of {values.numel()} values are NaN or infinite; allowed: finite"
        )
    return low, high
