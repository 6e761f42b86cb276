"""What a study would take at another size: time, memory, disk and cost per stage, from measured rates.

Rates are seconds of one core (or GPU) that `make benchmark-scale` and finished runs took for known work; they lie in
docs/rates.json with the machine they were measured on. Of each stage and method

    seconds = fixed + Σ work / rate

is fitted to its measurements, all at least 0, with errors counted as shares. A stage, method or machine without a
measurement is refused: nothing is guessed from another one.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from conceptome.config.run import Config
from conceptome.errors import ConfigError, DataError
from conceptome.files import read_json
from conceptome.models import SCATTERED

SCHEMA_VERSION = 1
RATES = "docs/rates.json"
MEASURED_BY = "`make benchmark-scale` measures it"
STAGES = ("embed", "whiten", "learn", "encode", "contingency")
# Methods whose fit does not look at the rows one by one.
WITHOUT_ROWS = ("random", "identity")
# Bytes of a parameter while it is trained: value, gradient and two moments, float32.
PARAMETER_BYTES = 16
# Bytes of masks and positions for each row; of counting nothing grows, and of embedding what the adapter holds.
ROW_BYTES = {"whiten": 16, "learn": 25, "encode": 24}
# Most bytes of rows that training holds: a store within them is in memory, of a larger one two shuffle buffers are.
ROWS_HELD = 512 * 2**20


@dataclass(frozen=True)
class Sizes:
    """What a job works on.

    Attributes
    ----------
    rows, d
        Samples, and dimensions of what is read.
    m, l0
        Atoms, and active ones per sample.
    seen
        Rows that training steps see, with repetition; 0 for methods without steps.
    """

    rows: float
    d: int
    m: int = 0
    l0: float = 0
    seen: float = 0


@dataclass(frozen=True)
class Measurement:
    """One stage that was run and measured.

    Attributes
    ----------
    stage, what
        One of STAGES; the model's adapter and source, the whitening's or the dictionary's method, or `labels`.
    sizes
        Of the work.
    seconds
        Processor seconds: on one core they are those of a machine with nothing else to do.
    wall_seconds
        As a clock went.
    anonymous_bytes
        Largest anonymous memory: what the process holds beyond the pages of files.
    disk_bytes
        Of what was written.
    """

    stage: str
    what: str
    sizes: Sizes
    seconds: float
    wall_seconds: float
    anonymous_bytes: int
    disk_bytes: int = 0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Measurement:
        """From the file of rates."""
        return cls(**{**values, "sizes": Sizes(**values["sizes"])})


def work(stage: str, what: str, sizes: Sizes) -> tuple[float, ...]:
    """Units of work, of one kind or two, that each take a time of their own.

    What passes atoms multiplies each row by all of them, and before that reads and whitens it, whatever their number.
    """
    if stage == "embed":
        return (sizes.rows,)
    if stage == "whiten":
        return (sizes.rows * sizes.d ** (2 if what == "pca" else 1),)
    if stage == "encode":
        return sizes.rows * sizes.m * sizes.d, sizes.rows * sizes.d**2
    if stage == "contingency":
        return (sizes.rows * max(sizes.l0, 1),)
    if what in WITHOUT_ROWS:
        return (1.0,)
    if sizes.seen:
        return sizes.seen * sizes.m * sizes.d, sizes.seen * sizes.d**2
    # Linear methods form the covariance of all rows.
    return (sizes.rows * sizes.d**2,)


def fit_rates(x: Sequence[tuple[float, ...]], y: Sequence[float]) -> np.ndarray:
    """Fit an offset and a slope for each kind of work, all at least 0, with the least sum of squared relative errors.

    Measurements of one size give no offset, and those with one number of atoms nothing for the second kind of work.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(np.unique(x, axis=0)) == 1:
        found = np.zeros(x.shape[1] + 1)
        found[1] = (y / x[:, 0]).mean()
        return found
    from scipy.optimize import nnls

    scale = x.max(axis=0)
    weight = 1 / np.maximum(y, np.finfo(np.float64).tiny)
    found, _ = nnls(np.column_stack([np.ones(len(x)), x / scale]) * weight[:, None], y * weight)
    return found / np.array([1.0, *scale])


