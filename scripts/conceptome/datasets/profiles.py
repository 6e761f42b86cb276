"""Tables of profiles (CellProfiler and its kin): one row per well, cell or site, metadata and feature columns."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.datasets import schema
from conceptome.datasets.scaffolds import scaffolds
from conceptome.datasets.tables import need_column, read_table, suggest
from conceptome.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from conceptome.config.datasets import ImagesBase, Profiles

logger = logging.getLogger(__name__)


def prepare(config: Profiles, inputs: dict[str, Path], folder: Path) -> None:
    """Read one or more tables of profiles. See `conceptome.datasets.prepare`."""
    import pandas as pd
    from anndata import AnnData

    where = inputs[next(iter(inputs))].name + (f" and {len(inputs) - 1} more" if len(inputs) > 1 else "")
    table = stack(inputs)
    metadata, features = divide(config, table, where)
    names = list(features.columns)
    if config.scaffold is not None:
        smiles = need_column(config.scaffold.smiles, metadata.columns, "SMILES", where)
        metadata[config.scaffold.column] = scaffolds(schema.text_column(metadata[smiles]), where)
    metadata.index = sample_ids(config, metadata, where)
    values = features.to_numpy(np.float64)
    schema.check_finite(values, names, where, "drop the column with ignore_columns, or impute its values before")
    control = schema.control_mask(metadata, config.control, where)
    schema.check_ids(metadata.index, where)
    kept = schema.draw_subsample(len(metadata), config)
    metadata, values = metadata.iloc[kept], values[kept]
    if control is not None:
        control = control[kept]
    obs, card = schema.build(
        config,
        metadata,
        where=where,
        modality="wells",
        unit=config.unit,
        n_features=len(names),
        control=control,
        control_is=None if config.control is None else schema.control_text(config.control),
        group=config.group,
        control_group=config.control_group,
        stratify=config.stratify,
        batch=config.batch,
        reports={"rows_per_input": table.attrs["rows_per_input"], "ignored_columns": len(config.ignore_columns)},
    )
    if config.transform == "standardize":
        rows = (obs["control"] & (obs["split"] == "train")).to_numpy()
        values, constant = standardize(values, rows)
        card["reports"]["constant_features"] = [names[index] for index in np.flatnonzero(constant)]
        names = [name for name, same in zip(names, constant) if not same]
        card["n_features"] = len(names)
        card["notes"].append(
            f"Features are standardised: minus the mean, over the standard deviation, of the {int(rows.sum())} "
            "controls of the training split."
        )
    data = AnnData(
        values.astype(np.float32),
        obs=pd.DataFrame(index=obs.index),
        var=pd.DataFrame(index=pd.Index(names, dtype=object, name="feature")),
    )
    schema.write(folder, obs, card, data)


def stack(inputs: dict[str, Path]) -> pd.DataFrame:
    """Read the tables and stack them in the order given.

    Returns
    -------
    pandas.DataFrame
        All rows; `.attrs['rows_per_input']` counts them.

    Raises
    ------
    DataError
        The tables do not have the same columns.
    """
    import pandas as pd

    tables = {name: read_table(path) for name, path in inputs.items()}
    first = next(iter(tables))
    for name, table in tables.items():
        different = set(table.columns) ^ set(tables[first].columns)
        if different:
            example = sorted(different)[0]
            holder, lacking = (name, first) if example in table.columns else (first, name)
            raise DataError(
                f"inputs '{first}' and '{name}' have different columns ({len(different)} in one only): '{example}' is "
                f"in '{holder}' ({inputs[holder].name}) but not in '{lacking}' ({inputs[lacking].name})"
            )
    stacked = pd.concat([table[tables[first].columns] for table in tables.values()], ignore_index=True)
    stacked.attrs["rows_per_input"] = {name: len(table) for name, table in tables.items()}
    return stacked


def divide(config: Profiles, table: pd.DataFrame, where: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Divide columns into metadata (renamed, values replaced) and features (numeric).

    Raises
    ------
    DataError
        A declared column is missing, a feature column is not numeric, or nothing is left as a feature.
    """
    import pandas as pd

    for name in config.ignore_columns:
        need_column(name, table.columns, "ignore_columns", where)
    if config.metadata_columns is None:
        columns = [name for name in table.columns if name.startswith(config.metadata_prefix)]
        if not columns:
            raise DataError(
                f"{where}: no column begins with '{config.metadata_prefix}': declare metadata_columns or "
                f"metadata_prefix; {suggest(config.metadata_prefix, table.columns)}"
            )
    else:
        columns = [need_column(name, table.columns, "metadata", where) for name in config.metadata_columns]
    for name in config.rename:
        need_column(name, columns, "renamed metadata", where)
    metadata = table[columns].rename(columns=config.rename)
    twice = metadata.columns[metadata.columns.duplicated()]
    if len(twice):
        raise DataError(f"{where}: rename gives the name '{twice[0]}' to two metadata columns")
    for name, rules in config.replace.items():
        need_column(name, metadata.columns, "replace", where)
        for rule in rules:
            metadata[name] = replace_values(metadata[name], rule.values, rule.by, where)
    features = table.drop(columns=[*columns, *(name for name in config.ignore_columns if name not in columns)])
    wrong = [name for name in features.columns if not pd.api.types.is_numeric_dtype(features[name])]
    if wrong:
        values = features[wrong[0]]
        text = values[pd.to_numeric(values, errors="coerce").isna() & values.notna()]
        example = f" (first such value: {text.iloc[0]!r})" if len(text) else ""
        raise DataError(
            f"{where}: {len(wrong)} columns are neither metadata nor numeric, first '{wrong[0]}'{example}: list them "
            "in metadata_columns or ignore_columns"
        )
    if features.shape[1] == 0:
        raise DataError(f"{where}: no feature column is left beside {len(columns)} metadata columns")
    return metadata, features


