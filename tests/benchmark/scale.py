"""Data larger than memory: whiten → learn → encode → contingency on a simulated store, stage by stage.

    make benchmark-scale ARGS="--rows 1e5,1e6"

Each stage is a process of its own, whose anonymous memory is watched; pages of files, which the store is read through,
do not count. Writes docs/rates.json (what `conceptome plan` predicts from), docs/performance_scale.md and its plot.
`--records RESULTS` adds what the models of a finished run took; `--check` predicts a run of another size and makes it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
for _folder in ("scripts", "kernels"):
    sys.path.insert(0, str(ROOT / _folder))

from conceptome.files import atomic_path, read_json, sha256_file, write_json  # noqa: E402
from conceptome.plan import RATES, SCHEMA_VERSION, Machine, Measurement, Sizes, machines, model_name  # noqa: E402

D, M, K, BATCH, CLASSES = 320, 1024, 16, 2048, 12
LEAST, LARGEST = 100_000, 20_000_000
# What the largest run needs on the disk: store and codes, and room to spare; smaller runs need their share.
FREE_BYTES = 45e9
LEAST_FREE = 2e9
MEMORY_LIMIT = 2e9
TOLERANCE = 0.25
SHARD, BLOCK = 65_536, 65_536
STAGES = ("whiten", "learn", "encode", "contingency")
# A second number of atoms at one size: what a row costs apart from its product with them.
NARROW, NARROW_AT = 256, 1_000_000
# Measured on the store of LEAST rows alone: their share of a study is small.
OTHERS = ("batch_topk", "icfl", "pca", "random", "identity")
WHITENINGS = ("none", "standardize")


def options(method: str, rows: int, m: int, k: int) -> dict:
    """Options of a method: one epoch for those that are trained by steps."""
    steps = {"steps": max(1, int(0.8 * rows) // BATCH), "batch_size": BATCH}
    return {
        "topk": {"m": m, "k": k, **steps},
        "batch_topk": {"m": m, "k": k, **steps},
        "icfl": {"m": m, "rounds": k // 4, "columns": 4, **steps},
        "pca": {},
        "random": {"m": m, "k": k},
        "identity": {},
    }[method]


# ---- the data ----


def generate(folder: Path, rows: int, seed: int = 0) -> None:
    """Write a SIMULATED store: sums of four of 512 unit atoms, of 12 classes, and noise, in bfloat16."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from conceptome.activations import to_bfloat16

    rng = np.random.default_rng(seed)
    atoms = rng.standard_normal((512, D)).astype(np.float32)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    folder.mkdir(parents=True)
    splits, names = ["test", "train", "validation"], [f"class{i:02d}" for i in range(CLASSES)]
    shards, writer = [], None
    with atomic_path(folder / "obs.parquet") as temporary:
        for number, start in enumerate(range(0, rows, BLOCK)):
            n = min(BLOCK, rows - start)
            chosen = rng.integers(0, len(atoms), (n, 4))
            X = rng.standard_normal((n, D), dtype=np.float32)
            X *= 0.1
            for column in range(4):
                X += atoms[chosen[:, column]] * rng.uniform(1, 3, (n, 1)).astype(np.float32)
            name = f"shard-{number:05d}.npy"
            np.save(folder / name, to_bfloat16(X))
            shards.append({"file": name, "rows": n, "sha256": sha256_file(folder / name)})
            frame = pd.DataFrame(
                {
                    "split": pd.Categorical.from_codes(rng.choice(3, n, p=[0.1, 0.8, 0.1]), splits),
                    "control": rng.random(n) < 0.2,
                    "class": pd.Categorical.from_codes(chosen[:, 0] % CLASSES, names),
                },
                index=pd.Index([f"r{i}" for i in range(start, start + n)], name="sample_id"),
            )
            table = pa.Table.from_pandas(frame)
            writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
            writer.write_table(table)
        writer.close()
    card = {"adapter": "simulated", "notes": ["SIMULATED"], "schema_version": 1, "shape": [rows, D]}
    card |= {"dtype": "bfloat16", "shards": shards, "obs_sha256": sha256_file(folder / "obs.parquet")}
    write_json(folder / "card.json", card)


# ---- the stages, each in a process of its own ----