@dataclass(frozen=True)
class Machine:
    """A machine on which stages were measured.

    Attributes
    ----------
    name, kind
        Of the machine in the file; cpu or gpu.
    description
        What it is, for people.
    cores
        Cores it has (GPUs for kind gpu).
    measurements
        All that was measured on it.
    """

    name: str
    kind: str
    description: str
    cores: int
    measurements: tuple[Measurement, ...] = field(repr=False)

    def of(self, stage: str, what: str) -> list[Measurement]:
        """Measurements of a stage.

        Raises
        ------
        ConfigError
            There are none.
        """
        found = [one for one in self.measurements if (one.stage, one.what) == (stage, what)]
        if not found:
            known = ", ".join(sorted({one.what for one in self.measurements if one.stage == stage})) or "none"
            raise ConfigError(f"no rate of {stage} '{what}' is recorded for '{self.name}' ({known}): {MEASURED_BY}")
        return found

    def seconds(self, stage: str, what: str, sizes: Sizes) -> float:
        """Seconds of one core."""
        found = self.of(stage, what)
        rates = fit_rates([work(stage, what, one.sizes) for one in found], [one.seconds for one in found])
        return float(rates @ [1.0, *work(stage, what, sizes)])

    def memory(self, stage: str, what: str, sizes: Sizes, parameters: int = 0) -> float:
        """Anonymous bytes: what is known to grow, and of the rest the most that was measured.

        `parameters`: of a dictionary in training, all seeds together.
        """
        found = self.of(stage, what)
        rest = max(
            one.anonymous_bytes - growing(stage, one.sizes, 2 * one.sizes.m * one.sizes.d if stage == "learn" else 0)
            for one in found
        )
        return max(rest, 0.0) + growing(stage, sizes, parameters)


def growing(stage: str, sizes: Sizes, parameters: int) -> float:
    """Bytes that grow with rows or parameters: positions of rows, rows that training holds, parameters in training."""
    held = min(4.0 * sizes.rows * sizes.d, ROWS_HELD) if stage == "learn" else 0.0
    return ROW_BYTES.get(stage, 0) * sizes.rows + held + parameters * PARAMETER_BYTES


def machines(path: str | Path) -> dict[str, Machine]:
    """Measured machines by name.

    Raises
    ------
    DataError
        The file is missing or is no file of rates.
    """
    try:
        content = read_json(path)
        if content["schema_version"] != SCHEMA_VERSION:
            raise DataError(f"{path} holds rates of another version: measure again ({MEASURED_BY})")
        return {
            name: Machine(
                name,
                entry["kind"],
                entry["description"],
                entry["cores"],
                tuple(Measurement.of(one) for one in entry["measurements"]),
            )
            for name, entry in content["machines"].items()
        }
    except FileNotFoundError:
        raise DataError(f"no rates are recorded in {path}: {MEASURED_BY}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no file of rates ({error}): {MEASURED_BY}") from None


def choose(found: Mapping[str, Machine], kind: str, name: str | None) -> Machine:
    """The machine that is asked for.

    Raises
    ------
    ConfigError
        None of this kind or name was measured, or several were and none is named.
    """
    known = ", ".join(f"{one.name} ({one.kind})" for one in found.values()) or "none"
    fitting = [one for one in found.values() if one.kind == kind and name in (None, one.name)]
    if not fitting:
        wanted = f"'{name}'" if name else {"gpu": "a machine with GPUs", "cpu": "a machine without GPUs"}[kind]
        raise ConfigError(f"no rates are recorded for {wanted} (recorded: {known}): {MEASURED_BY}")
    if len(fitting) > 1:
        raise ConfigError(f"several machines were measured: name one with --hardware (recorded: {known})")
    return fitting[0]


@dataclass(frozen=True)
class Job:
    """One job of a stage: processor seconds, anonymous bytes, bytes it writes; into how many parts it can be cut."""

    seconds: float
    memory: float
    disk: float
    parts: int = 1


