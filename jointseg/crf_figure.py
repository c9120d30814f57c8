"""The paper's figure 4: the CRF's learned matrices, a class a line and a column. Needs matplotlib.

Not here: the other figures (figures.py), where the file goes (pipeline/report.py).
"""

# C classes

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

DPI = 200
PANELS = {
    "compatibility": "compatibility μ",
    "weights.depth": "w⁽²⁾, depth",
    "weights.appearance": "w⁽¹⁾, appearance",
}
"""The panels of the paper's figure, left to right, by the parameter's name in the CRF."""


def learned_matrices(parameters: Mapping[str, Tensor], class_names: Sequence[str], *, title: str = "") -> Figure:
    """The paper's Fig 4: μ, w⁽²⁾ and w⁽¹⁾ as maps of colour, rows and columns named by class.

    Red is above 0, blue below. The two halves of a matrix are worlds apart in size: its diagonal keeps about what it began
    with, the rest begins at 0. So each scale ends at the largest value off the diagonal, and the diagonal is drawn at the end
    of it; its mean stands above. Where what lies off the diagonal is farther from 0 than from each other, as in the
    pairwise form `hadamard`, which begins with one value everywhere, colours are of what lies above and below its median, which
    then stands above too.

    Args:
        parameters: of a `DenseCRF`, by name, (C, C) each; such as its `state_dict()`.
        class_names: C names.
        title: stands above.
    """
    panels = {name: caption for name, caption in PANELS.items() if name in parameters}
    figure = Figure(figsize=(6.2 * len(panels), 6.0), dpi=DPI, layout="constrained")
    for axes, (name, caption) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        values = parameters[name].detach().double().cpu().numpy()
        assert values.shape == (len(class_names), len(class_names))
        off_diagonal = values[~np.eye(len(values), dtype=bool)]
        far = off_diagonal.size > 0 and abs(np.median(off_diagonal)) > np.ptp(off_diagonal)
        centre = float(np.median(off_diagonal)) if far else 0.0
        means = f"mean of the diagonal {values.diagonal().mean():.3g}" + (f", white: {centre:.4g}" if far else "")
        limit = float(np.abs(off_diagonal - centre).max(initial=0)) or 1.0
        drawn = axes.imshow(values, cmap="RdBu_r", vmin=centre - limit, vmax=centre + limit, interpolation="nearest")
        axes.set_title(f"{caption}; {means}", fontsize=10)
        places = range(len(class_names))
        axes.set_xticks(places, class_names, rotation=90, fontsize=5.5)
        axes.set_yticks(places, class_names, fontsize=5.5)
        axes.tick_params(length=0, pad=1)
        figure.colorbar(drawn, ax=axes, shrink=0.75, pad=0.01, extend="both").ax.tick_params(labelsize=7)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return figure
