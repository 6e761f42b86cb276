"""The one look of all figures: size, fonts, one colour per dictionary method, one line style per whitening."""

from __future__ import annotations

import string
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from conceptome.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_MM = 180.0
FONT = 7.0
SMALL_FONT = 6.5
NULL_COLOUR = "#BDBDBD"
REFERENCE_COLOUR = "#595959"
CONTROL_COLOUR = "#3B3B3B"
REST_COLOUR = "#56B4E9"
SERIES = ("#332288", "#EE8866", "#44AA99", "#CC3377", "#88CCEE", "#AA4499", "#117733", "#BBCC33")
DIVERGING = "RdBu_r"
# How a figure carries the recipe digest of the job that drew it.
SVG_PREFIX = "conceptome:recipe:"
PNG_KEY = "Conceptome-Recipe"


class Method(NamedTuple):
    """How one dictionary method looks in every figure."""

    label: str
    colour: str
    marker: str | tuple[int, int, int]


# Colours after Okabe and Ito (2008) and Tol's muted scheme, plus black and a mid grey; markers repeat the distinction
# without colour. Learned methods first: the order of every list and legend.
METHODS: dict[str, Method] = {
    "icfl": Method("ICFL", "#0072B2", "o"),
    "topk": Method("TopK", "#D55E00", "s"),
    "batch_topk": Method("BatchTopK", "#E69F00", "p"),
    "matryoshka": Method("Matryoshka", "#882255", "P"),
    "relu_l1": Method("ReLU-L1", "#56B4E9", "h"),
    "p_annealing": Method("p-annealing", "#332288", "8"),
    "jumprelu": Method("JumpReLU", "#AA4499", "X"),
    "gated": Method("gated", "#999933", "d"),
    "mp_sae": Method("MP-SAE", "#117733", "*"),
    "ksvd": Method("K-SVD", "#44AA99", "H"),
    "archetypal": Method("archetypal", "#CC6677", (4, 1, 0)),
    "snmf": Method("SNMF", "#6699CC", (3, 0, 180)),
    "nmf": Method("NMF", "#AA7744", (6, 1, 0)),
    "kmeans": Method("k-means", "#661100", (8, 1, 0)),
    "crosscoder": Method("crosscoder", "#004488", (3, 1, 0)),
    "pca": Method("PCA", "#009E73", "^"),
    "ica": Method("ICA", "#CC79A7", "D"),
    "random": Method("random", "#808080", ">"),
    "identity": Method("neurons", "#1A1A1A", "v"),
}
LEARNED = tuple(METHODS)[: tuple(METHODS).index("pca")]
# Further dictionaries of one method: its colour lighter (above 0) or darker, and a marker of their own. Of these, seven
# at least are not the method's: 35 dictionaries of a method pass before one looks like another.
SHADES = (-0.38, 0.38, -0.6, 0.55, 0.18)
VARIANTS = ("^", "D", "v", "s", "p", "o", "h", "d")
RAW = "none"
WHITENINGS: dict[str, tuple[str, str]] = {
    RAW: ("raw", "--"),
    "pca": ("whitened", "-"),
    "standardize": ("standardised", ":"),
}


def method(name: str) -> Method:
    """Look of a dictionary method; a method without a fixed colour is drawn in brown and keeps its name."""
    return METHODS.get(name, Method(name, "#8C510A", "<"))


def looks(dictionaries: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Method]:
    """Look of every (dictionary, method) of a figure.

    The dictionary that is called as its method (else the method's first) has the method's colour and marker; further
    ones of the method have its colour in other shades, and markers of their own.
    """
    pairs = list(dict.fromkeys(dictionaries))
    found: dict[tuple[str, str], Method] = {}
    for name in dict.fromkeys(kind for _, kind in pairs):
        of, base = [pair for pair in pairs if pair[1] == name], method(name)
        others = [marker for marker in VARIANTS if marker != base.marker]
        for number, pair in enumerate(sorted(of, key=lambda pair: pair[0] != name)):
            if number:
                colour, marker = shade(base.colour, SHADES[(number - 1) % len(SHADES)]), others[(number - 1) % 7]
                found[pair] = Method(dictionary_label(*pair), colour, marker)
            else:
                found[pair] = base._replace(label=dictionary_label(*pair))
    return {pair: found[pair] for pair in pairs}