def run_stage(stage: str, folder: Path, method: str, m: int, k: int) -> dict:
    """Take one stage as the workflow's job does; gives the sizes of what it worked on, and the bytes it wrote."""
    from conceptome import codes, whitening
    from conceptome.activations import Store
    from conceptome.config.base import rebuild
    from conceptome.config.models import Whitening
    from conceptome.dictionaries import fit, load
    from conceptome.dictionaries.rows import whitened

    store = Store(folder / "store")
    n = len(store)
    place = folder / method
    if stage == "whiten":
        kind = method if method in WHITENINGS else "pca"
        shrinkage = {"shrinkage": 0.01} if kind == "pca" else {}
        config = rebuild(Whitening, {"method": kind, "fit_on": "all", **shrinkage})
        rows = whitening.fitted_rows(store.columns(["split", "control"]), config)
        place = folder / ("whitening" if kind == "pca" else f"whitening-{kind}")
        whitening.fit(store, rows, config).save(place)
        return {"sizes": asdict(Sizes(n, D)), "disk": _size(place)}
    chosen = options(method, n, m, k)
    if stage == "learn":
        train = (store.columns(["split"])["split"] == "train").to_numpy()
        fitted = whitening.load(folder / "whitening")
        dictionary = fit(method, store, rows=train, whitening=fitted, seed=0, threads=1, **chosen)
        dictionary.save(place)
        seen = chosen.get("steps", 0) * chosen.get("batch_size", 0)
        return {"sizes": asdict(Sizes(n, D, dictionary.m, 0, seen)), "disk": _size(place)}
    file = place / "codes.parquet"
    if stage == "encode":
        dictionary, fitted = load(place), whitening.load(folder / "whitening")
        blocks = (dictionary.encode(X) for X in whitened(store, fitted))
        codes.CodeStream(blocks).save(file, store.folder / "obs.parquet")
        return {"sizes": asdict(Sizes(n, D, dictionary.m, _l0(file))), "disk": file.stat().st_size}
    from conceptome.statistics.counts import count_all, peaks

    top = peaks(block for block, _ in codes.stream(file))
    thresholds = top[:, None] * np.array([0, 0.15, 0.5, 0.6, 0.8], dtype=np.float32)

    def labelled():
        for block, obs in codes.stream(file, ["class"]):
            column = obs.column("class").combine_chunks().dictionary_encode()
            of = np.array([int(name.removeprefix("class")) for name in column.dictionary.to_pylist()])
            yield block, of[column.indices.to_numpy()][:, None] == np.arange(CLASSES)

    found = count_all(labelled(), thresholds)
    np.savez(place / "counts.npz", active=found.active, both=found.both)
    return {"sizes": asdict(Sizes(n, D, len(top), _l0(file))), "disk": _size(place / "counts.npz")}


def _l0(file: Path) -> float:
    """Mean number of active atoms, from the file's footer and not from its rows."""
    import pyarrow.parquet as pq

    footer = pq.read_metadata(file)
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    return sum(group.column(group.num_columns - 1).num_values for group in groups) / footer.num_rows


def _size(path: Path) -> int:
    return sum(item.stat().st_size for item in ([path] if path.is_file() else path.rglob("*")) if item.is_file())


def watch(command: list[str]) -> tuple[dict, float, int]:
    """Run a stage's process; give its answer, its seconds by the clock, and its largest anonymous memory."""
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    began, largest = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            try:
                found = re.search(r"RssAnon:\s+(\d+)", status.read_text(encoding="utf-8"))
            except OSError:
                break
            largest = max(largest, 1024 * int(found[1]) if found else 0)
            time.sleep(0.02)
        answer = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"error: {' '.join(command)} ended with {process.returncode}")
    return json.loads(answer.splitlines()[-1]), time.monotonic() - began, largest


def measure(folder: Path, stage: str, method: str, m: int = M, k: int = K) -> Measurement:
    """Measure one stage on the store in `folder`."""
    own = [sys.executable, __file__, "--stage", stage, "--folder", str(folder), "--method", method]
    answer, wall, anonymous = watch([*own, "--m", str(m), "--k", str(k)])
    what = {"whiten": method if method in WHITENINGS else "pca", "contingency": "labels"}.get(stage, method)
    found = Measurement(stage, what, Sizes(**answer["sizes"]), answer["seconds"], wall, anonymous, answer["disk"])
    rate = found.sizes.rows / found.seconds
    print(
        f"  {stage:12} {method:10} {found.seconds:8.1f} s ({wall:.1f} by the clock) {rate:>12,.0f} rows/s "
        f"{anonymous / 1e6:8,.0f} MB anonymous",
        flush=True,
    )
    return found


def measure_all(scratch: Path, rows: int, *, others: bool, m: int = M, k: int = K) -> list[Measurement]:
    """All stages at one size."""
    need = max(LEAST_FREE, FREE_BYTES * rows / LARGEST)
    free = shutil.disk_usage(scratch).free
    if free < need:
        raise SystemExit(
            f"error: {rows:,} rows need {need / 1e9:.0f} GB of free disk in {scratch}, which has {free / 1e9:.0f} GB: "
            "free some, or choose another folder with --folder"
        )
    folder = scratch / f"rows{rows}-{m}"
    print(f"{rows:,} rows", flush=True)
    try:
        generate(folder / "store", rows)
        found = [measure(folder, stage, "topk", m, k) for stage in STAGES]
        if rows == NARROW_AT:
            found += [measure(folder, stage, "topk", NARROW, k) for stage in ("learn", "encode")]
        if others:
            found += [measure(folder, "whiten", method) for method in WHITENINGS]
            found += [measure(folder, stage, method, m, k) for method in OTHERS for stage in ("learn", "encode")]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