@dataclass(frozen=True)
class Stage:
    """One stage: its jobs, their processor hours, the time they take together, the largest memory, all of the disk."""

    name: str
    jobs: int
    hours: float
    wall_hours: float
    memory_bytes: float
    disk_bytes: float


def makespan(seconds: Iterable[float], workers: int) -> float:
    """Time that jobs take on equal workers, the longest job first (Graham 1969, SIAM J. Appl. Math. 17)."""
    ends = [0.0] * workers
    for each in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + each)
    return max(ends)


def model_name(model: Any) -> str:
    """What a model's rate is recorded under: its adapter, and where its weights are from."""
    origin = getattr(model, "source", None) or getattr(model, "hub", None) or getattr(model, "path", None)
    return f"{model.adapter}:{origin}" if origin else model.adapter


def active(dictionary: Any, m: int, measured: Measurement) -> float:
    """Active atoms of a sample: as configured, or the measured share of all atoms."""
    if getattr(dictionary, "k", None):
        return float(dictionary.k)
    if getattr(dictionary, "rounds", None):
        return float(dictionary.rounds * dictionary.columns)
    return m * measured.sizes.l0 / measured.sizes.m


def jobs_of(config: Config, dataset: str, rows: float, machine: Machine, workers: int) -> dict[str, list[Job]]:
    """The jobs of each stage of one study.

    Raises
    ------
    ConfigError
        A model, whitening or method without a recorded rate.
    """
    from conceptome.workflow import Plan

    plan = Plan(config, _AnySource())
    study = plan.study(dataset)
    found: dict[str, list[Job]] = {stage: [] for stage in STAGES}
    for name, model in study.models.items():
        what = model_name(model)
        measured = machine.of("embed", what)[0]
        d = measured.sizes.d
        sizes = Sizes(rows, d)
        beside = max(0.0, (measured.disk_bytes - 4 * measured.sizes.rows * d) / measured.sizes.rows)
        store = rows * (d * (2 if model.dtype == "bfloat16" else 4) + beside)
        parts = workers if model.adapter in SCATTERED else 1
        seconds = machine.seconds("embed", what, sizes)
        found["embed"].append(Job(seconds, machine.memory("embed", what, Sizes(rows / parts, d)), store, parts))
        for whitening in plan.whitenings(dataset, name):
            kind = plan.whitening(dataset, whitening)
            p = kind.n_components or d
            seconds, memory = (f("whiten", kind.method, sizes) for f in (machine.seconds, machine.memory))
            found["whiten"].append(Job(seconds, memory, 16.0 * p * d))
            for key in plan.dictionaries(dataset, name):
                dictionary = study.dictionaries[key]
                encoded = machine.of("encode", dictionary.method)[-1]
                m = dictionary.m or p
                seen = getattr(dictionary, "steps", 0) * getattr(dictionary, "batch_size", 0)
                one = Sizes(rows, p, m, active(dictionary, m, encoded), seen)
                fits = len(plan.seeds(dataset, key))
                learn = machine.seconds("learn", dictionary.method, one)
                memory = machine.memory("learn", dictionary.method, one, 2 * m * p * fits)
                found["learn"].append(Job(fits * learn, memory, fits * 8.0 * m * p))
                per_code = encoded.disk_bytes / (encoded.sizes.rows * max(encoded.sizes.l0, 1))
                seconds = machine.seconds("encode", dictionary.method, one)
                memory = machine.memory("encode", dictionary.method, one)
                found["encode"].append(Job(fits * seconds, memory, fits * rows * one.l0 * per_code))
                seconds, memory = (f("contingency", "labels", one) for f in (machine.seconds, machine.memory))
                found["contingency"].append(Job(fits * seconds, memory, 0.0))
    return found


class _AnySource(dict):
    """Every source is known: a plan of files is not asked where they come from."""

    def __contains__(self, name: object) -> bool:
        return True


