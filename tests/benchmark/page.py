"""docs/performance.md and its plots, from what was measured."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dag
import embedding
import pandas as pd
from bars import (
    BARS,
    DICTIONARY_LEARNING,
    FASTEST,
    FLOOR,
    GROWTH_MIB,
    ICFL_BOUND,
    OURS,
    OVERCOMPLETE,
    SAE_LENS,
    SAE_LENS_BF16,
    SPARSIFY,
    TORCH_PATH,
    Contest,
    contests,
    fastest,
    ratio,
)
from contest import Result
from ours import SHORT_TRAINING
from roof import Roof

import conceptome_kernels
from conceptome.figures import style
from conceptome.files import atomic_path
from conceptome_kernels.loader import processor_flags

MIB = 2**20


@dataclass
class Measured:
    """Everything that one run found; a part that is missing has its reason in `left_out`."""

    threads: int
    roof: Roof | None = None
    contests: list[tuple[Contest, dict[str, Result]]] = field(default_factory=list)
    sizes: pd.DataFrame | None = None
    scaling: pd.DataFrame | None = None
    quality: pd.DataFrame | None = None
    embedding: dict[str, Any] | None = None
    dag: dict[str, Any] | None = None
    left_out: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    minutes: float = math.nan

    def of(self, key: str) -> tuple[Contest, dict[str, Result]] | None:
        """Find a contest by its key."""
        return next((pair for pair in self.contests if pair[0].key == key), None)


def machine() -> str:
    """Describe the processor and memory in one line."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    flags = ", ".join(name for name in wanted if name in processor_flags()) or "no vector extension known here"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores ({flags}), {memory:.0f} GiB, Linux {platform.release().split('-')[0]}"


def half_width() -> bool:
    """Whether the processor multiplies bfloat16 vectors."""
    return "avx512_bf16" in processor_flags()


def times(value: float) -> str:
    """A ratio with two to three digits."""
    return f"{value:,.0f}×" if value >= 100 else f"{value:.1f}×" if value >= 10 else f"{value:.2f}×"


def verdict(met: bool | None) -> str:
    """The table's last column."""
    return "not measured" if met is None else "met" if met else "**not met**"


def bar_rows(measured: Measured) -> list[tuple[str, str, str, str, str]]:
    """The bar: work, against, required, measured, verdict."""
    rows = []
    titles = {contest.key: f"{contest.title}, {contest.sizes}" for contest in contests(False)}
    for bar in BARS:
        needed = bar.half_width if bar.half_width is not None and half_width() else bar.plain
        found = measured.of(bar.contest)
        if found is None:
            rows.append((titles[bar.contest], bar.against, f"≥ {times(needed)}", "left out", verdict(None)))
            continue
        contest, results = found
        name = fastest(results) if bar.against == FASTEST else bar.against
        got = ratio(results, bar.who, name) if name else None
        title = contest.title if bar.who == OURS else f"{contest.title}, no compiler"
        against = f"{bar.against} ({name})" if bar.against == FASTEST and name else bar.against
        value = f"{times(got[0])} [{times(got[1])}, {times(got[2])}]" if got else reason(results, bar.who, name)
        rows.append(
            (
                f"{title}, {contest.sizes}",
                against,
                f"≥ {times(needed)}",
                value,
                verdict(got and got[0] >= needed),
            )
        )
    return rows + bound_rows(measured)


def reason(results: dict[str, Result], *names: str | None) -> str:
    """Why a ratio is missing."""
    said = [f"{name}: {results[name].reason}" for name in names if name in results and results[name].reason]
    return "; ".join(said) or "not measured"


