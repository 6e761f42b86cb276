import numpy as np
import pandas as pd
import pytest
from planted_space import plain_space

from conceptome.config.further import Crystals
from conceptome.errors import DataError
from conceptome.measures.crystals import (
    PROJECTIONS,
    SHAPES,
    Atoms,
    Grid,
    discriminant,
    grid,
    held_out_silhouette,
    measure,
)

CONFIG = Crystals(pairs=[["dose", "kind"]], permutations=40, bootstraps=20)
LABELS = {"dose": {"kind": "ordinal"}, "kind": {"kind": "categorical"}, "size": {"kind": "numeric"}}
DOSES, KINDS, EACH, D = 3, 12, 15, 10


def planted(seed=0, distractor=4.0, parallel=True):
    """Samples of 3 doses × 12 kinds: each dose adds its own vector, and a distractor that depends on the kind."""
    rng = np.random.default_rng(seed)
    dose, kind = (each.ravel() for each in np.meshgrid(np.arange(DOSES), np.arange(KINDS), indexing="ij"))
    base = 3 * rng.normal(size=(KINDS, D))
    effect = np.zeros((DOSES, D))
    effect[:, :3] = rng.normal(size=(DOSES, 3)) * 1.5
    shared = effect[dose] if parallel else rng.normal(size=(DOSES * KINDS, D))
    # Along two directions every kind moves in its own way: length differs, and so hides what is common.
    away = np.zeros((DOSES * KINDS, D))
    away[:, 8:] = distractor * rng.normal(size=(DOSES * KINDS, 2))
    centre = base[kind] + shared + away
    x = np.repeat(centre, EACH, axis=0) + 0.3 * rng.normal(size=(len(centre) * EACH, D))
    columns = {"dose": np.repeat(dose, EACH), "kind": np.repeat([f"k{i}" for i in kind], EACH), "size": 1.0}
    return plain_space(x, columns=columns, labels=LABELS)


def found(space, config=CONFIG):
    table = measure(space, config)["crystals"][0]
    return table[table["shape"] == "parallelogram"].set_index("projection")


def test_parallelograms_with_a_distractor_are_seen_only_after_the_projection():
    table = found(planted())
    assert table.loc["none", "silhouette"] < 0.25
    assert table.loc["LDA", "silhouette"] > 0.45
    assert table.loc["LDA", "low"] > table.loc["LDA", "null_high"]
    assert table.loc["LDA", "p"] == pytest.approx(1 / 41)
    assert (table["n_relations"] == 3).all()
    assert (table["n_steps"] == 36).all()
    clean = found(planted(distractor=0.1))
    assert clean.loc["none", "silhouette"] > 0.5


def test_without_parallelograms_nothing_is_found_even_after_the_projection():
    high = 0
    for seed in range(4):
        table = found(planted(seed, parallel=False))
        assert table.loc["LDA", "silhouette"] < 0.3
        high += table.loc["LDA", "p"] < 0.05
    assert high <= 1


def test_one_step_is_compared_with_its_reverse():
    space = planted(distractor=0.3)
    space.obs["dose"] = space.obs["dose"].where(space.obs["dose"] < 2)
    table = found(space)
    assert (table["n_relations"] == 2).all()
    assert table.loc["LDA", "silhouette"] > 0.5
    assert table.loc["LDA", "p"] < 0.05


def test_few_pairings_are_all_tried_once_without_the_true_one():
    filled = np.ones((2, 5), dtype=bool)
    filled[1, 2] = False
    layout = Grid(np.zeros(1, dtype=np.int64), filled, np.array([[0, 1], [1, 0]]), ["a", "b"], list("vwxyz"))
    pairings = layout.pairings(50, np.random.default_rng(0))
    assert len(pairings) == 7
    assert len({each.tobytes() for each in pairings}) == 7
    assert all((each[:, 2] == [0, 1]).all() for each in pairings)
    assert all((each[0] != 0).any() for each in pairings)
    assert len(layout.pairings(5, np.random.default_rng(0))) == 5


def test_the_projection_does_not_see_what_it_is_judged_by():
    # Fewer steps than dimensions: fitted on all of them, LDA would separate pure noise perfectly.
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(20, 60))
    relation, column = np.arange(20) % 2, np.arange(20) // 2
    turn = discriminant(vectors, relation, 0.0)
    centre = [(vectors @ turn)[relation == each] for each in (0, 1)]
    assert abs(centre[0].mean() - centre[1].mean()) > 20 * max(part.std() for part in centre)
    assert held_out_silhouette(vectors, relation, column, np.arange(10) % 5, 0.0)[0, 1] < 0.2


