import gzip

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from conceptome.config.base import rebuild
from conceptome.config.datasets import Dataset
from conceptome.datasets import load, prepare, proteins, uniprot
from conceptome.errors import DataError

LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))


def random_sequences(n, length=30, seed=0):
    rng = np.random.default_rng(seed)
    return {f"P{row:03d}": "".join(rng.choice(LETTERS, length)) for row in range(n)}


def fasta(path, sequences):
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in sequences.items()))
    return path


def table(path, rows):
    pd.DataFrame(rows, columns=["protein", "type", "note", "start", "end"]).to_csv(path, index=False)
    return path


ROWS = [
    ("P000", "DOMAIN", "RRM 1", 3, 9),
    ("P001", "DOMAIN", "RRM 2", 4, 10),
    ("P001", "DISULFID", None, 5, 20),
    ("P002", "ACT_SITE", "Nucleophile", 7, None),
    ("P002", "CHAIN", "whole", 1, 30),
]


def config(**keys):
    inputs = {"sequences": {"path": "s"}, "annotations": {"path": "a"}}
    base = {"reader": "proteins", "title": "t", "inputs": inputs, "min_proteins_per_concept": 1}
    return rebuild(Dataset, {**base, **keys})


def run(tmp_path, sequences, rows, name="out", **keys):
    inputs = {
        "sequences": fasta(tmp_path / "s.fasta", sequences),
        "annotations": table(tmp_path / "a.csv", rows),
    }
    prepare(config(**keys), inputs, tmp_path / name)
    return load(tmp_path / name)


def test_residues_annotations_and_card(tmp_path):
    sequences = random_sequences(6)
    dataset = run(tmp_path, sequences, ROWS)
    assert dataset.sequences() == sequences
    obs = dataset.obs
    assert obs.index[:2].tolist() == ["P000:1", "P000:2"]
    assert "".join(obs["residue"]) == "".join(sequences.values())
    assert obs["position"].tolist() == list(range(1, 31)) * 6
    assert obs.groupby("group")["split"].nunique().max() == 1
    assert obs["control"].sum() == 36
    rows = dataset.annotations().to_numpy().tolist()
    assert rows == [
        ["P000", "DOMAIN", "RRM", 3, 9],
        ["P001", "DOMAIN", "RRM", 4, 10],
        ["P001", "DISULFID", None, 5, 5],
        ["P001", "DISULFID", None, 20, 20],
        ["P002", "ACT_SITE", "Nucleophile", 7, 7],
    ]
    card = dataset.card
    assert (card["modality"], card["group_is"], card["interval_level"]) == ("proteins", "protein", "protein-level")
    assert card["reports"]["concepts"]["DOMAIN|RRM"]["proteins"] == 2
    assert "seeded random 20% of residues" in card["control_is"]


