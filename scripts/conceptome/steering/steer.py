"""Steering: edit the atoms of a class, decode, and measure how far samples move, against other atoms."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from conceptome.errors import ConfigError, DataError
from conceptome.measures.rows import choose_rows, class_name, described_label, seeded
from conceptome.measures.tables import assemble
from conceptome.statistics import RankedCodes, bootstrap_groups, group_codes, interval
from conceptome.steering.edits import edit, shift
from conceptome.steering.readouts import SHARE, Readout, Residues, choose_readout
from conceptome.steering.tables import TABLES

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from scipy import sparse

    from conceptome.config.models import Model
    from conceptome.config.steering import Steering
    from conceptome.dictionaries import Dictionary
    from conceptome.measures.space import Space

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Target:
    """A class, and what it is set against.

    Attributes
    ----------
    label, term
        Label and class; or annotation and concept.
    inside, outside
        Split → (n,) int64, samples of the class, and of the controls.
    """

    label: str
    term: str
    inside: dict[str, np.ndarray]
    outside: dict[str, np.ndarray]


def make_target(
    label: str, term: str, inside: np.ndarray, outside: np.ndarray, split: np.ndarray, config: Steering
) -> Target | None:
    """Seeded samples of a class and of its controls in every split, or None where there are too few.

    Parameters
    ----------
    inside, outside, split
        (N,) bool, bool, and split of every sample.
    """
    parts = {}
    for name, mask in (("inside", inside), ("outside", outside)):
        parts[name] = {
            part: choose_rows(
                mask & (split == part), config.max_rows, seeded(config.seed, "steering", term, name, part)
            )
            for part in SPLITS
        }
    few = [f"{name} {part}" for name, rows in parts.items() for part in SPLITS if len(rows[part]) < config.min_samples]
    if few:
        logger.warning("steering: %s %s is left out, too few samples: %s", label, term, ", ".join(few))
        return None
    return Target(label, term, **parts)


def label_targets(space: Space, config: Steering) -> list[Target]:
    """Classes of the configured labels against controls.

    Raises
    ------
    DataError
        A label is missing or numeric, a class does not occur, or there are no controls.
    """
    if config.labels and not space.control.any():
        raise DataError(
            "steering needs controls to move samples toward, and the data set has none: mend dataset.control"
        )
    targets = []
    for label, wanted in config.labels.items():
        described_label(space.obs, space.card, label)
        values = space.obs[label]
        names = np.array([class_name(value) if value == value and value is not None else "" for value in values])
        found = sorted(set(names[~space.control]) - {""})
        for term in found if wanted is None else wanted:
            if term not in found:
                raise DataError(
                    f"steering.labels: '{term}' is no class of {label} outside of the controls ({', '.join(found)})"
                )
            target = make_target(label, term, (names == term) & ~space.control, space.control, space.split, config)
            targets += [target] if target else []
    return targets


def concept_targets(space: Space, config: Steering) -> list[Target]:
    """Residues of the configured concepts against the other residues of the same proteins.

    Whole proteins have to be run, so that only `max_proteins` that carry a concept are taken for test, and four
    times as many for training; validation, which only chooses atoms, needs no run and takes all.

    Raises
    ------
    DataError
        A concept does not occur in every split.
    """
    from conceptome.measures.residue_concepts import choose_concepts

    concepts = choose_concepts(space.obs, space.dataset.annotations(), 1)
    proteins = space.obs["protein"].astype(str).to_numpy()
    targets = []
    for term in config.concepts:
        if term not in concepts.names:
            raise DataError(
                f"steering.concepts: '{term}' is annotated in no protein of one of the splits: name another"
            )
        column = concepts.names.index(term)
        inside, outside = np.zeros((2, len(space.obs)), dtype=bool)
        for split in SPLITS:
            part = concepts.parts[split]
            rows = part.rows[part.residues[:, [column]].tocoo().row]
            carriers = np.unique(proteins[rows])
            cap = {"train": 4 * config.max_proteins, "test": config.max_proteins}.get(split, len(carriers))
            rng = np.random.default_rng(seeded(config.seed, "steering", term, "proteins", split))
            chosen = carriers if len(carriers) <= cap else rng.choice(carriers, cap, replace=False)
            inside[rows] = np.isin(proteins[rows], chosen)
            outside[part.rows[np.isin(proteins[part.rows], chosen)]] = True
        outside &= ~inside
        target = make_target("concept", term, inside, outside, space.split, config)
        targets += [target] if target else []
    return targets


@dataclass(frozen=True)
class Axis:
    """From the mean of one population's readouts to another's, on training samples: direction (q,), float64."""

    direction: np.ndarray

    @classmethod
    def between(cls, start: np.ndarray, end: np.ndarray) -> Axis:
        """Take the means of (a, q) and (b, q) readouts."""
        return cls(end.mean(axis=0, dtype=np.float64) - start.mean(axis=0, dtype=np.float64))

    def share(self, change: np.ndarray) -> np.ndarray:
        """How much of the way each change (n, q) goes: ⟨change, a⟩ / ‖a‖², (n,) float64."""
        return change.astype(np.float64) @ self.direction / max(float(self.direction @ self.direction), 1e-300)

    def alignment(self, change: np.ndarray) -> float:
        """Cosine between the mean change (n, q) and the axis; NaN without any change."""
        mean = change.mean(axis=0, dtype=np.float64)
        length = np.linalg.norm(mean) * np.linalg.norm(self.direction)
        return float(mean @ self.direction / length) if length > 0 else float("nan")


def best_atoms(codes: sparse.csr_matrix, target: Target) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Atoms by their AUROC for the class against the controls on validation samples, best first.

    Codes may have signs, and an atom that is negative on controls and silent in the class has a large AUROC, but
    nothing in the class to take away. What counts is the better of the AUROCs of the positive part and of the
    negative part's size.

    Returns
    -------
    atoms, sign, auroc
        (a,) int64; +1 or −1, the part that counts; float64. Atoms that are silent on these samples are left out.
    """
    rows = np.concatenate([target.inside["validation"], target.outside["validation"]])
    truth = np.arange(len(rows)) < len(target.inside["validation"])
    part = codes[rows]
    alive = np.flatnonzero(np.diff(part.tocsc().indptr) > 0)
    part = part[:, alive]
    both = np.stack([RankedCodes(half).auroc(truth)[:, 0] for half in (part.maximum(0), (-part).maximum(0))])
    sign = np.where(both[1] > both[0], -1, 1)
    auroc = both.max(axis=0)
    order = np.argsort(-auroc, kind="stable")
    return alive[order], sign[order], auroc[order]