def shade(colour: str, amount: float) -> str:
    """Mix a colour with white (amount above 0) or black (below); at 1 or −1 nothing of it is left."""
    from matplotlib.colors import to_hex, to_rgb

    end = 1.0 if amount > 0 else 0.0
    return to_hex([part + abs(amount) * (end - part) for part in to_rgb(colour)])


def method_rank(name: str) -> int:
    """Position of a method in every list and legend."""
    order = list(METHODS)
    return order.index(name) if name in order else len(order)


def whitening_label(name: str) -> str:
    """Return what readers call a whitening."""
    return WHITENINGS.get(name, (f"whitened ({name})", ""))[0]


def whitening_line(name: str) -> str:
    """Line style of a whitening."""
    return WHITENINGS.get(name, ("", "-."))[1]


@contextmanager
def look() -> Iterator[None]:
    """Apply the style inside the block only: seaborn's ticks style, small DejaVu Sans, fixed SVG identifiers."""
    import matplotlib
    import seaborn

    rc = {
        **seaborn.axes_style("ticks"),
        **seaborn.plotting_context("paper"),
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": FONT,
        "axes.titlesize": FONT,
        "axes.labelsize": FONT,
        "xtick.labelsize": SMALL_FONT,
        "ytick.labelsize": SMALL_FONT,
        "legend.fontsize": SMALL_FONT,
        "legend.title_fontsize": SMALL_FONT,
        "figure.titlesize": FONT + 1,
        "axes.titlelocation": "left",
        "axes.titlepad": 4.0,
        "axes.labelpad": 2.0,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.unicode_minus": True,
        "lines.linewidth": 1.1,
        "lines.markersize": 3.2,
        "patch.linewidth": 0.6,
        "hatch.linewidth": 0.5,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "xtick.minor.size": 0.0,
        "ytick.minor.size": 0.0,
        "xtick.major.pad": 2.0,
        "ytick.major.pad": 2.0,
        "legend.frameon": False,
        "legend.handlelength": 1.8,
        "legend.columnspacing": 1.2,
        "legend.handletextpad": 0.5,
        "legend.borderaxespad": 0.2,
        "figure.constrained_layout.h_pad": 0.03,
        "figure.constrained_layout.w_pad": 0.03,
        "figure.constrained_layout.hspace": 0.03,
        "figure.constrained_layout.wspace": 0.03,
        "svg.fonttype": "path",
        "svg.hashsalt": "conceptome",
    }
    with matplotlib.rc_context(rc):
        yield


def new_figure(height_mm: float) -> Figure:
    """Make an empty figure, 180 mm wide (double column), laid out so that nothing overlaps."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_MM / 25.4, height_mm / 25.4), layout="constrained")


def save(figure: Figure, folder: Path, name: str, dpi: int, recipe: str | None = None) -> None:
    """Write `name`.svg and `name`.png into `folder`; equal figures give equal bytes (no date, fixed identifiers).

    `recipe` goes into their metadata (SVG: dc:identifier; PNG: tEXt) and can be read back from any copy.
    """
    svg, png = ({"Identifier": f"{SVG_PREFIX}{recipe}"}, {PNG_KEY: recipe}) if recipe else ({}, {})
    with atomic_path(folder / f"{name}.svg") as path:
        figure.savefig(path, format="svg", dpi=dpi, metadata={"Date": None, **svg})
    with atomic_path(folder / f"{name}.png") as path:
        figure.savefig(path, format="png", dpi=dpi, metadata={"Software": None, **png})


def letters() -> Iterator[str]:
    """Yield panel letters: a to z, then aa, ab and so on."""
    yield from string.ascii_lowercase
    for first in string.ascii_lowercase:
        for second in string.ascii_lowercase:
            yield first + second


def mark(axes: Axes, letter: str, title: str = "", *, wrap: int = 0) -> None:
    """Set a panel's title, and its bold letter to the left of the title."""
    if wrap:
        title = "\n".join("\n".join(textwrap.wrap(line, wrap)) for line in title.split("\n"))
    axes.set_title(title)
    axes.annotate(
        letter,
        xy=(0, 1),
        xycoords="axes fraction",
        xytext=(-5, 4),
        textcoords="offset points",
        fontsize=FONT + 2,
        fontweight="bold",
        ha="right",
        va="bottom",
        annotation_clip=False,
    )


