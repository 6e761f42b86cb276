"""The one schema that every reader writes and every later stage reads."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.datasets.splits import SPLITS, assign_splits, planned_splits, stream
from conceptome.datasets.tables import need_column, open_text, suggest
from conceptome.errors import DataError
from conceptome.files import atomic_path, read_json, read_parquet, write_json, write_parquet

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from conceptome.config.datasets import Control, DatasetBase

RESERVED = ("control", "group", "batch", "split")


@dataclass(frozen=True)
class Dataset:
    """A prepared data set: samples with their labels, a card, and the data themselves (read on demand).

    Attributes
    ----------
    folder
        Where the data set lies.
    obs
        One row per sample, index `sample_id`; columns control (bool), group, batch, split (str), then labels.
    card
        What the data set is, what was done to it, and what was counted on the way.
    """

    folder: Path
    obs: pd.DataFrame
    card: dict[str, Any]

    def __len__(self) -> int:
        return len(self.obs)

    @property
    def name(self) -> str:
        """Name of the data set: the name of its folder."""
        return self.folder.name

    def anndata(self) -> AnnData:
        """Read the matrix (cells, wells, simulated).

        Returns
        -------
        AnnData
            n × p. Cells: `.X` log-normalised float32 CSR, `.layers['counts']` raw counts float32 CSR where the source
            has them, `.var['highly_variable']`. Wells and simulated: `.X` dense float32.

        Raises
        ------
        DataError
            The data set is one of sequences, or its file is damaged.
        """
        return read_h5ad(self._existing("X.h5ad"))

    def crops(self) -> np.ndarray:
        """Open the single-cell crops or tiles: (n, channels, h, w) uint8 or uint16, read from disk as they are used.

        Raises
        ------
        DataError
            The data set is not of images, or its file is damaged.
        """
        path = self._existing("crops.npy")
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}): prepare the data set again") from None

    def sequences(self) -> dict[str, str]:
        """Read the chosen protein sequences: identifier → amino acids, in FASTA order."""
        records: dict[str, list[str]] = {}
        with open_text(self._existing("sequences.fasta")) as text:
            for line in text:
                if line.startswith(">"):
                    records[line[1:].strip()] = lines = []
                else:
                    lines.append(line.strip())
        return {name: "".join(lines) for name, lines in records.items()}

    def annotations(self) -> pd.DataFrame:
        """Read the annotations of the chosen proteins: protein, type, note, start, end (1-based, inclusive)."""
        return read_parquet(self._existing("annotations.parquet"))

    def truth(self) -> pd.DataFrame | None:
        """Read the hidden variables of a simulation (samples × 'layer:name'), or None for real data."""
        path = self.folder / "truth.parquet"
        return read_parquet(path) if path.exists() else None

    def _existing(self, name: str) -> Path:
        if not (self.folder / name).exists():
            raise DataError(f"{self.folder} holds no {name}: its modality is {self.card['modality']}")
        return self.folder / name


def load(folder: str | Path) -> Dataset:
    """Open a prepared data set.

    Raises
    ------
    DataError
        The folder is not one that `prepare` wrote.
    """
    folder = Path(folder)
    for name in ("card.json", "obs.parquet"):
        if not (folder / name).exists():
            raise DataError(f"{folder} is not a prepared data set: {name} is missing")
    return Dataset(folder, read_parquet(folder / "obs.parquet"), read_json(folder / "card.json"))


def read_h5ad(path: Path) -> AnnData:
    """Read an AnnData file.

    Raises
    ------
    DataError
        The file is missing, damaged, or no AnnData file.
    """
    import anndata

    if not Path(path).exists():
        raise DataError(f"cannot read {path}: No such file or directory")
    try:
        with warnings.catch_warnings():
            # Repeated names are this library's to complain about, and an error rather than a warning.
            warnings.filterwarnings("ignore", message=".*names are not unique")
            return anndata.read_h5ad(path)
    except Exception as error:  # h5py raises OSError, KeyError, RuntimeError … according to where the damage sits
        reason = str(error).strip("\"'").split("\n")[0]
        raise DataError(f"{path} is not a readable .h5ad file ({reason}): supply the file again") from None


def as_text(value: object) -> str | None:
    """Write one label value as plain text: whole floats without '.0', missing as None."""
    import pandas as pd

    if value is None or value is pd.NA or (isinstance(value, float | np.floating) and np.isnan(value)):
        return None
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def text_column(values: pd.Series) -> pd.Series:
    """Turn a column into plain strings, missing = None (object)."""
    return values.astype(object).map(as_text).astype(object).where(lambda text: text.notna(), None)


def numeric_column(values: pd.Series, where: str) -> pd.Series:
    """Turn a column into float64, missing = NaN.

    Raises
    ------
    DataError
        A value is no number: which column, which value, how many.
    """
    import pandas as pd

    plain = values.astype(object)
    numbers = pd.to_numeric(plain, errors="coerce").astype("float64")
    wrong = numbers.isna() & plain.notna()
    if wrong.any():
        example = plain[wrong].iloc[0]
        raise DataError(
            f"{where}: label '{values.name}' is declared numeric or ordinal, but {int(wrong.sum())} values are no "
            f"numbers (first: {example!r}): declare it categorical, or mend the column"
        )
    return numbers


def check_ids(ids: Sequence[str], where: str) -> None:
    """Refuse duplicated sample ids.

    Raises
    ------
    DataError
        How many ids occur more than once, and the first of them.
    """
    import pandas as pd

    repeated = pd.Index(ids).duplicated(keep="first")
    if repeated.any():
        names = pd.Index(ids)[repeated].unique()
        raise DataError(
            f"{where}: {len(names)} sample ids occur more than once (first: '{names[0]}'); sample ids must be unique"
        )


def check_finite(values: Any, features: Sequence[str], where: str, remedy: str) -> None:
    """Refuse NaN and infinite values.

    Parameters
    ----------
    values
        Dense array or SciPy sparse matrix, n × p.
    features
        Names of the p columns.
    where, remedy
        Beginning and end of the error line.

    Raises
    ------
    DataError
        How many values in how many columns, and the column that has most.
    """
    from scipy import sparse

    if sparse.issparse(values):
        coordinates = values.tocoo()
        columns = coordinates.col[~np.isfinite(coordinates.data)]
    else:
        columns = np.nonzero(~np.isfinite(values))[1]
    if len(columns):
        counts = np.bincount(columns, minlength=len(features))
        worst = int(np.argmax(counts))
        raise DataError(
            f"{where}: {len(columns)} NaN or infinite values in {int((counts > 0).sum())} columns, "
            f"most in '{features[worst]}' ({int(counts[worst])}); {remedy}"
        )


def control_mask(frame: pd.DataFrame, control: Control | None, where: str) -> np.ndarray | None:
    """Find the declared controls.

    Returns
    -------
    numpy.ndarray or None
        bool per row; None if the study declares no control.

    Raises
    ------
    DataError
        The column is missing, or no row holds one of the values.
    """
    if control is None:
        return None
    need_column(control.column, frame.columns, "control", where)
    present = text_column(frame[control.column])
    wanted = [as_text(value) for value in control.values]
    mask = present.isin(wanted).to_numpy()
    if not mask.any():
        known = sorted({value for value in present if value is not None})
        raise DataError(
            f"{where}: no control rows: column '{control.column}' holds none of {', '.join(map(str, wanted))}; "
            f"{suggest(wanted[0], known)}"
        )
    return mask


def control_text(control: Control) -> str:
    """Say in words what the controls are."""
    return f"samples whose {control.column} is {' or '.join(map(str, control.values))}"


def build(
    config: DatasetBase,
    frame: pd.DataFrame,
    *,
    where: str,
    modality: str,
    unit: str,
    n_features: int,
    control: np.ndarray | None = None,
    control_is: str | None = None,
    group: str | None = None,
    control_group: str | None = None,
    split_by: str | None = None,
    plan: Mapping[str, Sequence[str]] | None = None,
    stratify: str | None = None,
    batch: str | None = None,
    extra: Sequence[str] = (),
    strata: pd.DataFrame | None = None,
    seed: int | None = None,
    notes: Iterable[str] = (),
    reports: dict[str, Any] | None = None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Build `obs` and the card from the columns that a reader found.

    Parameters
    ----------
    frame
        One row per sample, index = sample ids, with every column that may be asked for.
    where
        What an error line begins with, e.g. the file's name.
    unit
        What a sample is ("cell", "well", "residue", "sample"): the group when no group column is given.
    control
        bool per row; None draws a seeded share (`config.control_fraction`) of the samples.
    group, batch
        Columns of `frame`; without a group column every sample is its own group.
    control_group
        Column of `frame` that is the group of controls. Where the group is a treatment, all controls have the same
        one, and would all go to one split: they are dealt apart from the others, by this column.
    split_by
        Column of `frame` that is wholly in one split where that is more than the group (the plate of a field); None:
        the group. A group has one value of it.
    plan
        Split → values of `split_by` (or of the group) that make it up; None: they are drawn.
    stratify
        Column of `frame` whose values are spread over the splits in proportion (`assign_splits`), controls apart.
    extra
        Columns of `frame` kept beside the labels.
    strata
        See `assign_splits`; not together with `stratify`.
    seed
        Seed of the control draw; None: the split's.

    Raises
    ------
    DataError
        A declared column does not exist or does not hold what was declared, ids occur twice, or no control is left
        in the training split.
    """
    import pandas as pd

    check_ids(frame.index, where)
    obs = pd.DataFrame(index=pd.Index(frame.index.astype(str), name="sample_id"))
    notes = list(notes)
    if control is None:
        control = np.zeros(len(frame), bool)
        chosen = max(1, round(config.control_fraction * len(frame)))
        draw = stream(config.split.seed if seed is None else seed, "control")
        control[draw.choice(len(frame), chosen, replace=False)] = True
        control_is = f"a seeded random {config.control_fraction:.0%} of {unit}s, since there is no natural control"
        notes.append(
            f"No natural control: `control` marks a seeded random {config.control_fraction:.0%} of the {unit}s, which "
            "serve to fit the whitening and are no biological reference."
        )
    obs["control"] = np.asarray(control, bool)
    groups = text_column(frame[need_column(group, frame.columns, "group", where)]) if group else None
    if groups is None:
        groups = pd.Series(obs.index.to_numpy(object), index=frame.index)
    obs["group"] = groups.to_numpy(object)
    if control_group is not None:
        dealt_by = text_column(frame[need_column(control_group, frame.columns, "control_group", where)])
        if dealt_by[obs["control"].to_numpy()].isna().any():
            raise DataError(f"{where}: control_group '{control_group}' is empty in some controls: fill it in")
        # The column's name in front keeps a plate apart from a compound of the same name.
        groups = groups.where(~obs["control"].to_numpy(), f"{control_group} " + dealt_by.astype(str))
        obs["group"] = groups.to_numpy(object)
        notes.append(
            f"Samples are split by {group or unit}, controls by {control_group}: a {control_group} may hold treated "
            f"samples of all splits, and its effect is not held out."
        )
    dealt_units = obs["group"] if split_by is None else _split_units(frame, obs, split_by, where)
    if stratify is not None:
        strata = _strata(frame, obs, need_column(stratify, frame.columns, "stratify", where))
    # A data set that knows no batch still has the column, empty, so that every table has the same columns.
    batches = text_column(frame[need_column(batch, frame.columns, "batch", where)]) if batch else None
    obs["batch"] = np.full(len(obs), None, object) if batches is None else batches.to_numpy(object)
    # Controls are dealt apart only where they have groups of their own.
    dealt = (
        [np.ones(len(obs), bool)] if control_group is None else [obs["control"].to_numpy(), ~obs["control"].to_numpy()]
    )
    obs["split"] = None
    for rows in dealt:
        units = dealt_units[rows]
        obs.loc[rows, "split"] = (
            assign_splits(units, config.split, strata) if plan is None else planned_splits(units, plan, where)
        ).to_numpy(object)
    if not (obs["control"] & (obs["split"] == "train")).any():
        raise DataError(
            f"{where}: none of the {int(obs['control'].sum())} controls is in the training split, where the whitening "
            "is fitted: change split.seed or split.train"
        )
    for column in extra:
        obs[column] = frame[column].to_numpy()
    labels = {}
    for name, label in config.labels.items():
        need_column(name, frame.columns, "label", where)
        if label.kind == "categorical":
            obs[name] = text_column(frame[name]).to_numpy(object)
        else:
            obs[name] = numeric_column(frame[name], where).to_numpy()
        labels[name] = {"kind": label.kind, "role": label.role, "title": label.title or name}
    reports = dict(reports or {})
    reports["split"] = {
        name: {
            "samples": int((obs["split"] == name).sum()),
            "groups": int(obs.loc[obs["split"] == name, "group"].nunique()),
            "controls": int((obs["control"] & (obs["split"] == name)).sum()),
        }
        for name in SPLITS
    }
    reports["labels"] = {name: _count_label(config, frame, obs, name, where) for name in labels}
    for name, report in reports["labels"].items():
        if report.get("single_instance_classes"):
            classes = ", ".join(report["single_instance_classes"])
            notes.append(
                f"Classes of '{name}' with a single {config.labels[name].instances}: {classes}. What distinguishes "
                f"such a class cannot be told from what distinguishes its one {config.labels[name].instances}."
            )
            labels[name]["single_instance_classes"] = report["single_instance_classes"]
    group_is = group or unit
    card = {
        "schema_version": 1,
        "title": config.title,
        "modality": modality,
        "reader": config.reader,
        "simulated": modality == "simulated",
        "n_samples": len(obs),
        "n_features": int(n_features),
        "n_groups": int(obs["group"].nunique()),
        "labels": labels,
        "unit": unit,
        "group_is": group_is,
        "batch_is": batch,
        "control_is": control_is,
        "interval_level": f"{group_is}-level",
        "notes": notes,
        "reports": reports,
    }
    return obs, card