def predict(
    config: Config, dataset: str, rows: float, machine: Machine, *, nodes: int = 1, each: int | None = None
) -> list[Stage]:
    """Predict the stages of one study.

    Parameters
    ----------
    config
        A configuration that holds the study.
    rows
        Rows of activations.
    machine
        Whose rates count.
    nodes, each
        Machines, and how many cores (GPUs) of each work; None: as many as the measured machine has.

    Raises
    ------
    ConfigError
        The study is not there, a number is not positive, or something has no recorded rate.
    """
    if dataset not in config.studies:
        raise ConfigError(f"the configuration has no study '{dataset}' (it has {', '.join(config.studies)})")
    workers = nodes * (machine.cores if each is None else each)
    if not (rows >= 1 and math.isfinite(rows) and nodes >= 1 and workers >= 1):
        raise ConfigError("--rows, --nodes, --cores and --gpus must be positive")
    jobs = jobs_of(config, dataset, rows, machine, workers)
    # Codes are written by the job that learns: the two share their time.
    together = makespan([a.seconds + b.seconds for a, b in zip(jobs["learn"], jobs["encode"], strict=True)], workers)
    both = sum(job.seconds for stage in ("learn", "encode") for job in jobs[stage])
    found = []
    for stage, held in jobs.items():
        total = sum(job.seconds for job in held)
        if stage in ("learn", "encode"):
            wall = together * total / both
        else:
            wall = makespan([job.seconds / job.parts for job in held for _ in range(job.parts)], workers)
        disk = sum(job.disk for job in held)
        memory = max(job.memory for job in held)
        found.append(Stage(stage, sum(job.parts for job in held), total / 3600, wall / 3600, memory, disk))
    return found


def show(stages: Sequence[Stage], machine: Machine, rows: float, workers: int) -> str:
    """As a table for the terminal."""
    unit = "GPU" if machine.kind == "gpu" else "core"
    lines = [
        f"{rows:,.0f} rows on {workers:,} {unit}s, by the rates of {machine.name} ({machine.description})",
        f"{'stage':12}{'jobs':>7}{'time':>12}{unit + '-hours':>13}{'memory/job':>13}{'disk':>12}",
    ]
    for one in stages:
        lines.append(
            f"{one.name:12}{one.jobs:>7}{_duration(one.wall_hours):>12}{one.hours:>13,.2f}"
            f"{_bytes(one.memory_bytes):>13}{_bytes(one.disk_bytes):>12}"
        )
    hours, wall, disk = (sum(getattr(one, key) for one in stages) for key in ("hours", "wall_hours", "disk_bytes"))
    largest = _bytes(max(one.memory_bytes for one in stages))
    lines.append(f"{'all':12}{'':7}{_duration(wall):>12}{hours:>13,.2f}{largest:>13}{_bytes(disk):>12}")
    return "\n".join([*lines, "Training sees a fixed number of rows (steps × batch_size), whatever the data's size."])


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:,.1f} h"


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            return f"{number:,.0f} {unit}" if unit == "B" else f"{number:,.1f} {unit}"
        number /= 1000
    raise AssertionError


def command(arguments: argparse.Namespace) -> int:
    """Print what `conceptome plan` is asked for; gives the exit code."""
    from conceptome.config.run import load
    from conceptome.provenance.run import DEFAULT, checkout

    root = checkout()
    kind = "gpu" if arguments.gpus else "cpu"
    machine = choose(machines(arguments.rates or root / RATES), kind, arguments.hardware)
    config = load([Path(arguments.config) if arguments.config else root / DEFAULT], root / "config")
    if arguments.study not in config.studies:
        config = load([root / DEFAULT], root / "config", studies=[arguments.study])
    each = arguments.gpus or arguments.cores or machine.cores
    found = predict(config, arguments.study, arguments.rows, machine, nodes=arguments.nodes, each=each)
    if arguments.json:
        print(json.dumps({"machine": machine.name, "stages": [asdict(one) for one in found]}))
    else:
        print(show(found, machine, arguments.rows, arguments.nodes * each))
    return 0