def levels(codes: sparse.csr_matrix, rows: np.ndarray, atoms: np.ndarray, sign: np.ndarray) -> np.ndarray:
    """Mean code of atoms (s,) on those of the samples `rows` where it has their sign (s,): (s,) float32, 0 for none."""
    own = np.maximum(codes[rows][:, atoms].toarray() * sign, 0)
    active = (own > 0).sum(axis=0)
    return sign * np.divide(own.sum(axis=0), active, out=np.zeros(len(atoms), dtype=np.float32), where=active > 0)


def stand_ins(
    atoms: np.ndarray, count: np.ndarray, draws: int, pool: int | None, rng: np.random.Generator
) -> np.ndarray:
    """Draw other atoms in the place of the edited ones, (draws, s) int64, none of them twice in a draw.

    Parameters
    ----------
    atoms
        (s,) the edited atoms.
    count
        (m,) training samples on which each atom is active; silent atoms are not drawn.
    pool
        Draw each from this many atoms of the nearest firing rate; None: from all.

    Raises
    ------
    DataError
        The dictionary has too few other atoms.
    """
    others = np.setdiff1d(np.flatnonzero(count > 0), atoms)
    if len(others) < len(atoms):
        raise DataError(
            f"steering: {len(others)} atoms that fire are left to compare {len(atoms)} edited ones with: lower "
            "steering.atoms"
        )
    if pool is None:
        return np.stack([rng.choice(others, len(atoms), replace=False) for _ in range(draws)])
    distance = np.abs(np.log(count[others])[None] - np.log(np.maximum(count[atoms], 1))[:, None])
    near = np.argsort(distance, axis=1, kind="stable")
    drawn = np.empty((draws, len(atoms)), dtype=np.int64)
    for draw in range(draws):
        taken: list[int] = []
        for place in range(len(atoms)):
            # Edited atoms of like rate share their neighbours: the pool widens by those that are taken.
            free = [other for other in others[near[place, : pool + len(taken)]] if other not in taken]
            taken.append(int(rng.choice(free)))
        drawn[draw] = taken
    return drawn