def test_twice_written_is_byte_identical(tmp_path):
    for name in ("one", "two"):
        run(tmp_path, random_sequences(30), ROWS, name, n_proteins=10)
    for name in ("sequences.fasta", "annotations.parquet", "obs.parquet", "card.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_choice_covers_rare_concepts_and_keeps_the_budget():
    sequences = random_sequences(200, length=50)
    member = np.zeros((200, 11))
    member[:, 0] = 1  # one concept that every protein carries
    for concept in range(1, 11):
        member[np.arange(5) + 5 * concept, concept] = 1  # and ten that five proteins carry
    chosen, _ = proteins.choose(sequences, sparse.csr_matrix(member), 20, 900, None, np.random.default_rng(0))
    assert len(chosen) == 18  # 900 residues
    rows = [int(name[1:]) for name in chosen]
    assert member[rows, 1:].sum(0).min() >= 1
    assert member[rows, 1:].sum(0).max() <= 2
    assert chosen == sorted(chosen)


def test_near_copies_are_left_out():
    sequences = random_sequences(5, length=60)
    sequences["copy"] = sequences["P002"][:30] + "W" + sequences["P002"][31:]
    sequences["fragment"] = sequences["P003"][10:40]
    none = sparse.csr_matrix((7, 0))
    chosen, near = proteins.choose(sequences, none, None, None, 0.5, np.random.default_rng(0))
    assert near == 2
    assert len({"P002", "copy"} & set(chosen)) == len({"P003", "fragment"} & set(chosen)) == 1
    everything, near = proteins.choose(sequences, none, None, None, None, np.random.default_rng(0))
    assert (len(everything), near) == (7, 0)


def test_annotations_of_unknown_proteins_are_counted(tmp_path):
    dataset = run(tmp_path, random_sequences(6), [*ROWS, ("Q1", "DOMAIN", "x", 1, 2), ("Q1", "DOMAIN", "y", 3, 4)])
    reports = dataset.card["reports"]
    assert (reports["annotations_of_unknown_proteins"], reports["unknown_proteins"]) == (2, 1)


def with_letter(letter):
    sequences = random_sequences(6)
    sequences["P004"] = sequences["P004"][:10] + letter + sequences["P004"][11:]
    return sequences


@pytest.mark.parametrize(
    ("sequences", "rows", "keys", "message"),
    [
        (with_letter("X"), ROWS, {}, "protein 'P004' has the letter 'X' at position 11.*drop_protein or keep"),
        (
            with_letter("-"),
            ROWS,
            {"non_standard_residues": "keep"},
            "letter '-' at position 11, which is no amino acid",
        ),
        (
            random_sequences(6),
            [*ROWS, ("P003", "REGION", None, 20, 31)],
            {},
            "REGION 20..31 of protein 'P003' ends beyond its sequence of 30 residues .1 such",
        ),
        (random_sequences(6), [("P000", "DOMAIN", None, 0, 4)], {}, "protein 'P000' has start '0'"),
        (
            random_sequences(6),
            [("P000", "DOMAIN", None, 9, 4)],
            {},
            "DOMAIN 9..4 of protein 'P000' ends before it starts",
        ),
        (random_sequences(6), [("P000", "DOMAIN", None, 2.5, 4)], {}, "protein 'P000' has start '2.5'"),
        (random_sequences(6), [("Q9", "DOMAIN", None, 2, 4)], {}, "no annotated protein has a sequence"),
        (random_sequences(6), ROWS, {"max_length": 10}, "none of 6 proteins is left: 6 are longer than max_length"),
        (random_sequences(6), ROWS, {"max_residues": 10}, "no protein has at most max_residues"),
        (random_sequences(6), ROWS, {"columns": {"type": "kind"}}, "type column 'kind' does not exist"),
        (random_sequences(6), ROWS, {"labels": {"residu": {}}}, "label column 'residu' .*did you mean 'residue'"),
        (random_sequences(2), ROWS[:2], {}, "at least 3 groups"),
    ],
)
def test_bad_input_gets_one_clear_line(tmp_path, sequences, rows, keys, message):
    with pytest.raises(DataError, match=message) as caught:
        run(tmp_path, sequences, rows, **keys)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "card.json").exists()


def test_non_standard_letters_as_configured(tmp_path):
    dropped = run(tmp_path, with_letter("U"), ROWS, "dropped", non_standard_residues="drop_protein")
    assert "P004" not in dropped.sequences()
    assert dropped.card["reports"]["with_non_standard_residues"] == 1
    kept = run(tmp_path, with_letter("U"), ROWS, "kept", non_standard_residues="keep")
    assert kept.sequences()["P004"][10] == "U"


def test_annotations_beyond_the_end_can_be_dropped(tmp_path):
    rows = [*ROWS, ("P003", "REGION", None, 20, 31)]
    dataset = run(tmp_path, random_sequences(6), rows, beyond_end="drop")
    assert dataset.card["reports"]["annotations_beyond_end"] == ["REGION 20..31 of P003"]
    assert "REGION" not in set(dataset.annotations()["type"])


def test_fasta_headers(tmp_path):
    path = tmp_path / "s.fasta"
    path.write_text(">sp|Q04847|ROY1_YEAST protein OS=x\nmaf\nQD*\n\n>plain words\nMK\n")
    assert uniprot.read_fasta(path) == {"Q04847": "MAFQD", "plain": "MK"}
    packed = tmp_path / "s.fasta.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert uniprot.read_fasta(packed) == uniprot.read_fasta(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is an empty FASTA file"),
        ("MKV\n", "is not a FASTA file: line 1"),
        (">a\nMK\n>a\nMK\n", "line 3: protein 'a' occurs twice"),
        (">a\n>b\nMK\n", "protein 'a' has a header but no sequence"),
        (">\nMK\n", "line 1: a header without a name"),
    ],
)
def test_bad_fasta(tmp_path, text, message):
    (tmp_path / "s.fasta").write_text(text)
    with pytest.raises(DataError, match=message):
        uniprot.read_fasta(tmp_path / "s.fasta")


