"""How our figures look, and are saved: colours, markers, type, logarithmic axes with labels that can be read.

The colours are Okabe and Ito's, told apart by the colour-blind; the markers differ as well.
"""

import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vP*X"
STEPS = ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9))  # of a decade
PANEL = 3.3  # inches
STYLE = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "xtick.labelsize": 8,
    "ytick.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "grid.linewidth": 0.5, "lines.linewidth": 1.4, "lines.markersize": 4,
    "legend.edgecolor": "none", "pdf.fonttype": 42, "savefig.dpi": 200, "figure.constrained_layout.use": True,
}  # fmt: skip


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure to a file, in one piece, in the format of its suffix."""
    image = io.BytesIO()
    with matplotlib.rc_context(STYLE):  # pyright: ignore[reportArgumentType]
        figure.savefig(image, format=Path(path).suffix[1:].lower())
    Path(path).write_bytes(image.getvalue())


def log_axes(axes: Axes, x: str | None = None, y: str | None = None) -> None:
    """Logarithmic axes; call it last, since the coarsest steps with three labels in view are taken."""
    for axis, label in ((axes.xaxis, x), (axes.yaxis, y)):
        if label is None:
            continue
        (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
        axis.set_label_text(label)
        low, high = sorted(axis.get_view_interval())
        decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)))
        ticks = np.empty(0)
        for steps in STEPS:
            ticks = np.outer(decades, steps).ravel()
            ticks = ticks[(ticks >= low) & (ticks <= high)]
            if len(ticks) >= 3:
                break
        axis.set_major_locator(FixedLocator(ticks.tolist()))
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axis.set_minor_locator(NullLocator())


def number(value: float) -> str:
    """'250', or '2 x 10^11' where that is shorter."""
    if 0.01 <= value < 1e4:
        return f"{value:g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    times = "" if mantissa == "1.0" else rf"{float(mantissa):g}\times"
    return f"${times}10^{{{int(exponent)}}}$"
