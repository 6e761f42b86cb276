"""What a published study shows, and where this run's counterpart of each of its numbers stands."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from conceptome.config.base import Strict

Status = Literal["reproduced", "proxy", "impossible"]


class Quantity(Strict):
    """A number of this run: rows of one evidence table, taken together within a seed and then over seeds."""

    study: str | None = Field(None, description="the study that holds the table; null: this one")
    table: str = Field(description="evidence table")
    where: dict[str, str | int | float | bool] = Field(
        {}, description="column → value of the rows meant: model, whitening, dictionary, label …"
    )
    column: str = Field(description="column that holds the value")
    low: str | None = Field("low", description="column of the interval's lower bound; null: the range of the seeds")
    high: str | None = Field("high", description="column of the interval's upper bound; null: the range of the seeds")
    against: str | Quantity | None = Field(
        "null", description="column of the null's value, or a quantity that is the null; null: this is one itself"
    )
    n: str | None = Field("n", description="column of the number of samples; null: the number of rows")
    rows: Literal["mean", "median", "max", "min", "sum", "count", "distinct"] = Field(
        "mean",
        description="the rows of one seed become one number by this; count: of the rows above `above` "
        "(interval: rows whose lower, and whose upper, bound is above it); distinct: number of different values",
    )
    above: float | None = Field(None, description="count: the value that a counted row exceeds")
    share: bool = Field(False, description="count: divide by the number of rows")
    scale: float = Field(1.0, description="factor to the unit of the paper, e.g. 100 for percent")

    @model_validator(mode="after")
    def _count_has_a_bound(self) -> Quantity:
        if (self.rows == "count") != (self.above is not None):
            raise ValueError("'rows: count' and 'above' go together: give both or neither")
        if self.share and self.rows != "count":
            raise ValueError("'share' divides a count: it needs 'rows: count'")
        return self


def _has_null(quantity: Quantity) -> Quantity:
    if quantity.against is None:
        raise ValueError("every number has its null: give 'against', a column or another quantity")
    return quantity


class Number(Strict):
    """A number of the paper beside this run's."""

    quantity: str = Field(description="what is counted or measured, with its unit")
    paper: float | None = Field(None, description="the paper's value; null: it is only drawn there, or not given")
    paper_text: str | None = Field(None, description="the paper's value where it is no single number")
    ours: Annotated[Quantity, AfterValidator(_has_null)] = Field(description="where this run's value stands")
    digits: int = Field(2, ge=0, le=6, description="decimals to print")


class Item(Strict):
    """A figure or table of the paper."""

    item: str = Field(description="which figure or table")
    shows: str = Field(description="what it shows")
    status: Status = Field(description="reproduced; proxy: on public data or a public model in its stead; impossible")
    because: str = Field(description="what stands in for what, why it is impossible, or what the reproduction rests on")
    figure: str | None = Field(None, description="the figure of this run that shows the same")
    numbers: list[Number] = Field([], description="the paper's numbers beside this run's")

    @model_validator(mode="after")
    def _shown(self) -> Item:
        if self.status == "impossible" and (self.numbers or self.figure):
            raise ValueError("an impossible item has neither numbers nor a figure: say proxy")
        if self.status != "impossible" and not (self.numbers or self.figure):
            raise ValueError("give the numbers or the figure in which it is regenerated, or say impossible")
        return self


class Correction(Strict):
    """A flaw of the original, and what its correction does to the numbers."""

    flaw: str = Field(description="what the original does, and where")
    correction: str = Field(description="what is done here instead")
    original: Annotated[Quantity, AfterValidator(_has_null)] | None = Field(
        None, description="this run's number with the flaw"
    )
    corrected: Annotated[Quantity, AfterValidator(_has_null)] | None = Field(
        None, description="the same number without it"
    )
    digits: int = Field(2, ge=0, le=6, description="decimals to print")


class Paper(Strict):
    """A published study: its figures and tables, each with what this run makes of it."""

    title: str = Field(description="title")
    authors: str = Field(description="authors")
    reference: str = Field(description="where it appeared, with an identifier")
    about: str = Field(description="what the paper claims, and what this study does about it")
    original: str = Field(description="how to run the original setting: data, weights and the keys to set")
    items: list[Item] = Field(min_length=1, description="every figure and table")
    corrections: list[Correction] = Field([], description="known flaws of the original, corrected here")