def dictionary(seed=0, shared=True, lengths=False):
    """An atom for each dose and kind, and as many others; an atom fires on the samples of its cell, and at random."""
    rng = np.random.default_rng(seed)
    plain = planted(seed)
    # Steps in some directions, kinds in others: unit length then changes no step.
    dose, kind = np.zeros((DOSES, D)), np.zeros((KINDS, D))
    dose[:, :3], kind[:, 3:] = np.eye(3) * 1.5, rng.normal(size=(KINDS, D - 3))
    kind *= 2 / np.linalg.norm(kind, axis=1)[:, None]
    step = dose[:, None] if shared else rng.permuted(np.tile(dose[:, None], (1, KINDS, 1)), axis=0)
    size = np.where(np.arange(KINDS) % 2, 1.0, 0.25)[None, :, None] if lengths else 1.0
    atoms = ((step * size + kind) + 0.05 * rng.normal(size=(DOSES, KINDS, D))).reshape(-1, D)
    atoms = np.concatenate([atoms, rng.normal(size=atoms.shape)])
    atoms /= np.linalg.norm(atoms, axis=1)[:, None]
    cell = np.repeat(np.arange(DOSES * KINDS), EACH)
    own = (np.arange(len(atoms)) == cell[:, None]) & (rng.random((len(cell), 1)) < 0.8)
    codes = np.where(own | (rng.random(own.shape) < 0.02), rng.uniform(1, 2, own.shape), 0.0)
    return plain_space(
        plain.white(np.arange(len(cell))),
        [("good", 0, atoms, codes), ("good", 1, atoms, codes)],
        columns={name: plain.obs[name].to_numpy() for name in ("dose", "kind", "size")},
        labels=LABELS,
    )


def of_atoms(space, seed=0.0):
    tables = measure(space, CONFIG)["crystals"]
    return pd.concat(tables).query("points == 'atoms' and seed == @seed").set_index(["shape", "projection"])


def test_parallelograms_of_atoms_are_found_against_both_nulls():
    table = of_atoms(dictionary())
    assert list(table.index) == [(shape, name) for shape in SHAPES for name in PROJECTIONS]
    row = table.loc[("parallelogram", "LDA")]
    assert row["silhouette"] > 0.6
    assert row["low"] > max(row["null_high"], row["random_high"])
    assert row["p"] == row["p_random"] == pytest.approx(1 / 41)
    assert (row["n_steps"], row["n_columns"], row["n_relations"]) == (36, 12, 3)
    assert of_atoms(dictionary(), 1.0).equals(table.assign(seed=1.0))


def test_atoms_without_shared_steps_are_no_crystals():
    high = 0
    for seed in range(4):
        row = of_atoms(dictionary(seed, shared=False)).loc[("parallelogram", "LDA")]
        assert row["silhouette"] < 0.3
        high += row["p"] < 0.05
    assert high <= 1


def test_steps_of_two_lengths_are_trapezoids():
    table = of_atoms(dictionary(lengths=True))["silhouette"]
    assert table["trapezoid", "LDA"] > table["parallelogram", "LDA"] + 0.15


def test_the_atom_of_a_cell_is_the_one_that_fires_there_and_none_is_taken_twice():
    space = dictionary()
    layout = grid(space, np.arange(DOSES * KINDS * EACH), "dose", "kind", CONFIG)
    (_, _, fit, codes), _ = space.each_fit()
    cells, chosen = Atoms.of(layout, codes, fit.atoms).chosen()
    # Classes of the grid are in alphabetical order, atoms in the order of the kinds' numbers.
    order = [int(name[1:]) for name in layout.columns]
    assert list(chosen) == [KINDS * (cell // KINDS) + order[cell % KINDS] for cell in cells]
    assert Atoms.of(layout, codes[:, :30], fit.atoms[:30]) is None


def test_atoms_can_be_left_out():
    tables = measure(dictionary(), CONFIG.model_copy(update={"dictionaries": []}))["crystals"]
    assert set(pd.concat(tables)["points"]) == {"classes"}


def test_steps_table_names_relations_and_columns():
    steps = measure(planted(), CONFIG)["crystals_steps"]
    assert set(steps[0]["relation"]) == {"0 → 1", "0 → 2", "1 → 2"}
    assert steps[0]["column"].nunique() == KINDS


def test_too_few_columns_give_no_rows_and_bad_labels_are_refused():
    assert measure(planted(), CONFIG.model_copy(update={"min_columns": 13}))["crystals"] == []
    for label in ("size", "nothing"):
        with pytest.raises(DataError, match=label):
            measure(planted(), CONFIG.model_copy(update={"pairs": [["dose", label]]}))