def bound_rows(measured: Measured) -> list[tuple[str, str, str, str, str]]:
    """Memory growth, the floor of a training step, the bandwidth bound of ICFL, and quality."""
    rows = []
    step = measured.of("step")
    if step and step[1].get(OURS) and step[1][OURS].growth is not None:
        growth = step[1][OURS].growth / MIB
        rows.append(
            ("Memory growth during training", "data, parameters, moments", f"≤ {GROWTH_MIB:.0f} MiB",
             f"{growth:.0f} MiB", verdict(growth <= GROWTH_MIB))
        )  # fmt: skip
    if step and measured.roof and step[1].get(OURS) and step[1][OURS].rates:
        floor = step[0].setting.batch / measured.roof.training_step(step[0].setting)
        distance = floor / step[1][OURS].median
        rows.append(
            ("TopK training step", f"float32 floor ({floor:,.0f} rows/s)", f"≤ {times(FLOOR)}", times(distance),
             verdict(distance <= FLOOR))
        )  # fmt: skip
    icfl = measured.of("icfl")
    if icfl and measured.roof and icfl[1].get(OURS) and icfl[1][OURS].rates:
        bound = measured.roof.icfl_rows(icfl[0].setting)
        distance = bound / icfl[1][OURS].median
        rows.append(
            ("ICFL encode", f"bandwidth bound ({bound:,.0f} rows/s)", f"≤ {times(ICFL_BOUND)}", times(distance),
             verdict(distance <= ICFL_BOUND))
        )  # fmt: skip
    if measured.quality is not None:
        for data, part in measured.quality.groupby("data", sort=False):
            ours = part[part.who == f"{OURS}, TopK"].dropna(subset="fvu")
            theirs = part[~part.who.str.startswith(OURS)].dropna(subset="fvu")
            if ours.empty or theirs.empty:
                continue
            best, mine = theirs.loc[theirs.fvu.idxmin()], ours.iloc[0]
            rows.append(
                (f"FVU at equal rows, {data}", f"the best peer ({best.who})", f"≤ {best.fvu:.4f}", f"{mine.fvu:.4f}",
                 verdict(bool(mine.fvu <= best.fvu)))
            )  # fmt: skip
            rows.append(
                (f"Dead atoms, {data}", f"the best peer ({best.who})", f"≤ {best.dead:.0f}", f"{mine.dead:.0f}",
                 verdict(bool(mine.dead <= best.dead)))
            )  # fmt: skip
    return rows


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def contest_lines(contest: Contest, results: dict[str, Result]) -> list[str]:
    """One contest's table."""
    rows = []
    for name, result in results.items():
        if not result.rates:
            if result.reason != "does not offer this":
                rows.append((name, f"left out: {result.reason}", "", ""))
            continue
        rate = f"{result.median:,.0f} [{min(result.rates):,.0f}, {max(result.rates):,.0f}]"
        if result.reason:
            rate += f" (then lost: {result.reason})"
        got = ratio(results, OURS, name)
        growth = "" if result.growth is None or "step" not in contest.title else f"{result.growth / MIB:,.0f}"
        rows.append((name, rate, "" if name == OURS or got is None else times(got[0]), growth))
    title = f"### {contest.title}: {contest.sizes}"
    return ["", title, "", *table(("who", "rows/s", f"{OURS} is faster by", "memory growth, MiB"), rows)]


def write(measured: Measured, path: Path) -> None:
    """Write the page."""
    bars = bar_rows(measured)
    versions = ", ".join(f"{name} {version}" for name, version in measured.versions.items())
    lines = [
        "# Performance",
        "",
        "Written by `make benchmark`, which sets up the peers in an environment of their own "
        "([envs/peers.txt](../envs/peers.txt)) and measures all in one run.",
        "",
        f"- Machine: {machine()}; {measured.threads} threads for everybody.",
        f"- Kernels: {conceptome_kernels.build_digest() or 'none'}. Versions: {versions or 'no peers'}.",
    ]
    if measured.roof:
        lines.append(
            f"- Limits measured: {measured.roof.flops / 1e9:,.0f} GFLOP/s of float32 multiply-adds, "
            f"{measured.roof.bandwidth / 1e9:.1f} GB/s of memory."
        )
    lines += [
        f"- The run took {measured.minutes:.0f} minutes.",
        *(f"- Left out: {each}." for each in measured.left_out),
    ]
    lines += [
        "",
        "Every contestant is a process of its own that stays alive; they take turns, each round beginning with "
        "another. Figures are medians of the rounds [lowest, highest]. Absolute figures drift from machine to machine: "
        "the ratios within a run are what counts.",
        "",
        "## The bar",
        "",
        *table(("work", "against", "required", "measured", ""), bars),
        "",
        "## Rows per second",
    ]
    for contest, results in measured.contests:
        lines += contest_lines(contest, results)
    if measured.embedding is not None:
        lines += ["", "## Embedding", "", *embedding.lines(measured.embedding)]
    if measured.dag is not None:
        lines += ["", "## Jobs", "", *dag.lines(measured.dag)]
    if measured.sizes is not None:
        lines += ["", "## Against the number of atoms", "", "![Rows per second against m](performance_m.svg)"]
    if measured.scaling is not None:
        lines += ["", "## Against threads", "", "![Rows per second against threads](performance_threads.svg)"]
    if measured.quality is not None:
        lines += ["", "## Quality at equal rows seen", "", *quality_lines(measured.quality)]
    lines += ["", LARGE, "", "## What is measured", "", *NOTES]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def quality_lines(quality: pd.DataFrame) -> list[str]:
    """Quality as a table."""
    rows = [
        (row.data, row.who, *(("left out: " + row.reason, "", "", "") if row.reason else (
            f"{row.fvu:.4f}", f"{row.l0:.1f}", f"{row.dead:.0f} of {row.m:.0f}", f"{row.rate}"
        )))
        for row in quality.itertuples()
    ]  # fmt: skip
    return [
        "FVU and L0 on test rows, atoms that fire on no training row. Everybody is trained at each of three peak "
        "learning rates, the default among them, and the best FVU counts. Conceptome has what "
        "[dictionaries.md](dictionaries.md#training) advises for short trainings: "
        + ", ".join(f"`{name}: {value}`" for name, value in SHORT_TRAINING.items())
        + ".",
        "",
        *table(("data", "who", "FVU", "L0", "dead atoms", "learning rate"), rows),
    ]


