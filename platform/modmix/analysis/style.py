"""The style of figures: colours, sizes, titles, legends, files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import modmix.analysis.backend  # noqa: F401  # isort: skip
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation, blended_transform_factory

from modmix.base.errors import InputError

# Okabe and Ito's colour-blind safe palette; markers differ too.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5fb5", "#8c6d31")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
DASHES: tuple[tuple[int, tuple[float, ...]], ...] = (
    (0, ()), (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1, 1, 1, 1, 1)),
)  # fmt: skip
INK = "#262626"  # text and axes; replaced in the report
FAINT = "#9a9a9a"  # grids and background lines
PAPER = "#ffffff"  # background; replaced in the report
WIDTH = 5.6  # inches
DPI = 200

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.8,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the same everywhere
    "svg.hashsalt": "modmix",
    "svg.fonttype": "path",
    "text.parse_math": False,  # "$" is literal
}


@dataclass(frozen=True)
class MethodStyle:
    """Colour and marker of a method in all figures of a study."""

    colour: str
    marker: str


def method_styles(methods: Sequence[str]) -> dict[str, MethodStyle]:
    """The style of each method, by its position in the study."""
    return {
        method: MethodStyle(
            PALETTE[i % len(PALETTE)], MARKERS[(i + i // len(PALETTE)) % len(MARKERS)]
        )
        for i, method in enumerate(methods)
    }


@contextmanager
def styled() -> Iterator[None]:
    """A context with modmix's matplotlib settings, whatever a matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, by default of the common width, with its own canvas."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def heading(ax: Axes, title: str, notes: Sequence[str] = ()) -> None:
    """A title, with notes in small print below."""
    note = "; ".join(note for note in notes if note)
    ax.set_title(title, pad=15 if note else 6)
    if note:
        ax.annotate(
            note, (0.0, 1.0), xytext=(0, 4), xycoords="axes fraction",
            textcoords="offset points", ha="left", va="bottom", fontsize=7, color=INK, alpha=0.8,
        )  # fmt: skip


def wide_heading(ax: Axes, title: str, notes: Sequence[str] = ()) -> None:
    """`heading` from the figure's left edge, for axes with long tick labels."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    ax.set_title(" ", pad=26)  # room for both lines
    for text, lift, size in ((title, 20, 9.5), ("; ".join(note for note in notes if note), 6, 7)):
        line = ax.annotate(
            text, (0.012, 1.0), xytext=(0, lift), xycoords=("figure fraction", "axes fraction"),
            textcoords="offset points", ha="left", va="bottom", fontsize=size, color=INK,
            alpha=1.0 if lift == 20 else 0.8,
        )  # fmt: skip
        line.set_in_layout(False)


def legend_below(
    ax: Axes, handles: Sequence[Any], drop: float = 36.0, *, is_wide: bool = False
) -> None:
    """A legend below the axes.

    Args:
        drop: distance below the axes, in points: the height of tick labels and axis label.
        is_wide: start at the figure's left edge rather than at that of the axes.
    """
    if not handles:
        return
    labels = [str(handle.get_label()) for handle in handles]
    figure = ax.get_figure(root=True)
    assert figure is not None
    below = ScaledTranslation(0, -drop / 72, figure.dpi_scale_trans)
    across = figure.transFigure if is_wide else ax.transAxes
    ax.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(0.0 if is_wide else -0.02, 0.0),
        bbox_transform=blended_transform_factory(across, ax.transAxes) + below,
        ncols=legend_columns(labels), handlelength=2.4, columnspacing=1.4, borderaxespad=0.0,
    )  # fmt: skip


def legend_columns(labels: Sequence[str]) -> int:
    """Number of columns that fit below axes of the common width."""
    widest = max((len(label) for label in labels), default=1)
    return max(1, min(len(labels), 84 // (widest + 8)))


def height_with_legend(labels: Sequence[str]) -> float:
    """Height of a figure with a legend of these labels, in inches."""
    rows = -(-len(labels) // legend_columns(labels)) if labels else 0
    return 3.1 + 0.18 * max(rows, 2)


def horizontal_grid(ax: Axes) -> None:
    ax.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.45)
    ax.set_axisbelow(True)


def draw_empty(ax: Axes) -> None:
    """Write that there is nothing to draw yet."""
    ax.annotate(
        "nothing finished yet", (0.5, 0.5), xycoords="axes fraction", ha="center", va="center",
        fontsize=9, color=INK, alpha=0.7,
    )  # fmt: skip
    ax.set_xticks([])
    ax.set_yticks([])


def to_bytes(figure: Figure, form: str) -> bytes:
    """A figure as "png", "svg" or "pdf"; equal figures give equal bytes."""
    metadata: dict[str, dict[str, str | None]] = {
        "svg": {"Date": None, "Creator": "modmix"},
        "png": {"Software": "modmix"},
        "pdf": {"CreationDate": None, "Creator": "modmix", "Producer": None},
    }
    if form not in metadata:
        raise InputError(f"a figure's format must be png, svg or pdf, got {form!r}")
    buffer = io.BytesIO()
    with styled(), warnings.catch_warnings():
        # Characters that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format=form, metadata=metadata[form])
    return buffer.getvalue()