def replace_values(values: pd.Series, old: list[Any], new: Any, where: str) -> pd.Series:
    """Replace recorded values that mean one thing; compare as text, so that 5 and 5.0 are one value.

    Raises
    ------
    DataError
        One of the values to be replaced never occurs, which is a misspelling.
    """
    text = schema.text_column(values)
    wanted = [schema.as_text(value) for value in old]
    for value in wanted:
        if value not in set(text):
            known = sorted({item for item in text if item is not None})
            raise DataError(f"{where}: replace: column '{values.name}' never holds {value}; {suggest(value, known)}")
    return values.where(~text.isin(wanted), new)


def sample_ids(config: Profiles | ImagesBase, metadata: pd.DataFrame, where: str) -> pd.Index:
    """Join the declared columns by ':', or number the rows."""
    import pandas as pd

    if config.sample_id is None:
        return pd.Index([str(row) for row in range(len(metadata))], name="sample_id")
    parts = []
    for name in config.sample_id:
        part = schema.text_column(metadata[need_column(name, metadata.columns, "sample_id", where)])
        if part.isna().any():
            raise DataError(f"{where}: sample_id column '{name}' is empty in {int(part.isna().sum())} rows")
        parts.append(part)
    return pd.Index([":".join(values) for values in zip(*parts)], name="sample_id")


def standardize(values: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardise by the mean and standard deviation of some rows; leave out features constant in them.

    Parameters
    ----------
    values
        n × p float64.
    rows
        bool per row: the controls of the training split.

    Returns
    -------
    values : numpy.ndarray
        n × p' float64.
    constant : numpy.ndarray
        bool per feature: the p − p' that were left out.
    """
    mean, deviation = values[rows].mean(0), values[rows].std(0)
    # A deviation that is rounding noise of the mean is none.
    constant = deviation <= 1e-12 * np.maximum(1, np.abs(mean))
    if constant.all():
        raise DataError(
            f"every feature is constant in the {int(rows.sum())} controls of the training split: "
            "use transform: none, or more controls"
        )
    if constant.any():
        logger.warning("%d features are constant in the training controls and were left out", int(constant.sum()))
    return (values[:, ~constant] - mean[~constant]) / deviation[~constant], constant