def _split_units(frame: pd.DataFrame, obs: pd.DataFrame, column: str, where: str) -> pd.Series:
    """Return the column by which samples are split, one text per sample.

    Raises
    ------
    DataError
        It does not exist, is empty somewhere, or a group has two values of it.
    """
    units = text_column(frame[need_column(column, frame.columns, "split_by", where)])
    units.index = obs.index
    if units.isna().any():
        raise DataError(f"{where}: split_by '{column}' is empty in {int(units.isna().sum())} samples: fill it in")
    values = units.groupby(obs["group"]).nunique()
    if (values > 1).any():
        raise DataError(
            f"{where}: group '{values.idxmax()}' has {int(values.max())} values of split_by '{column}', and would "
            "stand on two sides of the split: choose a finer group"
        )
    return units


def _strata(frame: pd.DataFrame, obs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Say which group has which value of a column: groups × values, bool."""
    import pandas as pd

    values = text_column(frame[column]).to_numpy(object)
    return pd.crosstab(obs["group"].to_numpy(object), values).astype(bool)


def _count_label(config: DatasetBase, frame: pd.DataFrame, obs: pd.DataFrame, name: str, where: str) -> dict[str, Any]:
    """Count samples, groups, batches and instances of every class of one label; mark what is confounded."""
    report: dict[str, Any] = {"missing": int(obs[name].isna().sum())}
    if config.labels[name].kind == "numeric":
        return report
    table = obs.assign(value=text_column(obs[name]).to_numpy(object))
    instances = config.labels[name].instances
    if instances is not None:
        need_column(instances, frame.columns, "instances", where)
        table["instance"] = text_column(frame[instances]).to_numpy(object)
    classes = {}
    for value, rows in table.dropna(subset=["value"]).groupby("value", sort=True):
        classes[value] = {"samples": len(rows), "groups": int(rows["group"].nunique())}
        if rows["batch"].notna().any():
            classes[value]["batches"] = int(rows["batch"].nunique())
        if instances is not None:
            classes[value]["instances"] = int(rows["instance"].nunique())
            # That the controls got one and the same treatment is what makes them controls.
            classes[value]["controls_only"] = bool(rows["control"].all())
    report["classes"] = classes
    if instances is not None:
        report["single_instance_classes"] = [
            value for value, count in classes.items() if count["instances"] == 1 and not count["controls_only"]
        ]
    if config.labels[name].role == "biological" and table["batch"].nunique() > 1:
        report["single_batch_classes"] = [value for value, count in classes.items() if count.get("batches") == 1]
    return report


def draw_subsample(n: int, config: DatasetBase) -> np.ndarray:
    """Row numbers, ascending, of the seeded subsample that the configuration asks for (all rows without one)."""
    if config.subsample is None or config.subsample >= n:
        return np.arange(n)
    return np.sort(stream(config.split.seed, "subsample").choice(n, config.subsample, replace=False))


def write(folder: Path, obs: pd.DataFrame, card: dict[str, Any], data: AnnData | None = None) -> None:
    """Write obs, card and, where there is one, the matrix; equal values give equal bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if data is not None:
        import h5py
        from anndata.io import write_elem

        with atomic_path(folder / "X.h5ad") as temporary:
            # Through memory: on a full disk HDF5 crashes the process when it closes its file, and a crash can neither
            # be reported in one line nor cleaned up after; a plain write raises.
            held = io.BytesIO()
            with h5py.File(held, "w") as handle:
                write_elem(handle, "/", data, dataset_kwargs={"compression": "gzip", "compression_opts": 1})
            temporary.write_bytes(held.getbuffer())
    write_parquet(folder / "obs.parquet", obs)
    # The card comes last: a folder with a card is a complete one.
    write_json(folder / "card.json", card)
