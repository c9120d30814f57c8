"""The fully connected CRF as a module: learned weights, one call with everything.

Not here: the equations of inference (mean_field.py), the kernels (kernels.py), how messages are filtered (filters/).
"""

# B images, C classes, P pixels (H*W, row-major), K kernels

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from jointseg.crf.filters import BuildFilter, FilterName, check_filter, name_of
from jointseg.crf.inputs import (
    Guides,
    check_bandwidths,
    check_kernels,
    check_logits,
    check_parameters,
    finite_range,
    refuse_others,
)
from jointseg.crf.kernels import Kernel, paper_kernels
from jointseg.crf.mean_field import pairwise_matrices, softmax_of_any
from jointseg.crf.prepared import PreparedImages
from jointseg.crf.settings import CrfSettings
from jointseg.crf.sharded import put
from jointseg.crf.uncompiled import uncompiled
from jointseg.errors import InputError

Normalization: TypeAlias = Literal["after", "symmetric"]
NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)


class DenseCRF(nn.Module):
    """The paper's CRF (Eq 5-7) on the logits of any segmentation network, or one with kernels of your own.

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
        kernels: Sequence[Kernel] | None = None,
        filter: FilterName | BuildFilter = "auto",
        normalization: Normalization = "after",
        learn_bandwidths: bool = False,
        check_inputs: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Set up the weights.

        Args:
            num_classes: C.
            settings: bandwidths, initial weights, iterations and pairwise form; the paper's where None.
            kernels: in place of the paper's; of `settings`, iterations and form remain.
            filter: a name for all kernels, or what builds a filter from `Features`. `auto` takes `exact` for images of up to
                1024 pixels on CPUs, 4096 on CUDA, else for each kernel what suits it: `separable`, `bilateral_grid`, and for
                colours `permutohedral` on CPUs, `block_sparse` on CUDA. What `prepare` returns tells which.
            normalization: of a message, by its kernel's row sums n: `after` divides what is filtered by n, as CRF-as-RNN and
                the paper do; `symmetric` divides by sqrt(n) before and after, as pydensecrf does unless told otherwise.
            learn_bandwidths: also learn the bandwidths, as `log_bandwidths`: for each kernel the natural logarithms of
                `Kernel.bandwidths`. Only `exact` and `block_sparse` have this derivative, normalised `after`.
            check_inputs: look at the values of what `forward` is given, and not only at shapes and dtypes. On CUDA
                this waits for the device at each call; turn it off once the pipeline is trusted. What waits all the same:
                building filters (`prepare` images once where they recur), and inference, for the weights alone.
            device: of the parameters, as for any module.
            dtype: of the parameters: float32 or float64.

        Raises:
            InputError: `num_classes` is below 2, `filter` or `dtype` is not as above, or a kernel is not as `Kernel` says or
                there twice.
        """
        super().__init__()
        refuse_others("num_classes", num_classes, Integral, "a whole number from 2")
        if num_classes < 2:
            raise InputError(
                f"num_classes is {num_classes}; allowed: at least 2 "
                "(one sigmoid logit z makes two classes: torch.cat([torch.zeros_like(z), z], 1))"
            )
        if dtype not in {None, torch.float32, torch.float64}:
            raise InputError(f"dtype is {dtype}; allowed: torch.float32, torch.float64")
        check_filter(filter)
        if normalization not in NORMALIZATIONS:
            raise InputError(f"normalization is {normalization!r}; allowed: {', '.join(map(repr, NORMALIZATIONS))}")
        if learn_bandwidths and normalization != "after":
            raise InputError(f"learn_bandwidths has no derivative where normalization is {normalization!r}; allowed: 'after'")
        if settings is not None:
            refuse_others("settings", settings, CrfSettings, "CrfSettings")
        self.num_classes = int(num_classes)
        self._settings = settings if settings is not None else CrfSettings()
        if kernels is not None:
            refuse_others("kernels", kernels, Iterable, "a sequence of Kernel")
        self.kernels = paper_kernels(self.settings) if kernels is None else tuple(kernels)
        check_kernels(self.kernels)
        self.kernels = tuple(replace(kernel) for kernel in self.kernels)  # theirs could still be changed
        self.filter, self._normalization, self.check_inputs = filter, normalization, check_inputs

        C = self.num_classes

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.weights = nn.ParameterDict({kernel.name: empty(C, C) for kernel in self.kernels})
        self.compatibility = empty(C, C)
        learned = self.kernels if learn_bandwidths else ()
        self.log_bandwidths = nn.ParameterDict({kernel.name: empty(len(kernel.bandwidths)) for kernel in learned})
        self.reset_parameters()

    @property
    def settings(self) -> CrfSettings:
        """As they were given: another layer has others (`prepare` says which filters it can share)."""
        return self._settings

    @property
    def normalization(self) -> Normalization:
        """As it was given."""
        return self._normalization

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Put the parameters back to where they began."""
        crfrnn = self.settings.pairwise == "crfrnn"
        identity_CC = torch.eye(self.num_classes).to(self.compatibility)
        put(self.compatibility, -identity_CC if crfrnn else 1 - identity_CC)
        for kernel in self.kernels:
            put(self.weights[kernel.name], kernel.weight * (identity_CC if crfrnn else torch.ones_like(identity_CC)))
            if kernel.name in self.log_bandwidths:
                put(self.log_bandwidths[kernel.name], torch.tensor(kernel.bandwidths, dtype=torch.float64, device="cpu").log())

    @uncompiled
    def forward(
        self,
        logits: Tensor,
        *,
        image: Tensor | None = None,
        depth: Tensor | None = None,
        guides: Mapping[str, Tensor] | None = None,
        mask: Tensor | None = None,
        prepared: PreparedImages | None = None,
        num_iterations: int | None = None,
        probabilities: bool = False,
    ) -> Tensor:
        """Mean-field inference; differentiable by logits, weights and compatibility. Image and depth are inputs: no gradient.

        Args:
            logits: (B, C, H, W), float32 or float64 as the module's parameters; higher is likelier.
            image: (B, 3, H, W), RGB in 0..255; uint8, or the dtype of the logits.
            depth: (B, H, W), metres, the dtype of the logits; None leaves out kernels that compare it alone, unless there is no
                other. Where it is 0 a pixel has no depth: it sends and receives no message of kernels that compare it.
            guides: what kernels of your own compare, by name: (B, channels, H, W); uint8, or the dtype of the logits.
            mask: (B, H, W), bool; where False, a pixel sends and receives no message at all and keeps its logits. What is given
                there may be anything: padding.
            prepared: what `prepare` made of the four above, in their place.
            num_iterations: in place of the settings'; 0 returns the logits as they are, the same tensor: no copy.
            probabilities: return q itself. Without gradients on CPUs this costs nothing, where a softmax of the logits does.

        Returns:
            Logits (B, C, H, W), of which softmax over C gives q; or q.

        Raises:
            InputError: a shape, dtype, device or value is not as above.
        """
        num_iterations = self.settings.num_iterations if num_iterations is None else num_iterations
        refuse_others("num_iterations", num_iterations, Integral, "a whole number, 0 or more")
        num_iterations = int(num_iterations)
        if num_iterations < 0:
            raise InputError(f"num_iterations is {num_iterations}; allowed: 0 or more")
        if prepared is not None and not (image is None and depth is None and guides is None and mask is None):
            raise InputError("give either prepared, or image, depth, guides and mask")
        if prepared is not None:
            refuse_others("prepared", prepared, PreparedImages, "what `prepare` returned")
        check_logits(logits, self.compatibility)
        if prepared is None:
            given = self._checked(Guides.of(image=image, depth=depth, guides=guides, mask=mask), logits)
            mask = given.mask
        else:
            prepared.check(self._kernels_now, like=logits, filter=self.filter)
            mask = prepared.mask
        # What lies in padding may be no number, which no factor of 0 would keep from the others.
        heard = logits if mask is None else torch.where(mask[:, None], logits, 0.0)
        if self.check_inputs:
            finite_range("logits", heard)
        if prepared is None and num_iterations > 0:
            prepared = self._prepare(given, logits)
        if prepared is None or not prepared.kernels or num_iterations == 0:
            return logits.softmax(1) if probabilities else logits
        # Sums over all pixels overflow float16, and its steps are wider than the distances compared.
        with torch.autocast(logits.device.type, enabled=False):
            weights_KCC = torch.stack([self.weights[kernel.name] for kernel in prepared.kernels])
            matrices_KCC = pairwise_matrices(weights_KCC, self.compatibility, form=self.settings.pairwise)
            learned = [self.log_bandwidths[kernel.name] for kernel in prepared.kernels] if self._learns_bandwidths else None
            out_BCP = prepared.mean_field(
                heard.flatten(2), matrices_KCC=matrices_KCC, num_iterations=num_iterations, log_bandwidths=learned,
                probabilities=probabilities, symmetric=self.normalization == "symmetric",
            )  # fmt: skip
            out = out_BCP.reshape(logits.shape)
            return out if mask is None else torch.where(mask[:, None], out, softmax_of_any(logits) if probabilities else logits)

    @uncompiled
    def prepare(
        self,
        *,
        image: Tensor | None = None,
        depth: Tensor | None = None,
        guides: Mapping[str, Tensor] | None = None,
        mask: Tensor | None = None,
        reusing: PreparedImages | None = None,
    ) -> PreparedImages:
        """What inference needs to know of the images, for any logits and any weights: `crf(logits, prepared=prepared)`.

        It depends on the bandwidths, not on the weights: other CRFs with the same bandwidths take it too.

        Args:
            image: as in `forward`.
            depth: as in `forward`; without it, Sem-CRF is prepared.
            guides: as in `forward`.
            mask: as in `forward`.
            reusing: what was prepared before: kernels of the same bandwidths over the same values (told by digests) keep
                their filters.

        Returns:
            The filters: `filter_names` says which each kernel got, `num_bytes` what they take.

        Raises:
            InputError: as `forward`, or nothing is given.
        """
        check_parameters(self.compatibility)
        if reusing is not None:
            refuse_others("reusing", reusing, PreparedImages, "what `prepare` returned")
        given = Guides.of(image=image, depth=depth, guides=guides, mask=mask)
        given.check_dimensions()
        sized = next(iter(given.channels.values()), mask)
        if sized is None:
            raise InputError("nothing to prepare: give image (B, 3, H, W), depth or guides; for positions alone mask (B, H, W)")
        like = self.compatibility.detach().new_empty(1).expand(sized.shape[0], 1, *sized.shape[-2:])
        given = self._checked(given, like)
        return self._prepare(given, like, reusing, digests=given.digests())

    @property
    def _learns_bandwidths(self) -> bool:
        return torch.is_grad_enabled() and any(log_G.requires_grad for log_G in self.log_bandwidths.values())

    @property
    def bandwidths(self) -> dict[str, tuple[float, ...]]:
        """Of each kernel, as they are now: the position's in pixels, then the guides' in their units."""
        there = {name: log_G for name, log_G in self.log_bandwidths.items() if not log_G.is_meta}
        learned = {name: tuple(log_G.detach().exp().tolist()) for name, log_G in there.items()}
        return {kernel.name: learned.get(kernel.name, kernel.bandwidths) for kernel in self.kernels}

    def extra_repr(self) -> str:
        """What `print(crf)` says beside the parameters."""
        first = (
            f"num_classes={self.num_classes}, filter={name_of(self.filter)!r}, normalization={self.normalization!r}, "
            f"pairwise={self.settings.pairwise!r}, num_iterations={self.settings.num_iterations}"
        )
        bandwidths = self.bandwidths
        own = [kernel.with_bandwidths(bandwidths[kernel.name]) for kernel in self.kernels]
        return "\n".join([first, *(f"kernel {kernel.name!r}: {kernel.bandwidths_named}" for kernel in own)])

    def _save_to_state_dict(self, destination: MutableMapping[str, Any], prefix: str, keep_vars: bool) -> None:
        """Beside the tensors, in the metadata of `state_dict()`, what gives them their meaning."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]] |= self._form

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Mapping[str, Any], *others: Any
    ) -> None:
        """Refuse weights of another form: they would fit, and mean something else.

        Raises:
            InputError: as said.
        """
        for name, own in self._form.items():
            theirs = local_metadata.get(name, own)
            if theirs != own:
                raise InputError(f"the weights of {prefix.rstrip('.') or 'the CRF'} are for {name} {theirs!r}; this is {own!r}")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)

    @property
    def _form(self) -> dict[str, str]:
        return {"pairwise": self.settings.pairwise, "normalization": self.normalization}

    def _prepare(
        self,
        given: Guides,
        like: Tensor,
        reusing: PreparedImages | None = None,
        *,
        digests: Mapping[str, str] | None = None,
    ) -> PreparedImages:
        kernels = given.compared_by(self._kernels_now)
        if reusing is not None and reusing.serves(kernels, digests, like=like, filter=self.filter):
            return reusing
        # Prepared once, also for calls that learn: these keep no tensors of inference mode.
        with torch.inference_mode(False), torch.autocast(like.device.type, enabled=False):
            return PreparedImages(kernels, given, like=like.detach(), filter=self.filter, digests=digests, reusing=reusing)

    @property
    def _kernels_now(self) -> list[Kernel]:
        bandwidths = self.bandwidths
        kernels = [kernel.with_bandwidths(bandwidths[kernel.name]) for kernel in self.kernels]
        for kernel in kernels:
            check_bandwidths(kernel)  # what was learned may have come to anything
        return kernels

    def _checked(self, given: Guides, like: Tensor) -> Guides:
        """What was given, once it is known to be as `forward` says."""
        given.check(shape=(like.shape[0], like.shape[2], like.shape[3]), dtype=like.dtype, device=like.device)
        given = given.without_masked()
        given.compared_by(self.kernels)
        if self.check_inputs:
            given.check_values()
        return given