LARGE = (
    "Data larger than memory, and what a study takes at another size: [performance_scale.md](performance_scale.md), "
    "written by `make benchmark-scale`."
)
NOTES = (
    "- Data for timing: simulated Zipf superposition of 2,000 unit features, 24 active, 5 % noise.",
    "- A training step is forward, backward with the auxiliary loss for dead atoms (no atom is dead yet), unit atoms, "
    "Adam, and the bookkeeping of atoms that fired; each peer's own code with its documented setting. overcomplete "
    "runs its documented loss, the mean squared error: its AuxK takes half of all atoms and would only slow it down.",
    "- Encoding ends in each library's own form of codes: Conceptome's CSR, the peers' dense arrays or k pairs.",
    "- MP and ICFL use a Gram matrix made beforehand, as a dictionary keeps one while it encodes; so do spams (its "
    "own) and scikit-learn for OMP. MP takes positive correlations, as the peers do; overcomplete's OMP solves a "
    "non-negative problem.",
    "- Gene sets: a row is one atom's association with every gene, and what comes out is a p value of every set (ours "
    "in log space). gseapy runs `enrich` with the background given, decoupler `ora` with the same and, for the rank "
    "test, `ulm` on ranks, whose t is a function of the rank sum. gseapy's `prerank` and decoupler's `gsea` permute "
    "genes and take minutes per atom at this size: they are left out.",
    "- Memory growth: most anonymous memory during the first steps, less what the process had before it was given "
    "data, less data, parameters and both moments.",
    "- The floor of a training step: the dense product of the encoder (2·B·d·m) at the measured peak, plus, at the "
    "measured bandwidth, both matrices and their moments read and written once and k atoms per row gathered twice.",
    "- The bound of ICFL: after every round but the last, one row of the Gram matrix (4·m bytes) per atom taken, at "
    "the measured bandwidth; what stays in cache can beat it.",
)


# Contestants of the plots: colour and marker.
LOOKS = {
    OURS: ("#0072B2", "o"),
    TORCH_PATH: ("#56B4E9", "s"),
    SPARSIFY: ("#117733", "^"),
    OVERCOMPLETE: ("#EE8866", "D"),
    DICTIONARY_LEARNING: ("#CC3377", "v"),
    SAE_LENS: ("#332288", "P"),
    SAE_LENS_BF16: ("#808080", "X"),
}


def draw(frame: pd.DataFrame, x: str, label: str, title: str, path: Path) -> None:
    """Rows per second against `x` (columns who, rate, x), one line per contestant, band from lowest to highest."""
    import seaborn
    from matplotlib.ticker import FuncFormatter, NullLocator

    names = [name for name in LOOKS if name in set(frame.who)]
    colours, markers = ({name: LOOKS[name][part] for name in names} for part in (0, 1))
    with style.look():
        figure = style.new_figure(80.0)
        axes = figure.add_subplot()
        seaborn.lineplot(
            frame, x=x, y="rate", hue="who", style="who", hue_order=names, style_order=names, palette=colours,
            markers=markers, dashes=False, markeredgewidth=0, estimator="median", errorbar=("pi", 100), ax=axes,
        )  # fmt: skip
        ticks = sorted(set(frame[x]))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(ticks, [f"{value:,}" for value in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set(xlabel=label, ylabel="rows per second", title=title)
        axes.legend(title=None, loc="center left", bbox_to_anchor=(1.0, 0.5))
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
