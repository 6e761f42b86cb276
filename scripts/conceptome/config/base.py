"""The strict base model and the one-line rendering of validation errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from conceptome.errors import ConfigError

M = TypeVar("M", bound=BaseModel)


class Strict(BaseModel):
    """A frozen model that refuses unknown keys and does not coerce types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Evidence(Strict):
    """Keys that measures and enrichments share."""

    bootstraps: int = Field(200, gt=0, description="bootstrap draws (by group) behind every interval")
    permutations: int = Field(50, gt=0, description="permuted labels, or shifted annotations, behind each null")
    confidence: float = Field(0.95, gt=0, lt=1, description="coverage of intervals")
    seed: int = Field(0, description="of bootstraps, permutations and subsamples")
    dense_active: int = Field(
        32,
        gt=0,
        description="where every code is non-zero (PCA, ICA, neurons), an atom counts as active in its two tails, cut "
        "so that about this many atoms are active per sample",
    )


class ConceptLimits(Evidence):
    """Keys that decide which known concepts stay: shared by the measures of agreement with them."""

    residues: bool = Field(False, description="proteins: annotation types and type|note of residues are concepts")
    min_proteins: int = Field(3, gt=0, description="proteins with a residue concept in EACH of train, validation, test")
    max_rows: int = Field(20_000, gt=0, description="seeded samples per source of concepts")
    min_groups_per_class: int = Field(6, gt=0, description="a class on fewer groups is left out and listed")
    min_test_groups_per_class: int = Field(3, gt=0, description="a class on fewer test groups is left out and listed")
    min_positives: int = Field(
        5, gt=0, description="a concept that fewer samples of a split have, or have not, is left out and listed"
    )
    max_concepts: int = Field(
        40, gt=0, description="concepts per source; those that fewer training samples have are left out and listed"
    )


class ConceptSources(ConceptLimits):
    """Keys that say where known concepts come from."""

    labels: list[str] = Field([], description="label columns: each class against the others is a concept")
    hidden: bool = Field(False, description="simulated data: each hidden variable, binarised, is a concept")
    hidden_quantile: float = Field(
        0.8,
        gt=0,
        lt=1,
        description="a hidden variable with more than two values is present above this quantile of training samples",
    )


def _known_keys(model: type[BaseModel], location: tuple, value: object) -> Iterable[str]:
    """Collect the field names of every model reachable from `model`: candidates for a did-you-mean."""
    seen: set[type] = set()
    stack: list[object] = [model]
    names: set[str] = set()
    while stack:
        item = stack.pop()
        if isinstance(item, type) and issubclass(item, BaseModel):
            if item in seen:
                continue
            seen.add(item)
            for name, field in item.model_fields.items():
                names.add(name)
                stack.append(field.annotation)
        else:
            stack.extend(getattr(item, "__args__", ()))
            origin = getattr(item, "__origin__", None)
            if isinstance(origin, type):
                stack.append(origin)
    return names


def explain(error: ValidationError, model: type[BaseModel], where: str) -> ConfigError:
    """Turn pydantic's first complaint into one line: where, what, how to mend it."""
    first = error.errors()[0]
    location = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        # A key of the same level is likelier meant than one of the same spelling elsewhere.
        near = model.model_fields if len(first["loc"]) == 1 else ()
        known = _known_keys(model, first["loc"], first["input"])
        close = difflib.get_close_matches(key, near, n=1) or difflib.get_close_matches(key, sorted(known), n=1)
        hint = f"; did you mean '{close[0]}'?" if close else "; config/README.md lists the keys"
        return ConfigError(f"{where}: unknown key '{location}'{hint}")
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    shown = "" if isinstance(given, dict | list) or first["type"] == "missing" else f" (given: {given!r})"
    more = f"; {error.error_count() - 1} more" if error.error_count() > 1 else ""
    return ConfigError(f"{where}: '{location}': {message}{shown}{more}")


def validate(model: type[M], values: object, where: str) -> M:
    """Validate `values` as `model`.

    Raises
    ------
    ConfigError
        One line naming the file or section `where`, the key, and what is wrong with it.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise explain(error, model, where) from None


def rebuild(section: Any, values: Mapping[str, Any]) -> Any:
    """Rebuild one validated section (a model, or a union of models) from the plain values in a rule's params."""
    return TypeAdapter(section).validate_python(values, strict=False)