# ---- what models took in a finished run ----


def of_records(results: Path) -> list[Measurement]:
    """Embedding, from the records of a finished run: processor seconds and rows of every job."""
    from conceptome.config.base import rebuild
    from conceptome.config.models import Model

    found = []
    for path in sorted((results / ".provenance" / "records").glob("*-embed-*.final.json")):
        record = read_json(path)
        if record["status"] != "success":
            continue
        folder = results / "activations" / record["wildcards"]["dataset"] / record["wildcards"]["model"]
        rows, d = read_json(folder / "card.json")["shape"]
        sizes = asdict(Sizes(rows, d))
        wall = record["ended"] - record["started"]
        what = model_name(rebuild(Model, record["parameters"]["model"]))
        found.append(
            Measurement(
                "embed", what, Sizes(**sizes), record["cpu_seconds"], wall, record["peak_memory_bytes"], _size(folder)
            )
        )
    return found


# ---- what is written ----


def describe() -> tuple[str, dict]:
    """Name of this machine in the file of rates, and what it says of it."""
    from conceptome.provenance.environment import machine

    found = machine()
    cpu = re.sub(r"\([^)]*\)|@.*", "", found["cpu"])
    name = re.sub(r"[^a-z0-9]+", "-", f"{cpu} {found['cpus']} cores".lower()).strip("-")
    memory = found["memory_bytes"] / 2**30
    text = (
        f"{' '.join(cpu.split())}, {found['cpus']} cores, {memory:.0f} GiB; seconds are processor seconds of one core"
    )
    return name, {"kind": "cpu", "description": text, "cores": found["cpus"]}


def keep(path: Path, name: str, entry: dict, found: list[Measurement]) -> Machine:
    """Add to what the file of rates says of this machine; what was measured again at the same size is replaced."""
    before = read_json(path) if path.exists() else {"schema_version": SCHEMA_VERSION, "machines": {}}
    now = [asdict(one) for one in found]
    key = lambda one: (one["stage"], one["what"], one["sizes"]["rows"], one["sizes"]["m"])  # noqa: E731
    again = {key(one) for one in now}
    older = [one for one in before["machines"].get(name, {}).get("measurements", []) if key(one) not in again]
    entry = entry | {"measurements": sorted([*older, *now], key=lambda one: key(one))}
    write_json(path, before | {"machines": before["machines"] | {name: entry}})
    return machines(path)[name]


def check(machine: Machine, scratch: Path, rows: int, m: int, k: int) -> list[dict]:
    """Predict a run of another size, make it, and compare."""
    found = []
    for one in measure_all(scratch, rows, others=False, m=m, k=k):
        predicted = machine.seconds(one.stage, one.what, one.sizes)
        memory = machine.memory(one.stage, one.what, one.sizes, 2 * one.sizes.m * D if one.stage == "learn" else 0)
        found.append({"stage": one.stage, "seconds": one.seconds, "predicted": predicted})
        found[-1] |= {"memory": one.anonymous_bytes, "predicted_memory": memory}
    total = {key: sum(row[key] for row in found) for key in ("seconds", "predicted")}
    largest = {key: max(row[key] for row in found) for key in ("memory", "predicted_memory")}
    return [*found, {"stage": "all", **total, **largest}]


