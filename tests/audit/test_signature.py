"""Keys, signed envelopes and the statement of a results folder, each with what an attacker would try."""

import base64
import json
import stat

import pytest
from fake_records import output, write_record

from conceptome.__main__ import main
from conceptome.errors import DataError
from conceptome.files import read_json, write_json
from conceptome.provenance import ledger, statement
from conceptome.provenance.closure import repository
from conceptome.provenance.history import History
from conceptome.provenance.signature import new_key, sign, verify


@pytest.fixture
def key(tmp_path):
    new_key(tmp_path / "key")
    return tmp_path / "key"


@pytest.fixture
def public(key):
    return key.with_name("key.pub")


@pytest.fixture
def results(tmp_path):
    """Two ledger entries over two jobs, the first of which retrieved a source."""
    folder = tmp_path / "results"
    for name in ("raw.csv", "codes.parquet"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    raw = output(folder / "raw.csv")
    entry = {"name": "raw.csv", "url": "https://example.org/raw.csv", "sha256": raw["sha256"], "size": raw["size"]}
    entry.update(licence="CC0 1.0", description="Planted.", citation="Nobody (2020)")
    write_record(folder, "1-retrieve", rule="retrieve", parameters={"entry": entry}, outputs=[raw])
    ledger.append(folder)
    write_record(folder, "2-learn", workflow="w2", inputs=[raw], outputs=[output(folder / "codes.parquet")])
    ledger.append(folder)
    return folder


def test_a_key_pair_signs_and_verifies(key, public):
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    envelope = sign(b"payload", "text/plain", key)
    assert verify(envelope, public) == b"payload"
    assert envelope == sign(b"payload", "text/plain", key)


def test_the_command_writes_a_pair_and_never_overwrites(tmp_path, capsys):
    assert main(["key", "new", str(tmp_path / "a b" / "key")]) == 0
    before = (tmp_path / "a b" / "key").read_bytes()
    assert main(["key", "new", str(tmp_path / "a b" / "key")]) == 1
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "a b" / "key").read_bytes() == before


def test_no_key_is_written_into_the_repository():
    with pytest.raises(DataError, match="inside the repository"):
        new_key(repository() / "key")
    assert not (repository() / "key").exists()


def _swap(envelope, **values):
    return {**envelope, **values}


@pytest.mark.parametrize(
    ("altered", "message"),
    [
        (lambda e: _swap(e, payload=base64.b64encode(b"Payload").decode()), "altered since signing"),
        (lambda e: _swap(e, payloadType="text/html"), "altered since signing"),
        (
            lambda e: _swap(e, signatures=[{**e["signatures"][0], "sig": base64.b64encode(b"0" * 64).decode()}]),
            "altered",
        ),
        (lambda e: _swap(e, signatures=[]), "by nobody"),
        (lambda e: _swap(e, signatures="none"), "not a DSSE envelope"),
        (lambda e: {"payload": e["payload"]}, "not a DSSE envelope"),
    ],
)
def test_an_altered_envelope_is_refused(key, public, altered, message):
    with pytest.raises(DataError, match=message):
        verify(altered(sign(b"payload", "text/plain", key)), public)


def test_the_signature_of_another_key_is_refused(tmp_path, public):
    new_key(tmp_path / "other")
    envelope = sign(b"payload", "text/plain", tmp_path / "other")
    with pytest.raises(DataError, match="not signed with"):
        verify(envelope, public)
    envelope["signatures"][0]["keyid"] = sign(b"payload", "text/plain", public.with_suffix(""))["signatures"][0][
        "keyid"
    ]
    with pytest.raises(DataError, match="altered since signing"):
        verify(envelope, public)


def test_what_is_no_key_is_one_line(tmp_path, key, public):
    (tmp_path / "text").write_text("no key")
    for path in (tmp_path / "text", public):
        with pytest.raises(DataError, match="no Ed25519 private key"):
            sign(b"", "text/plain", path)
    with pytest.raises(DataError, match="cannot be read"):
        sign(b"", "text/plain", tmp_path / "missing")
    with pytest.raises(DataError, match="no Ed25519 public key"):
        verify(sign(b"", "text/plain", key), tmp_path / "text")


def test_the_statement_names_outputs_sources_and_the_ledgers_head(results):
    stated = statement.statement(results)
    assert {item["name"]: item["digest"]["sha256"] for item in stated["subject"]} == {
        path: output(results / name)["sha256"]
        for name in ("raw.csv", "codes.parquet")
        for path in [str(results / name)]
    }
    [material] = stated["predicate"]["materials"]
    assert material["uri"] == "https://example.org/raw.csv"
    assert stated["predicate"]["byproducts"]["ledger"] == {"head": ledger.head(results), "entries": 2}


def test_an_ingest_with_a_key_signs(results, key, public, capsys):
    assert main(["mlflow", "ingest", "--results", str(results), "--signing-key", str(key)]) == 0
    assert "signed" in capsys.readouterr().out
    stated = statement.read(results / "statement.dsse.json", public)
    assert statement.differences(results, stated) == []


def test_the_statement_notices_what_happened_to_the_ledger(results, key, public):
    stated = statement.read(statement.write(results, key), public)
    lines = (results / "ledger.jsonl").read_text().splitlines(keepends=True)
    (results / "ledger.jsonl").write_text(lines[0])
    assert "cut off" in statement.differences(results, stated)[0]
    (results / "ledger.jsonl").unlink()
    for workflow in ("x1", "x2"):  # the chain anew, with a record that was edited before
        for path in (results / ".provenance/records").glob("*.json"):
            write_json(path, {**read_json(path), "workflow": workflow})
        ledger.append(results)
    assert "written anew" in statement.differences(results, stated)[0]


def test_the_statement_notices_later_entries_and_other_outputs(results, key, public):
    stated = statement.read(statement.write(results, key), public)
    stated["subject"][0]["digest"]["sha256"] = "0" * 64
    assert str(results / "codes.parquet") in statement.differences(results, stated)[0]
    write_record(results, "3-learn", workflow="w3")
    ledger.append(results)
    assert "1 ledger entries were added after signing" in statement.differences(results, stated)[0]


def test_another_signed_document_is_no_statement(results, key, public):
    path = results / "statement.dsse.json"
    write_json(path, sign(json.dumps({"predicateType": "x"}).encode(), statement.PAYLOAD_TYPE, key))
    with pytest.raises(DataError, match="a signed x, not the statement"):
        statement.read(path, public)
    path.write_text("{}")
    with pytest.raises(DataError, match="not a DSSE envelope"):
        statement.read(path)


def test_a_run_with_a_key_ends_with_a_signed_statement(copy_of_finished, key, public):
    figure = copy_of_finished.path("studies/test/figures/recovery/recovery.svg")
    figure.unlink()
    before = set(History(copy_of_finished.path()).jobs)
    copy_of_finished.snakemake("--config", f"signing_key={key}")
    results = copy_of_finished.path()
    after = History(results).jobs
    assert [after[name].rule for name in after if name not in before] == ["figure_recovery"]  # a key re-runs nothing
    stated = statement.read(results / "statement.dsse.json", public)
    assert statement.differences(results, stated) == []
    assert not any(str(key) in job.path.read_text() for job in after.values())
