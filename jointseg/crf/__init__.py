"""A fully connected CRF as a layer, usable on any network's logits: `from jointseg.crf import CrfSettings, DenseCRF`.

Not here: anything but these names; it knows nothing of the network or of the data.
"""

from jointseg.crf.dense_crf import DenseCRF
from jointseg.crf.kernels import Kernel, paper_kernels
from jointseg.crf.prepared import PreparedImages
from jointseg.crf.reuse import PreparedCache
from jointseg.crf.settings import CrfSettings
from jointseg.crf.unary import logits_from_labels, logits_from_probabilities
from jointseg.errors import InputError

__all__ = [
    "CrfSettings", "DenseCRF", "InputError", "Kernel", "PreparedCache", "PreparedImages", "logits_from_labels",
    "logits_from_probabilities", "paper_kernels",
]  # fmt: skip
