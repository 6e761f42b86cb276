"""The whole configuration of a run: studies, seeds, threads; loading and merging the YAML files."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from conceptome.config.base import Strict, validate
from conceptome.config.datasets import Dataset
from conceptome.config.dictionaries import OPTIONS, Dictionary
from conceptome.config.evidence import FIGURES, Enrichment, FigureName, Measures
from conceptome.config.explanations import Explanations
from conceptome.config.factorial import Factorial
from conceptome.config.models import Model, Whitening
from conceptome.config.papers import Paper
from conceptome.config.steering import Steering
from conceptome.errors import ConfigError

# Below this the moments of a trend's permutation null are no basis for a p value.
FEWEST_PERMUTATIONS = 10
# Sections of a study whose entries an overlay removes by null.
REMOVABLE = ("models", "null_models", "baselines", "whitenings", "dictionaries")


class NullModel(Strict):
    """A model that serves only as a null: which whitenings and dictionaries it is taken through."""

    whitenings: list[str] = Field(min_length=1, description="whitenings that the null model is taken through")
    dictionaries: list[str] = Field(min_length=1, description="dictionaries that are learned on it")


class Baseline(Strict):
    """A model with full evidence that is taken through some whitenings and dictionaries only."""

    whitenings: list[str] = Field(min_length=1, description="whitenings that the baseline is taken through")
    dictionaries: list[str] = Field(min_length=1, description="dictionaries that are learned on it")


class Study(Strict):
    """One data set with its models, whitenings, dictionaries and evidence: one file in config/studies/."""

    extends: str | None = Field(
        None,
        description="another study, over which this file is laid: what both have in common is computed once",
    )
    dataset: Dataset = Field(description="what is read, and what its columns mean")
    models: dict[str, Model] = Field(description="name → model")
    null_models: dict[str, NullModel] = Field({}, description="models that serve only as a null, e.g. shuffled weights")
    baselines: dict[str, Baseline] = Field(
        {}, description="models that others are compared with, taken through some whitenings and dictionaries only"
    )
    whitenings: dict[str, Whitening] = Field(description="name → whitening")
    dictionaries: dict[str, Dictionary] = Field(description="name → dictionary")
    measures: Measures = Field(Measures(), description="which measures run")
    enrichment: Enrichment = Field(Enrichment(), description="which enrichments run")
    paper: Paper | None = Field(None, description="the published study that this one regenerates")
    explanations: Explanations | None = Field(
        None, description="cards of atoms, and how well their descriptions predict; null: none"
    )
    steering: Steering | None = Field(None, description="atoms edited and decoded; null: none")

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        for kind, narrowed in (("null_models", self.null_models), ("baselines", self.baselines)):
            for key, chosen in narrowed.items():
                if key not in self.models:
                    raise ValueError(f"{kind} names '{key}', which is not among models")
                for section, names in (("whitenings", chosen.whitenings), ("dictionaries", chosen.dictionaries)):
                    for name in names:
                        if name not in getattr(self, section):
                            raise ValueError(f"{kind}.{key}.{section} names '{name}', which is not among {section}")
        for key in set(self.null_models) & set(self.baselines):
            raise ValueError(f"model '{key}' is under null_models and under baselines: choose one")
        declared = set(self.dataset.labels)
        planes, crystals = self.measures.multidimensional, self.measures.crystals
        doses, galleries = self.measures.dose_curves, self.measures.galleries
        for section, columns in (
            ("measures.selectivity", self.measures.selectivity),
            ("measures.probes", self.measures.probes),
            ("enrichment.labels", self.enrichment.labels),
            ("measures.multidimensional.labels", planes.labels if planes else []),
            ("measures.crystals.pairs", [name for pair in crystals.pairs for name in pair] if crystals else []),
            ("measures.dose_curves.label", [doses.label] if doses else []),
            ("measures.galleries.label", [galleries.label] if galleries else []),
            ("explanations.labels", (self.explanations and self.explanations.labels) or []),
            ("steering.labels", list(self.steering.labels) if self.steering else []),
        ):
            for column in columns:
                if column not in declared:
                    known = ", ".join(sorted(declared)) or "none"
                    raise ValueError(
                        f"{section} names label '{column}', which dataset.labels does not declare ({known})"
                    )
        trends = [label for label in self.enrichment.labels if self.dataset.labels[label].kind == "ordinal"]
        if trends and self.enrichment.permutations < FEWEST_PERMUTATIONS:
            raise ValueError(
                f"enrichment.permutations must be at least {FEWEST_PERMUTATIONS}, since label '{trends[0]}' is ordinal "
                f"and its p values rest on them (given: {self.enrichment.permutations})"
            )
        if self.steering and not (self.steering.labels or self.steering.concepts):
            raise ValueError("steering names nothing to steer: give labels, or concepts of proteins")
        for section, chosen in (
            ("enrichment", self.enrichment),
            ("measures.multidimensional", planes),
            ("measures.lobes", self.measures.lobes),
            ("measures.galleries", galleries),
            ("explanations", self.explanations),
            ("steering", self.steering),
        ):
            for key in (chosen.dictionaries if chosen else None) or []:
                if key not in self.dictionaries:
                    raise ValueError(f"{section}.dictionaries names '{key}', which is not among dictionaries")
        return self


class Run(Strict):
    """A run: which studies, with which seeds, drawn as which figures."""

    name: str = Field("default", description="of the run, and of the folder of its figures")
    results: str = Field("results", description="folder of every output")
    studies: list[str] = Field(min_length=1, description="names of files in config/studies")
    seeds: list[int] = Field([0, 1, 2], min_length=1, description="each dictionary is fitted with each of them")
    threads: int = Field(1, gt=0, description="threads per job; bytes may differ between thread counts")
    scatter: int = Field(
        1, gt=0, description="jobs that embedding a data set is cut into, by models that are not fitted on it"
    )
    figures: list[FigureName] = Field(list(FIGURES), description="figures to draw")
    factorial: Factorial | None = Field(None, description="the factorial study; null: none")
    dpi: int = Field(200, gt=0, description="of the PNG files")
    signing_key: str | None = Field(
        None, description="private key that signs the ledger (`conceptome key new FILE`); outside the repository"
    )


class Config(Strict):
    """A validated configuration."""

    run: Run
    studies: dict[str, Study]
    bases: dict[str, Study] = Field({}, description="studies that others extend and that the run itself leaves out")


def _check_factorial(run: Run, studies: Mapping[str, Study]) -> None:
    """Refuse a factorial study that names what its studies do not hold, or keys that a method does not take.

    Raises
    ------
    ConfigError
        One line: which key, what is wrong.
    """
    factorial = run.factorial
    for name, setting in factorial.studies.items() if factorial else ():
        where = f"configuration: factorial.studies.{name}"
        if name not in studies:
            # As with `override`: the run's studies may have been narrowed.
            continue
        study = studies[name]
        if setting.model not in study.models:
            raise ConfigError(f"{where}.model: the study has no model '{setting.model}'")
        for whitening, own in setting.whitenings.items():
            if study.whitenings.get(whitening, own) != own:
                raise ConfigError(f"{where}.whitenings: the study's own '{whitening}' is another: take another name")
        for whitening in factorial.whitenings:
            if whitening not in study.whitenings | setting.whitenings:
                raise ConfigError(f"configuration: factorial.whitenings: study '{name}' has no whitening '{whitening}'")
        for label in setting.labels:
            if label not in study.dataset.labels:
                raise ConfigError(f"{where}.labels: dataset.labels does not declare '{label}'")
        for method in (*factorial.dictionaries, *factorial.remaining):
            validate(OPTIONS[method], factorial.dictionary(name, method), f"{where}, method '{method}'")


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Overlay one mapping on another: mappings merge key by key, everything else (lists too) is replaced.

    An overlay value of None under `models`, `null_models`, `baselines`, `whitenings` or `dictionaries` removes that
    entry.
    """
    merged = copy.deepcopy(dict(base))
    for key, value in overlay.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises
    ------
    ConfigError
        The file is missing, is not YAML, or holds no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping (key: value lines)")
    return values