def draw(found: list[Measurement], path: Path) -> None:
    """Seconds against rows of every stage; a dashed line is as steep as growth in proportion."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "conceptome"
    figure, axis = plt.subplots(figsize=(5, 3.6), layout="constrained")
    for stage, marker in zip(STAGES, "osd^", strict=True):
        of = sorted((one.sizes.rows, one.seconds) for one in found if _is_main(one, stage))
        axis.plot(*zip(*of, strict=True), marker=marker, label=stage)
    rows = sorted({one.sizes.rows for one in found if one.stage == "whiten"})
    first = min(one.seconds for one in found if one.stage == "whiten")
    axis.plot(rows, [first * n / rows[0] for n in rows], "k--", linewidth=0.8, label="in proportion to rows")
    axis.set(xscale="log", yscale="log", xlabel="rows", ylabel="processor seconds", title=f"SIMULATED store, d = {D}")
    axis.legend(frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, metadata={"Date": None})
    plt.close(figure)


def _is_main(one: Measurement, stage: str) -> bool:
    """Whether it belongs to the row of sizes that the page is about."""
    what = {"whiten": "pca", "contingency": "labels"}.get(stage, "topk")
    return (one.stage, one.what) == (stage, what) and one.sizes.m in (0, M)


def page(found: list[Measurement], checked: list[dict], checked_at: str, entry: dict, path: Path) -> None:
    """Write what was measured."""
    head = "| rows | stage | processor seconds | by the clock | rows/s | anonymous memory |\n|---|---|---|---|---|---|"
    main = [one for one in found if any(_is_main(one, stage) for stage in STAGES)]
    lines = [
        "# Data larger than memory",
        "",
        "Written by `make benchmark-scale`. The store is SIMULATED: sums of four of 512 atoms of "
        f"{D} dimensions and noise, in bfloat16. Whitening is `pca`, fitted on the training split (80 %); "
        f"the dictionary is `topk` with m = {M:,}, k = {K}, "
        f"trained for one epoch in batches of {BATCH:,}; contingency counts {CLASSES} classes at five thresholds.",
        "",
        f"- Machine: {entry['description']}.",
        "- Every stage is one process on one core. Rows per second are those of its processor seconds, start-up "
        "included; the clock also counts the disk, and whatever else the machine had to do.",
        f"- Load of the machine when this was written: {os.getloadavg()[1]:.1f} (mean of five minutes; 1 is this run "
        "itself). Processor seconds grow too where cores share caches: on a busy machine all of this is too slow.",
        "- Anonymous memory is the largest RssAnon: the store itself is read through the page cache.",
        "",
        head,
    ]
    for one in sorted(main, key=lambda one: (one.sizes.rows, STAGES.index(one.stage))):
        lines.append(
            f"| {one.sizes.rows:,.0f} | {one.stage} | {one.seconds:.1f} | {one.wall_seconds:.1f} | "
            f"{one.sizes.rows / one.seconds:,.0f} | {one.anonymous_bytes / 1e6:,.0f} MB |"
        )
    largest = max(one.anonymous_bytes for one in main)
    verdict = "within" if largest <= MEMORY_LIMIT else "BEYOND"
    lines += ["", f"Largest: {largest / 1e6:,.0f} MB, {verdict} the limit of {MEMORY_LIMIT / 1e9:.0f} GB."]
    if max(one.sizes.rows for one in main) < LARGEST:
        lines += [f"This run stopped short of {LARGEST:,} rows, which need {FREE_BYTES / 1e9:.0f} GB of free disk."]
    lines += ["", "![processor seconds against rows](performance_scale.svg)", ""]
    if checked:
        lines += [
            "## What `conceptome plan` says of another run",
            "",
            f"Rates of the runs above, and a run of {checked_at} that they had not seen. Aim: the whole within "
            f"{100 * TOLERANCE:.0f} %.",
            "",
            "| stage | predicted | measured | error | memory predicted | measured |\n|---|---|---|---|---|---|",
        ]
        for row in checked:
            error = row["predicted"] / row["seconds"] - 1
            lines.append(
                f"| {row['stage']} | {row['predicted']:.1f} s | {row['seconds']:.1f} s | {100 * error:+.0f} % | "
                f"{row['predicted_memory'] / 1e6:,.0f} MB | {row['memory'] / 1e6:,.0f} MB |"
            )
        lines.append("")
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="make benchmark-scale")
    parser.add_argument("--rows", default="1e5,1e6,1e7,2e7", help="sizes (default: %(default)s); empty: none")
    parser.add_argument("--folder", type=Path, help="where the data go (default: the temporary folder)")
    parser.add_argument("--records", type=Path, help="results folder of a finished run, for the models' rates")
    parser.add_argument("--check", default="3e5", help="rows of the run that is predicted; 0: none")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the page and the rates go")
    for name in ("--stage", "--method"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    for name in ("--m", "--k"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        answer = run_stage(given.stage, given.folder, given.method, given.m, given.k)
        print(json.dumps(answer | {"seconds": time.process_time()}))
        return
    sizes = sorted(int(float(text)) for text in given.rows.split(",") if text)
    name, entry = describe()
    rates = given.docs / Path(RATES).name
    with tempfile.TemporaryDirectory(prefix="scale-", dir=given.folder) as folder:
        scratch = Path(folder)
        machine = keep(rates, name, entry, of_records(given.records) if given.records else [])
        for rows in sizes:
            machine = keep(rates, name, entry, measure_all(scratch, rows, others=rows == LEAST))
        rows, m, k = int(float(given.check)), M // 2, K
        checked = check(machine, scratch, rows, m, k) if rows else []
    found = list(machine.measurements)
    draw(found, given.docs / "performance_scale.svg")
    page(found, checked, f"{rows:,} rows with m = {m}", entry, given.docs / "performance_scale.md")
    if checked:
        error = checked[-1]["predicted"] / checked[-1]["seconds"] - 1
        print(f"prediction: {100 * error:+.0f} % of the whole")


if __name__ == "__main__":
    main()
