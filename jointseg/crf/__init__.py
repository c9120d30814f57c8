"""A fully connected CRF as a layer, usable on any network's logits: `from jointseg.crf import CrfSettings, DenseCRF`.

Not here: anything but these names; it knows nothing of the network or of the data.
"""

from jointseg.crf.dense_crf import DenseCRF
from jointseg.crf.kernels import Kernel
from jointseg.crf.prepared import PreparedImages
from jointseg.crf.settings import CrfSettings

__all__ = ["CrfSettings", "DenseCRF", "Kernel", "PreparedImages"]