def resolve(values: Mapping[str, Any], folder: Path) -> Config:
    """Validate run-level `values` and the study files in `folder`/studies that they name.

    Parameters
    ----------
    values
        The run's keys, and optionally `override`: study name → keys laid over that study's file.
    folder
        The folder that holds `studies/`.

    Raises
    ------
    ConfigError
        One line: which file or section, which key, what is wrong.
    """
    values = dict(values)
    override = values.pop("override", None) or {}
    run = validate(Run, values, "configuration")
    for name in override:
        # An overlay for a study that this run leaves out is no mistake: `studies` may have been narrowed.
        if name not in run.studies and not (folder / "studies" / f"{name}.yaml").exists():
            raise ConfigError(f"configuration: override names study '{name}', which config/studies does not hold")
    found: dict[str, Study] = {}

    def content(name: str, below: tuple[str, ...]) -> dict[str, Any]:
        """Read a study's file, laid over the studies that it extends, and validate it once."""
        path = folder / "studies" / f"{name}.yaml"
        if not path.exists():
            known = ", ".join(sorted(item.stem for item in (folder / "studies").glob("*.yaml")))
            asks = f"study '{below[-1]}' extends '{name}', which" if below else f"study '{name}'"
            raise ConfigError(f"configuration: {asks} has no file {path} (known studies: {known})")
        if name in below:
            raise ConfigError(f"configuration: studies extend each other in a circle ({' → '.join((*below, name))})")
        values = read_yaml(path)
        if isinstance(values.get("extends"), str):
            base = content(values["extends"], (*below, name))
            # A paper belongs to the one study that regenerates it.
            values = merge({key: value for key, value in base.items() if key != "paper"}, values)
        values = merge(values, override.get(name, {}))
        if name not in found:
            found[name] = validate(Study, _without_nulls(values), f"study {name} ({path})")
        return values

    for name in run.studies:
        content(name, ())
    studies = {name: found.pop(name) for name in run.studies}
    _check_factorial(run, studies)
    return Config(run=run, studies=studies, bases=found)


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the models, null models, whitenings and dictionaries that are set to null."""
    return {
        section: {key: value for key, value in entries.items() if value is not None}
        if section in REMOVABLE and isinstance(entries, dict)
        else entries
        for section, entries in values.items()
    }


def load(paths: list[Path], folder: Path, **overrides: Any) -> Config:
    """Merge the YAML files `paths` in order, then `overrides`, and `resolve` the result."""
    values: dict[str, Any] = {}
    for path in paths:
        values = merge(values, read_yaml(path))
    return resolve(merge(values, overrides), folder)