def plain_log(axis: object, base: float, limits: tuple[float, float], most: int = 5) -> None:
    """Label a log axis with plain numbers (exponents would print smaller than the smallest font)."""
    import numpy as np
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = (np.log(limit) / np.log(base) for limit in limits)
    powers = np.arange(np.ceil(low - 1e-9), np.floor(high + 1e-9) + 1)
    step = max(1, int(np.ceil(len(powers) / most)))
    axis.set_major_locator(FixedLocator([float(base**power) for power in powers[::step]]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def method_handles(methods: Iterable[tuple[str, str]], *, line: bool = True) -> list[Artist]:
    """Legend entries, one per (dictionary, method), in the fixed order."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle="-" if line else "none", label=look.label)
        for look in looks(methods).values()
    ]


def whitening_fill(whitening: str, colour: str) -> str:
    """Fill of a marker: white where raw, half the colour where standardised, the colour where whitened."""
    from matplotlib.colors import to_hex, to_rgb

    if whitening == RAW:
        return "white"
    return to_hex([(1 + part) / 2 for part in to_rgb(colour)]) if whitening == "standardize" else colour


def whitening_handles(whitenings: Sequence[str], *, markers: bool = False) -> list[Artist]:
    """Legend entries for whitenings: line styles, or markers that are open (raw), pale (standardised) and filled."""
    from matplotlib.lines import Line2D

    handles: list[Artist] = []
    for name in whitenings:
        if markers:
            fill = whitening_fill(name, REFERENCE_COLOUR)
            handle = Line2D([], [], color=REFERENCE_COLOUR, marker="o", linestyle="none", markerfacecolor=fill)
        else:
            handle = Line2D([], [], color=REFERENCE_COLOUR, linestyle=whitening_line(name))
        handle.set_label(whitening_label(name))
        handles.append(handle)
    return handles


def band_handle(label: str, colour: str = NULL_COLOUR, alpha: float = 0.6) -> Artist:
    """Legend entry of a shaded band."""
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, alpha=alpha, edgecolor="none", label=label)


def line_handle(label: str, colour: str = REFERENCE_COLOUR, linestyle: str = ":") -> Artist:
    """Legend entry of a plain line."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=linestyle, linewidth=0.9, label=label)


def dot_handle(label: str) -> Artist:
    """Legend entry of a small black dot."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color="black", marker="o", markersize=1.8, linestyle="none", label=label)


def null_handle(label: str) -> Artist:
    """Legend entry of a null that is drawn as a grey bar with a tick (see `panels.dot_rows`)."""
    from matplotlib.lines import Line2D

    return Line2D(
        [],
        [],
        color=NULL_COLOUR,
        linewidth=3.2,
        marker="|",
        markersize=4,
        markeredgewidth=0.8,
        markeredgecolor=REFERENCE_COLOUR,
        label=label,
    )


def legend_below(figure: Figure, handles: Sequence[Artist], columns: int = 8) -> None:
    """One legend for the whole figure, under the panels, in as many columns (`columns` at most) as the page holds."""
    labels = [str(handle.get_label()) for handle in handles]
    figure.legend(handles=list(handles), loc="outside lower center", ncols=_columns(labels, columns))


def _columns(labels: Sequence[str], most: int) -> int:
    """Columns of a legend, filled one after the other, that fit on the page."""
    import numpy as np
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    room = WIDTH_MM / 25.4 * 72 - 12
    letters = FontProperties(family="DejaVu Sans", size=SMALL_FONT)
    # Handle, its distance from the text, and the distance from the next column, as in `look`.
    beside = (1.8 + 0.5 + 1.2) * SMALL_FONT
    wide = [TextPath((0, 0), label, prop=letters).get_extents().width + beside for label in labels]
    for columns in range(min(most, len(labels)), 1, -1):
        if sum(part.max() for part in np.array_split(wide, columns)) <= room:
            return columns
    return 1


def dictionary_label(dictionary: str, name: str) -> str:
    """Return what readers call a dictionary: its method's label, or its own key where the key says more."""
    return method(name).label if dictionary == name else dictionary
