"""Sentences that every caption needs, computed from the cards: intervals, stand-ins, simulated data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from conceptome.config.evidence import Enrichment, Measures
from conceptome.config.explanations import Explanations
from conceptome.config.steering import Steering
from conceptome.figures.panels import is_null_model, stand_in

if TYPE_CHECKING:
    import pandas as pd


def settings(card: Mapping[str, Any], section: str) -> Measures | Enrichment | Explanations | Steering:
    """Return the settings under which a data set's tables were made: `section` is a section of the study."""
    kind = {"measures": Measures, "enrichment": Enrichment, "explanations": Explanations, "steering": Steering}[section]
    return kind.model_validate(card.get("study", {}).get(section) or {})


def number(value: float, digits: int = 2) -> str:
    """Print a number the same way everywhere; an undefined one as n/a."""
    return "n/a" if value != value else f"{value:.{digits}f}"


def count(value: float) -> str:
    """Print a count, thousands separated."""
    return f"{int(value):,}"


def several(parts: Iterable[str]) -> str:
    """Join with semicolons."""
    return "; ".join(parts)


def span(values: Sequence[float]) -> str:
    """One number, or lowest–highest."""
    low, high = count(min(values)), count(max(values))
    return low if low == high else f"{low}–{high}"


def interval(cards: Mapping[str, Mapping[str, Any]], datasets: Sequence[str], section: str = "measures") -> str:
    """Say what the intervals are: confidence, resampled unit, level, draws."""
    parts = []
    for dataset in datasets:
        card = cards[dataset]
        chosen = settings(card, section)
        unit = card.get("group_is", "group")
        level = card.get("interval_level", f"{unit}-level")
        parts.append(
            f"{dataset} {100 * chosen.confidence:g} %, {level} (bootstrap by {unit}, {chosen.bootstraps} draws)"
        )
    return "Intervals: " + several(parts) + "."


def seeds_sentence(n_seeds: int) -> str:
    """Say how seeds enter."""
    if n_seeds <= 1:
        return "One seed: the spread over seeds is not shown."
    return (
        f"Values are means over {n_seeds} seeds where a method has a seed; a bar or band reaches from the lowest "
        "lower to "
        "the highest upper bound over seeds."
    )


def warnings(
    cards: Mapping[str, Mapping[str, Any]], datasets: Sequence[str], models: Iterable[tuple[str, str]]
) -> list[str]:
    """Warn as the cards do: simulated data, stand-in checkpoints (†)."""
    sentences = []
    simulated = [dataset for dataset in datasets if cards[dataset].get("simulated")]
    if simulated:
        sentences.append(f"SIMULATED data, not measurements: {', '.join(simulated)}.")
    told: dict[str, list[str]] = {}
    for dataset, model in models:
        text = stand_in(cards[dataset], model)
        if text and not is_null_model(cards[dataset], model):
            told.setdefault(text, []).append(f"{dataset}/{model}")
    sentences += [f"† STAND-IN checkpoint ({', '.join(names)}): {text}." for text, names in told.items()]
    return sentences


def notes(cards: Mapping[str, Mapping[str, Any]], datasets: Sequence[str]) -> list[str]:
    """Give the cards' own notes: what a reader must know of each data set before trusting a label or a control."""
    sentences = []
    for dataset in datasets:
        card = cards[dataset]
        parts = [f"controls are {str(card['control_is']).rstrip('.')}"] if card.get("control_is") else []
        parts += [str(note).rstrip(".") for note in card.get("notes", [])]
        if parts:
            sentences.append(f"{dataset}: {'. '.join(parts)}.")
    return ["Notes. " + " ".join(sentences)] if sentences else []


def left_out(all_models: Mapping[str, Sequence[str]], drawn: Iterable[tuple[str, str]]) -> str | None:
    """Name the models that were measured but have no panel."""
    drawn = set(drawn)
    rest = [f"{data}/{model}" for data, names in all_models.items() for model in names if (data, model) not in drawn]
    return f"Measured too, in the evidence tables, not drawn here: {', '.join(rest)}." if rest else None


def baselines(
    cards: Mapping[str, Mapping[str, Any]], frame: pd.DataFrame, value: str, by: Sequence[str], neutral: float = 0.0
) -> list[str]:
    """Give the best atom of each baseline model, so that no number stands without it.

    Parameters
    ----------
    frame
        The evidence table over all models: dataset, model, `value` and the columns `by`; low, high, null_effect and
        null_auroc (the null's most extreme value) are told where it has them.
    by
        Columns whose values each have a best atom (label, class).
    neutral
        Value that says nothing: the best is farthest from it.
    """
    told = []
    for dataset in dict.fromkeys(frame["dataset"]):
        for model in cards[dataset].get("study", {}).get("baselines", {}):
            rows = frame[(frame["dataset"] == dataset) & (frame["model"] == model)].dropna(subset=[value])
            if rows.empty:
                continue
            rows = rows.assign(distance=(rows[value] - neutral).abs()).sort_values("distance", ascending=False)
            best = rows.drop_duplicates(list(by)).sort_values(list(by), kind="stable")
            parts = []
            for _, row in best.iterrows():
                beside = [f"{number(row['low'])} to {number(row['high'])}"] if {"low", "high"} <= set(row.index) else []
                beside += [f"null {number(row[name])}" for name in ("null_effect", "null_auroc") if name in row.index]
                shown = f" ({'; '.join(beside)})" if beside else ""
                parts.append(f"{' '.join(str(row[name]) for name in by)} {number(row[value])}{shown}")
            told.append(f"{dataset}/{model} {', '.join(parts)}")
    return [f"Baseline models, not drawn, best atom or feature (n as above): {several(told)}."] if told else []


def further(card: Mapping[str, Any], name: str) -> Any:
    """Return the settings of a further measure under which a data set's tables were made; its defaults if unknown."""
    found = getattr(settings(card, "measures"), name)
    if found is not None:
        return found
    annotation = Measures.model_fields[name].annotation
    kind = next(kind for kind in annotation.__args__ if kind is not type(None))
    # Without validation: what a section requires (which label) is no setting that a caption tells.
    return kind.model_construct()


def further_interval(
    cards: Mapping[str, Mapping[str, Any]], datasets: Sequence[str], name: str, how: str = "jackknife"
) -> str:
    """Say what the intervals of a further measure are: confidence, level, jackknife (folds) or bootstrap (draws)."""
    parts = []
    for dataset in datasets:
        card, chosen = cards[dataset], further(cards[dataset], name)
        unit = card.get("group_is", "group")
        level = card.get("interval_level", f"{unit}-level")
        number = f"{chosen.folds} folds" if how == "jackknife" else f"{chosen.bootstraps} draws"
        parts.append(f"{dataset} {100 * chosen.confidence:g} %, {level} ({how} by {unit}, {number})")
    return "Intervals: " + several(parts) + "."