NEW_FLAT = """ID   ONE_TEST                Reviewed;          30 AA.
AC   P00001; Q00009;
DE   RecName: Full=Test;
FT   DOMAIN          3..9
FT                   /note="RRM; with a
FT                   second line"
FT                   /evidence="ECO:0000255|PROSITE-ProRule:PRU00176"
FT   ACT_SITE        12
FT                   /note="Nucleophile"
FT   REGION          <1..?
FT   VAR_SEQ         P00001-2:1..4
SQ   SEQUENCE   30 AA;  3333 MW;  0123456789ABCDEF CRC64;
     ACDEFGHIKL MNPQRSTVWY
     ACDEFGHIKL
//
"""
OLD_FLAT = """ID   TWO_TEST                Reviewed;          30 AA.
AC   P00002;
FT   SIGNAL        1     <4       By similarity.
FT   DISULFID      5     20       Interchain (with C-9 in
FT                                other chain) (Potential).
FT                                /FTId=PRO_0000031999.
FT   CARBOHYD      7      7       N-linked (GlcNAc...).
FT   TRANSMEM      ?     20
SQ   SEQUENCE   30 AA;  3333 MW;  0123456789ABCDEF CRC64;
     YWVTSRQPNM LKIHGFEDCA YWVTSRQPNM
//
"""


def test_flat_file_in_both_syntaxes(tmp_path):
    path = tmp_path / "a.dat"
    path.write_text(NEW_FLAT + OLD_FLAT)
    sequences, raw = uniprot.read_flat(path)
    assert sequences == {"P00001": "ACDEFGHIKLMNPQRSTVWYACDEFGHIKL", "P00002": "YWVTSRQPNMLKIHGFEDCAYWVTSRQPNM"}
    annotations, left_out = uniprot.locate(raw, "a.dat")
    assert left_out == {"on_other_isoforms": 1, "of_unknown_position": 2}
    rows = annotations.astype(object).where(annotations.notna(), None).to_numpy().tolist()
    assert rows == [
        ["P00001", "DOMAIN", "RRM; with a second line", 3, 9],
        ["P00001", "ACT_SITE", "Nucleophile", 12, 12],
        ["P00002", "SIGNAL", None, 1, 4],
        ["P00002", "DISULFID", "Interchain (with C-9 in other chain)", 5, 20],
        ["P00002", "CARBOHYD", "N-linked (GlcNAc...)", 7, 7],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no entry"),
        (NEW_FLAT[:-3], "not closed by '//'"),
        (NEW_FLAT * 2, "protein 'P00001' occurs twice"),
        (NEW_FLAT.replace("AC ", "XX "), "an entry has no AC line"),
        (NEW_FLAT.split("     ACD")[0] + "//\n", "protein 'P00001' has no sequence"),
    ],
)
def test_bad_flat_file(tmp_path, text, message):
    (tmp_path / "a.dat").write_text(text)
    with pytest.raises(DataError, match=message):
        uniprot.read_flat(tmp_path / "a.dat")


def test_uniprot_tsv(tmp_path):
    path = tmp_path / "export.tsv"
    path.write_text(
        "Entry\tGene Names\tDomain [FT]\tBinding site\tSequence\n"
        'P1\tabc\tDOMAIN 3..9; /note="F-box; like"; /evidence="E"; DOMAIN 11..14; /note="RRM 2"\t\tACDEFGHIKLMNPQRS\n'
        'P2\tdef\t\tBINDING 5; /ligand="ATP"; /ligand_id="ChEBI:1"\tACDEFGHIKLMNPQRS\n'
        "P3\t\t\t\tWYACDEFGHIKL\n"
    )
    sequences, raw = uniprot.read_tsv(path)
    assert list(sequences) == ["P1", "P2", "P3"]
    annotations, _ = uniprot.locate(raw, "export.tsv")
    assert annotations["note"].tolist() == ["F-box; like", "RRM 2", None]
    assert annotations[["protein", "type", "start", "end"]].to_numpy().tolist() == [
        ["P1", "DOMAIN", 3, 9],
        ["P1", "DOMAIN", 11, 14],
        ["P2", "BINDING", 5, 5],
    ]
    tsv = config(inputs={"annotations": {"path": "a"}}, annotation_format="uniprot_tsv", max_shared_words=None)
    prepare(tsv, {"annotations": path}, tmp_path / "out")
    assert len(load(tmp_path / "out")) == 44


def test_tsv_without_features(tmp_path):
    (tmp_path / "a.tsv").write_text("Entry\tGene\nP1\tabc\n")
    with pytest.raises(DataError, match="no feature column"):
        uniprot.read_tsv(tmp_path / "a.tsv")


@pytest.mark.parametrize(
    ("note", "plain"),
    [
        ("RRM 1", "RRM"),
        ("C2H2-type 3; degenerate", "C2H2-type; degenerate"),
        ("Helical; Name=S4 of repeat I", "Helical"),
        ("Zinc; alternate", "Zinc"),
        ("1", None),
        ("", None),
        (None, None),
        ("Zn(2)-C6 fungal-type", "Zn(2)-C6 fungal-type"),
    ],
)
def test_plain_note(note, plain):
    assert uniprot.plain_note(note, merge_numbered=True) == plain
    if note:
        assert uniprot.plain_note(note, merge_numbered=False) == note
