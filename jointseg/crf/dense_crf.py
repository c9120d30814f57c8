"""The fully connected CRF as a module: learned weights, one call with everything.

Not here: the equations of inference (mean_field.py), the kernels (kernels.py), how messages are filtered (filters/).
"""

# B images, C classes, P pixels (H*W, row-major), K kernels

from __future__ import annotations

import torch
from torch import Tensor, nn

from jointseg.crf.filters import BuildFilter, FilterName, resolve_filter
from jointseg.crf.kernels import kernel_features, paper_kernels
from jointseg.crf.mean_field import mean_field, pairwise_matrices
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
            filter: a name, or what builds a filter from features (B, P, F). `auto` is `exact`, today the only filter:
                its time grows with P^2, so mind full-size images.
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
        self.filter_name, self._build_filter = resolve_filter(filter)
        self.kernels = paper_kernels(self.settings)
        identity_CC, ones_CC = torch.eye(num_classes), torch.ones(num_classes, num_classes)
        crfrnn = self.settings.pairwise == "crfrnn"
        start_CC = identity_CC if crfrnn else ones_CC
        self.weights = nn.ParameterDict({kernel.name: nn.Parameter(kernel.weight * start_CC) for kernel in self.kernels})
        self.compatibility = nn.Parameter(-identity_CC if crfrnn else ones_CC - identity_CC)

    def forward(
        self, logits: Tensor, *, image: Tensor, depth: Tensor | None = None, num_iterations: int | None = None
    ) -> Tensor:
        """Mean-field inference; differentiable by logits, weights and compatibility. Image and depth are inputs: no gradient.

        Args:
            logits: (B, C, H, W), float32 or float64 as the module's parameters; higher is likelier.
            image: (B, 3, H, W), RGB in 0..255; uint8, or the dtype of the logits.
            depth: (B, H, W), metres, the dtype of the logits; None leaves the depth kernel out. It is estimated depth:
                every pixel has one, and 0 means 0 m, not missing.
            num_iterations: in place of the settings'; 0 returns the logits as they are.

        Returns:
            Logits (B, C, H, W); softmax over C gives q.

        Raises:
            InputError: a shape, dtype, device or value is not as above.
        """
        num_iterations = self.settings.num_iterations if num_iterations is None else num_iterations
        if num_iterations < 0:
            raise InputError(f"num_iterations is {num_iterations}; allowed: 0 or more")
        self._check_logits(logits)
        _check_guide("image", image, logits=logits, shape=(logits.shape[0], 3, *logits.shape[2:]))
        if depth is not None:
            _check_guide("depth", depth, logits=logits, shape=(logits.shape[0], *logits.shape[2:]))
        if self.check_inputs:
            _check_values(logits, image=image, depth=depth)
        if num_iterations == 0:
            return logits
        # Sums over all pixels overflow float16, and its steps are wider than the distances compared.
        with torch.autocast(logits.device.type, enabled=False):
            return self._infer(logits, image=image, depth=depth, num_iterations=num_iterations)

    def extra_repr(self) -> str:
        """What `print(crf)` says beside the parameters; the filter is the one that was taken."""
        return f"num_classes={self.num_classes}, filter={self.filter_name!r}, {self.settings!r}"

    def _infer(self, logits: Tensor, *, image: Tensor, depth: Tensor | None, num_iterations: int) -> Tensor:
        guides = {"image": image.to(logits.dtype)}
        if depth is not None:
            guides["depth"] = depth[:, None]
        kernels = [kernel for kernel in self.kernels if kernel.guide is None or kernel.guide in guides]
        H, W = logits.shape[2:]
        filters = [self._build_filter(kernel_features(kernel, guides, size=(H, W))) for kernel in kernels]
        weights_KCC = torch.stack([self.weights[kernel.name] for kernel in kernels])
        matrices_KCC = pairwise_matrices(weights_KCC, self.compatibility, form=self.settings.pairwise)
        logits_BCP = mean_field(logits.flatten(2), filters, matrices_KCC=matrices_KCC, num_iterations=num_iterations)
        return logits_BCP.reshape(logits.shape)

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


def _check_guide(name: str, guide: Tensor, *, logits: Tensor, shape: tuple[int, ...]) -> None:
    if guide.shape != shape:
        raise InputError(f"{name} has shape {tuple(guide.shape)}; allowed beside logits {tuple(logits.shape)}: {shape}")
    allowed = (torch.uint8, logits.dtype) if name == "image" else (logits.dtype,)
    if guide.dtype not in allowed:
        raise InputError(f"{name} is {guide.dtype}; allowed beside these logits: {', '.join(map(str, allowed))}")
    if guide.device != logits.device:
        raise InputError(f"{name} is on {guide.device} but logits are on {logits.device}; move one of them")


def _check_values(logits: Tensor, *, image: Tensor, depth: Tensor | None) -> None:
    _finite_range("logits", logits)
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
            raise InputError(f"depth has values in {low:g}..{high:g}; allowed: metres, 0 or more")


def _finite_range(name: str, values: Tensor) -> tuple[float, float]:
    low, high = (bound.item() for bound in values.detach().aminmax())
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise InputError(
            f"{name}: {int((~values.isfinite()).sum())} of {values.numel()} values are NaN or infinite; allowed: finite"
        )
    return low, high