def plan(
    space: Space, config: Steering, model: Model | None = None, *, weights: Path | None = None, threads: int = 1
) -> list[tuple[Readout, list[Target]]]:
    """What is steered and where it is read: labels by `choose_readout`, concepts by the rest of ESM-2.

    Raises
    ------
    ConfigError
        Concepts without an ESM-2 model, or a motif without a language-model head in its checkpoint.
    DataError
        What `label_targets` and `concept_targets` refuse.
    """
    chosen: list[tuple[Readout, list[Target]]] = []
    if config.labels:
        chosen.append((choose_readout(space), label_targets(space, config)))
    if config.concepts:
        if model is None or model.adapter != "esm2":
            raise ConfigError(
                "steering.concepts needs activations of an esm2 model: take the concepts out of the study"
            )
        if model.site != "hidden" or model.pool != "tokens":
            raise ConfigError(
                "steering.concepts needs an esm2 model's hidden states of residues (site: hidden, pool: tokens): take "
                "the concepts out of the study, or that model"
            )
        from conceptome.models.esm2_checkpoint import find_weights
        from conceptome.models.esm2_continuation import Continuation

        folder = find_weights(model, weights)
        seed = model.seed if model.shuffle_weights else None
        continuation = Continuation(folder, model.layer, shuffle_seed=seed, threads=threads)
        targets = concept_targets(space, config)
        chosen.append((Residues(space, continuation), targets))
        if config.motifs and not continuation.has_head:
            raise ConfigError(
                f"steering.motifs: the checkpoint {folder.name} has no language-model head (lm_head): take the motifs "
                "out of the study, or give a checkpoint with one"
            )
        for concept, letters in config.motifs.items():
            own = [target for target in targets if target.term == concept]
            chosen.append((Residues(space, continuation, letters), own))
    return chosen


def steer(
    space: Space, config: Steering, model: Model | None = None, *, weights: Path | None = None, threads: int = 1
) -> dict[str, pd.DataFrame]:
    """Steer a space: see `measure` for what is measured, and `plan` for what is steered.

    Parameters
    ----------
    model
        The study's entry of the model, which steering of concepts needs.
    weights
        Folder of its checkpoint.

    Returns
    -------
    dict
        `tables.TABLES`.
    """
    frames = [
        frame
        for readout, targets in plan(space, config, model, weights=weights, threads=threads)
        for frame in measure(space, config, readout, targets)
    ]
    return {"steering": assemble("steering", TABLES["steering"], frames, space.place)}


def headline(tables: dict[str, pd.DataFrame]) -> dict[str, float]:
    """Summarise, averaged over seeds: 'dictionary/readout/term/edit' → effect of the fewest atoms edited."""
    frame = tables["steering"]
    single = frame[frame["n_atoms"] == frame["n_atoms"].min()]
    means = single.groupby(["dictionary", "readout", "term", "edit"])["effect"].mean()
    return {"/".join(key): float(value) for key, value in means.items()}


