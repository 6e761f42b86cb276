"""`make benchmark`: Conceptome beside its peers, in one run of at most 30 minutes; writes docs/performance.md.

`--quick` makes everything small, to try the program itself: its figures mean nothing and go to results/benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Container
from dataclasses import asdict, replace
from pathlib import Path

import dag
import numpy as np
import pandas as pd
from bars import AUTOENCODERS, BASELINES, GENE_SET_PEERS, OURS, PEERS, SAE_LENS_BF16, TORCH_PATH, Contest, contests
from contest import ROOT, Contestant, LostError, compete
from data import standardised, superposition, yeast
from page import Measured, draw, half_width, write
from worker import Setting, one_line

from conceptome_kernels import available

PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
GENE_SET_PYTHON = ROOT / ".venv-gene-set-peers" / "bin" / "python"
RESULTS = ROOT / "results" / "benchmark"
# Parts still to come are left out once the run has taken this long; the last one that began may take the rest.
LIMIT_MINUTES = 27.0
ATOMS = (2048, 4096, 8192, 16384, 32768, 65536)
SIZES_BATCH = 1024
# Peak learning rates tried, None: the default. Conceptome's are stated for 1,024 atoms.
RATES = (None, 3e-3, 6e-3)
OUR_RATES = (None, 7e-3, 1.1e-2)
QUALITY = Setting(320, 2048, 32, 1024, steps=250)
QUALITY_ROWS = 60_000


class Clock:
    """Minutes since the start, against the limit."""

    def __init__(self, minutes: float):
        self.start, self.limit = time.monotonic(), minutes

    @property
    def minutes(self) -> float:
        """Minutes so far."""
        return (time.monotonic() - self.start) / 60

    @property
    def late(self) -> bool:
        """Whether nothing more is to be begun."""
        return self.minutes > self.limit


def field(logs: Path) -> dict[str, Contestant]:
    """Everybody, by name; nothing is started."""
    python = Path(sys.executable)
    everybody = {
        OURS: Contestant(OURS, python, "ours.py", "conceptome", logs),
        TORCH_PATH: Contestant(TORCH_PATH, python, "ours.py", "conceptome", logs, CONCEPTOME_KERNELS="torch"),
    }
    for name, argument in BASELINES.items():
        everybody[name] = Contestant(name, python, "ours.py", argument, logs)
    for name in PEERS:
        # Without such instructions autocast only makes it slower.
        if name != SAE_LENS_BF16 or half_width():
            everybody[name] = Contestant(name, PEERS_PYTHON, "peers.py", name, logs)
    for name in GENE_SET_PEERS:
        everybody[name] = Contestant(name, GENE_SET_PYTHON, "gene_set_peers.py", name, logs)
    return everybody


def say(text: str) -> None:
    """Tell how far the run is."""
    print(text, flush=True)


class Run:
    """One run of the benchmark."""

    def __init__(self, folder: Path, *, quick: bool, threads: int, minutes: float):
        self.folder, self.quick, self.clock = folder, quick, Clock(minutes)
        self.measured = Measured(threads)
        self.everybody = field(folder)
        self.rounds, self.seconds = (2, 0.02) if quick else (5, 1.0)
        self.files: dict[tuple[int, int], Path] = {}
        self.main = contests(quick)[0].setting
        if not quick:
            # Smaller batches, so that the largest m fits memory and time.
            self.main = replace(self.main, batch=SIZES_BATCH)

    def data(self, setting: Setting) -> Path:
        """Four batches of rows, as a file."""
        key = (4 * setting.batch, setting.d)
        if key not in self.files:
            self.files[key] = self.folder / f"rows_{key[0]}_{key[1]}.npy"
            np.save(self.files[key], superposition(*key))
        return self.files[key]

    def late(self, part: str) -> bool:
        """Leave a part out when the time is up."""
        if self.clock.late:
            self.measured.left_out.append(f"{part} (the run had taken {self.clock.minutes:.0f} minutes)")
        return self.clock.late

    def limits(self) -> None:
        """Measure the machine itself, before anybody else runs."""
        import roof

        say(f"the machine's limits, {self.measured.threads} threads")
        self.measured.roof = roof.measure(self.measured.threads)

    def attempt(self, part: str, work: Callable[[], None]) -> None:
        """Do one part; where it fails, the page says so and the rest goes on."""
        try:
            work()
        except Exception as error:
            traceback.print_exc()
            self.measured.left_out.append(f"{part} ({one_line(error)})")

    def compare(self, keys: Container[str] | None = None) -> None:
        """The contests; with `keys` those alone."""
        for contest in contests(self.quick):
            if keys is not None and contest.key not in keys:
                continue
            title = f"{contest.title}, {contest.sizes}"
            if self.late(title):
                continue
            say(f"[{self.clock.minutes:.1f} min] {title}")
            slow = contest.setting.m > 32768
            self.measured.contests.append((contest, self.run(contest, rounds=3 if slow else self.rounds)))

    def run(self, contest: Contest, rounds: int, threads: int | None = None, seconds: float | None = None) -> dict:
        """Time one contest and print its medians."""
        present = [self.everybody[name] for name in contest.who if name in self.everybody]
        results = compete(
            contest.work,
            present,
            contest.setting,
            self.data(contest.setting),
            threads=threads or self.measured.threads,
            rounds=rounds,
            seconds=self.seconds if seconds is None else seconds,
        )
        for name, result in results.items():
            if result.rates:
                growth = f" ({result.growth / 2**20:.0f} MiB more)" if result.growth is not None else ""
                took = f"{result.wall:.1f} s wall, {result.processor:.1f} s CPU, peak {result.peak / 2**20:,.0f} MiB"
                say(f"  {name}: {result.median:,.0f} rows/s; {took}{growth} {result.reason}")
            elif result.reason != "does not offer this":
                say(f"  {name}: left out: {result.reason}")
        return results

    def sweep(self, part: str, settings: list[tuple[int, Setting, int]], column: str) -> pd.DataFrame | None:
        """TopK training step over (value of `column`, setting, threads)."""
        rows = []
        for value, setting, threads in settings:
            if self.late(f"{part}: {column} = {value}"):
                continue
            say(f"[{self.clock.minutes:.1f} min] {part}: {column} = {value:,}")
            contest = Contest(part, part, "train topk", setting, (OURS, TORCH_PATH, *AUTOENCODERS))
            for name, result in self.run(contest, rounds=3, threads=threads, seconds=self.seconds / 3).items():
                rows += [{"who": name, column: value, "rate": rate} for rate in result.rates]
        return pd.DataFrame(rows) if rows else None

    def sweeps(self) -> None:
        """Rows per second against m and against threads."""
        threads = self.measured.threads
        by_atoms = [(m, replace(self.main, m=m), threads) for m in ((512, 1024) if self.quick else ATOMS)]
        self.measured.sizes = self.sweep("rows against m", by_atoms, "m")
        counts = sorted({2**power for power in range(threads.bit_length()) if 2**power <= threads} | {threads})
        by_threads = [(count, self.main, count) for count in counts]
        self.measured.scaling = self.sweep("rows against threads", by_threads, "threads")

    def quality(self) -> None:
        """Train everybody on as many rows, and compare."""
        setting = Setting(64, 256, 8, 256, steps=10) if self.quick else QUALITY
        rows = 2_000 if self.quick else QUALITY_ROWS
        simulated = superposition(rows + rows // 5, setting.d, seed=1)
        found = {"simulated superposition": (simulated[:rows], simulated[rows:])}
        residues = yeast(ROOT / "results" / "activations" / "yeast" / "esm2")
        if residues is None:
            self.measured.left_out.append(
                "quality on yeast (`make run` has not left results/activations/yeast/esm2 here)"
            )
        else:
            found["ESM-2 activations of yeast"] = residues
        table = []
        for data, (train, test) in found.items():
            if self.late(f"quality on {data}"):
                continue
            say(f"[{self.clock.minutes:.1f} min] quality on {data}")
            train, test = standardised(train, test)
            own = replace(setting, d=train.shape[1])
            table += self.learn(data, own, train, test)
        if table:
            self.measured.quality = pd.DataFrame(table)

    def learn(self, data: str, setting: Setting, train: np.ndarray, test: np.ndarray) -> list[dict]:
        """Quality of everybody on one data set: the best of several learning rates."""
        rng = np.random.default_rng(0)
        flat = np.concatenate(
            [rng.permutation(len(train)) for _ in range(setting.steps * setting.batch // len(train) + 1)]
        )
        order = flat[: setting.steps * setting.batch].reshape(setting.steps, setting.batch)
        files = {name: str(self.folder / f"{name}.npy") for name in ("train", "test", "order")}
        for name, array in (("train", train), ("test", test), ("order", order)):
            np.save(files[name], array)
        rows = []
        for name in (OURS, *AUTOENCODERS):
            if name not in self.everybody or name == SAE_LENS_BF16:
                continue
            for work in ("learn topk", "learn batch_topk") if name == OURS else ("learn topk",):
                label = name
                if name == OURS:
                    label = f"{OURS}, {'TopK' if work == 'learn topk' else 'BatchTopK'}"
                best, reason = self.best(name, work, setting, files)
                if best or reason:
                    row = best or {"fvu": np.nan}
                    rows.append({"data": data, "who": label, "m": setting.m, "reason": "" if best else reason, **row})
        return rows

    def best(self, name: str, work: str, setting: Setting, files: dict[str, str]) -> tuple[dict | None, str]:
        """Train one contestant at each learning rate; give the outcome of lowest FVU, or why there is none."""
        best, reason = None, ""
        for rate in OUR_RATES if name == OURS else RATES:
            if self.clock.late and best:
                continue
            request = {"work": work, "setting": asdict(replace(setting, rate=rate)), **files}
            contestant = self.everybody[name]
            try:
                contestant.start(self.measured.threads)
                if not contestant.offers(work):
                    continue
                answer, _ = contestant.ask(limit=600, do="learn", threads=self.measured.threads, **request)
            except LostError as lost:
                reason = str(lost)
                continue
            say(f"  {name} {work} rate {rate or 'default'}: {json.dumps(answer)}")
            if best is None or answer["fvu"] < best["fvu"]:
                best = {**answer, "rate": "default" if rate is None else f"{rate:g}", "work": work}
        return best, reason

    def finish(self, page: Path) -> None:
        """Write the page, its plots, and the raw figures."""
        measured = self.measured
        measured.minutes = self.clock.minutes
        measured.versions = versions()
        page.parent.mkdir(parents=True, exist_ok=True)
        main = self.main
        rows = f"TopK training step, d = {main.d}, k = {main.k}, batch {main.batch:,}"
        for frame, x, label, title, name in (
            (measured.sizes, "m", "number of atoms m", f"{rows}, {measured.threads} threads", "performance_m.svg"),
            (measured.scaling, "threads", "threads", f"{rows}, m = {main.m:,}", "performance_threads.svg"),
        ):
            if frame is not None:
                draw(frame, x, label, title, page.parent / name)
        write(measured, page)
        RESULTS.mkdir(parents=True, exist_ok=True)
        raw = [
            {"work": contest.work, "setting": asdict(contest.setting), "who": name, **asdict(result)}
            for contest, results in measured.contests
            for name, result in results.items()
        ]
        (RESULTS / "rates.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
        say(f"written: {page} ({self.clock.minutes:.1f} minutes)")

    def embedding(self) -> None:
        """Proteins through ESM-2 beside a plain loop of transformers, in a process of its own."""
        if self.late("embedding"):
            return
        say(f"[{self.clock.minutes:.1f} min] embedding")
        command = [sys.executable, str(Path(__file__).with_name("embedding.py")), f"--threads={self.measured.threads}"]
        paths = os.pathsep.join([str(ROOT / "scripts"), str(ROOT / "kernels")])
        # A missed bar is its exit status, and stands on the page; a run that failed has left no figures.
        done = subprocess.run(
            command + ["--quick"] * self.quick,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            env=os.environ | {"PYTHONPATH": paths},
        )
        if not done.stdout.strip():
            raise RuntimeError((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
        self.measured.embedding = json.loads(done.stdout.strip().splitlines()[-1])
        say(f"  {json.dumps(self.measured.embedding)}")

    def dag(self) -> None:
        """A graph of thousands of jobs."""
        if self.late("a graph of jobs"):
            return
        say(f"[{self.clock.minutes:.1f} min] a graph of jobs")
        self.measured.dag = dag.measure(copies=1 if self.quick else dag.COPIES)
        say(f"  {json.dumps(self.measured.dag)}")

    def residues(self) -> None:
        """Residue enrichment at full size, in a process of its own, whose memory is then its own too."""
        say(f"[{self.clock.minutes:.1f} min] residue enrichment")
        paths = os.pathsep.join([str(ROOT / "scripts"), str(ROOT / "kernels")])
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("residues.py"))] + ["--quick"] * self.quick,
            stdout=subprocess.PIPE,
            text=True,
            timeout=1200,
            check=False,
            env=os.environ | {"PYTHONPATH": paths},
        )
        if not done.stdout.strip():
            raise RuntimeError(f"residues.py ended with code {done.returncode} and without figures")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        for part, what in (("whole_table", "whole table"), ("f1_of_all_pairs", "F1 of all pairs")):
            wall, processor = found[f"seconds_{part}"], found[f"processor_seconds_{part}"]
            say(f"  {what}: {wall:.1f} s wall, {processor:.1f} s CPU")
        say(f"  peak {found['mebibytes']:,} MiB ({found['mebibytes_of_the_data']:,} of them held before, for the data)")
        say(f"  {json.dumps(found)}")

    def close(self) -> None:
        """End every process."""
        for contestant in self.everybody.values():
            contestant.stop(kill=True)


def versions() -> dict[str, str]:
    """Versions of the peers, as pinned."""
    peers = ("torch", "sae-lens", "dictionary-learning", "eai-sparsify", "overcomplete", "scikit-learn", "spams-bin")
    found = {}
    for python, file, wanted in (
        (PEERS_PYTHON, "peers.txt", peers),
        (GENE_SET_PYTHON, "gene-set-peers.txt", GENE_SET_PEERS),
    ):
        lines = (ROOT / "envs" / file).read_text(encoding="utf-8").splitlines()
        pins = dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))
        found |= {name: pins[name] for name in wanted if name in pins and python.exists()}
    return found


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="make benchmark")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the program itself")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every contestant (default: all cores)")
    parser.add_argument("--minutes", type=float, default=LIMIT_MINUTES, help="no part is begun after so many minutes")
    keys = [contest.key for contest in contests(quick=True)]
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*keys, "residues", "embedding", "dag"],
        help="these parts alone: contests, residue enrichment at full size, embedding, a graph of 3,000 jobs; prints "
        "what they took and writes no page",
    )
    arguments = parser.parse_args()
    if not available():
        raise SystemExit("error: there are no compiled kernels to measure: install a C++ compiler")
    page = RESULTS / "performance.md" if arguments.quick else ROOT / "docs" / "performance.md"
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        run = Run(Path(folder), quick=arguments.quick, threads=arguments.threads, minutes=arguments.minutes)
        try:
            if arguments.only:
                # A failure ends such a run with its message: there is no page that could tell it.
                if set(arguments.only) & set(keys):
                    run.compare(arguments.only)
                for part in ("residues", "embedding", "dag"):
                    if part in arguments.only:
                        getattr(run, part)()
                return
            run.attempt("the machine's limits", run.limits)
            run.attempt("the contests", run.compare)
            run.attempt("quality", run.quality)
            run.attempt("rows against m and threads", run.sweeps)
            run.attempt("embedding", run.embedding)
            run.attempt("a graph of jobs", run.dag)
            run.finish(page)
        finally:
            run.close()


if __name__ == "__main__":
    main()