def measure(space: Space, config: Steering, readout: Readout, targets: list[Target]) -> list[pd.DataFrame]:
    """Edit, decode and measure, for every fit, target, edit, strength and number of atoms.

    effect: mean over test samples of ⟨f(x′) − f(x), a⟩ / ‖a‖², the share of the way that they move along the axis a
    from the mean readout of the edited population to that of the other, both of training samples: 1 is all of the way.
    Ablating starts from the class and heads for the controls; clamping and adding start from the controls and head for
    the class. For log-odds the effect is their mean change itself.

    null, matched: the same with other atoms of the dictionary in the place of the edited ones, each sample shifted
    by the same length: atoms drawn at random, and atoms of a similar firing rate. p = (1 + draws with at least the
    effect) / (1 + draws).

    Parameters
    ----------
    readout, targets
        Where samples are read, and which classes are steered.

    Returns
    -------
    list of pandas.DataFrame
        Columns of `tables.TABLES`, without those of the place: one frame per fit.

    Raises
    ------
    DataError
        Nothing can be steered: no class has enough samples.
    """
    import pandas as pd

    if not targets:
        raise DataError(
            f"steering: no class has {config.min_samples} samples, and as many controls, in every split: lower "
            "steering.min_samples, or take the section steering out of the study"
        )
    axes = {}
    for target in targets:
        inside, outside = (readout.read(rows["train"]) for rows in (target.inside, target.outside))
        axes[target.label, target.term] = Axis.between(inside, outside)
    before: dict[tuple[str, str, str], np.ndarray] = {}
    frames = []
    for name, seed, dictionary, codes in space.each_fit():
        if config.dictionaries is not None and name not in config.dictionaries:
            continue
        count = np.diff(codes[np.flatnonzero(space.split == "train")].tocsc().indptr)
        rows = []
        for target in targets:
            atoms, sign, auroc = best_atoms(codes, target)
            for kind in config.edits:
                key = (target.label, target.term, "inside" if kind == "ablate" else "outside")
                samples = getattr(target, key[2])["test"]
                if key not in before:
                    before[key] = readout.read(samples)
                for size in config.atoms:
                    if size > len(atoms):
                        continue
                    for strength in config.strengths:
                        found = _measure(
                            space, readout, dictionary, codes, count, target, axes[key[:2]], before[key], samples,
                            atoms[:size], sign[:size], kind, strength, config, seeded(config.seed, name, seed, *key,
                            kind, size),
                        )  # fmt: skip
                        rows.append(found | {"auroc_validation": float(auroc[:size].mean())})
        frames.append(pd.DataFrame(rows).assign(dictionary=name, method=space.methods[name], seed=seed))
    return frames


def _measure(
    space: Space,
    readout: Readout,
    dictionary: Dictionary,
    codes: sparse.csr_matrix,
    count: np.ndarray,
    target: Target,
    axis: Axis,
    before: np.ndarray,
    samples: np.ndarray,
    atoms: np.ndarray,
    sign: np.ndarray,
    kind: str,
    strength: float,
    config: Steering,
    seed: list[int],
) -> dict:
    """One row of the table: one set of atoms, one edit."""
    # Ablating moves the class to the controls; the other edits go the other way.
    axis = axis if kind == "ablate" else Axis(-axis.direction)
    values = codes[samples][:, atoms].toarray()
    change = edit(values, kind, strength, levels(codes, target.inside["train"], atoms, sign))
    moved = shift(change, dictionary.atoms[atoms])
    norms = np.linalg.norm(moved, axis=1)

    def effect(delta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        changed = readout.read(samples, delta) - before
        share = axis.share(changed) if readout.unit == SHARE else changed @ np.sign(axis.direction)
        return share, changed

    found, changed = effect(moved)
    group, names = group_codes(space.groups[samples])
    sums = np.bincount(group, weights=found, minlength=len(names))
    sizes = np.bincount(group, minlength=len(names))
    draws = bootstrap_groups(space.groups[samples], config.bootstraps, seed)
    low, high = interval((draws @ sums) / (draws @ sizes), config.confidence)
    row = {
        "readout": readout.name,
        "label": target.label,
        "term": target.term,
        "edit": kind,
        "strength": float(strength),
        "n_atoms": len(atoms),
        "atoms": json.dumps([int(atom) for atom in atoms]),
        "effect": float(found.mean()),
        "low": float(low),
        "high": float(high),
        "alignment": axis.alignment(changed),
        "unit": readout.unit,
        "edit_norm": float(norms.mean()),
        "edited": float((norms > 0).mean()),
        "n_groups": len(names),
        "n": len(samples),
        "split": "test",
    }
    rng = np.random.default_rng([*seed, 1])
    for prefix, p_name, pool in (("null", "p", None), ("matched", "matched_p", config.matched)):
        drawn = stand_ins(atoms, count, config.null_draws, pool, rng)
        reached = np.array([effect(shift(change, dictionary.atoms[other], norms))[0].mean() for other in drawn])
        ends = interval(reached, config.confidence)
        row |= {prefix: float(reached.mean()), f"{prefix}_low": float(ends[0]), f"{prefix}_high": float(ends[1])}
        row[p_name] = float((1 + (reached >= found.mean()).sum()) / (1 + len(reached)))
    return row
