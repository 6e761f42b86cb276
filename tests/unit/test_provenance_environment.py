"""What a job ran in: distributions by the digest of their RECORD, and the code's difference from its commit."""

import hashlib
import json
import subprocess
import time

import pytest

from conceptome.provenance import environment
from conceptome.provenance.folder import ProvenanceFolder, media_type


@pytest.fixture
def folder(tmp_path) -> ProvenanceFolder:
    return ProvenanceFolder(tmp_path / "results")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    place = tmp_path / "lib" / "site-packages"
    for name in ("Some_Thing-1.2.dist-info", "other-3.dist-info"):
        (place / name).mkdir(parents=True)
    (place / "Some_Thing-1.2.dist-info" / "RECORD").write_text("some_thing.py,sha256=abc,3\n")
    monkeypatch.setattr("sys.path", [str(place)])
    return place


def test_distributions_are_listed_once_and_a_swapped_package_gives_another_digest(folder, installed, monkeypatch):
    first = environment.environment(folder)
    listing = json.loads((folder.environments / f"{first}.json").read_text())
    record = hashlib.sha256(b"some_thing.py,sha256=abc,3\n").hexdigest()
    assert listing["distributions"] == [
        {"name": "other", "version": "3", "record": None},
        {"name": "some-thing", "version": "1.2", "record": record},
    ]
    with monkeypatch.context() as patch:
        patch.setattr(environment, "sha256_file", lambda path: pytest.fail("read again though nothing changed"))
        assert environment.environment(folder) == first
    time.sleep(0.01)
    (installed / "Some_Thing-1.2.dist-info" / "RECORD").write_text("some_thing.py,sha256=xyz,3\n")
    assert environment.environment(folder) != first
    assert len(list(folder.environments.iterdir())) == 2


def git(root, *words):
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *name, *words], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    root = tmp_path / "a checkout"
    (root / "scripts").mkdir(parents=True)
    (root / "scripts" / "learn.py").write_text("a = 1\n")
    (root / "README.md").write_text("read me\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "first")
    monkeypatch.setattr(environment, "repository", lambda: root)
    return root


def test_the_commit_of_a_clean_tree(folder, checkout):
    (checkout / "README.md").write_text("no code\n")
    head = git(checkout, "rev-parse", "HEAD").strip()
    assert environment.commit(folder) == {"id": head, "dirty": False, "diff": None}


def test_the_difference_is_kept_once_and_gives_the_code_that_ran(folder, checkout, tmp_path):
    (checkout / "scripts" / "learn.py").write_text("a = 2\n")
    (checkout / "scripts" / "new.py").write_text("b = 3\n")
    status = git(checkout, "status", "--porcelain")
    found = environment.commit(folder)
    assert environment.commit(folder) == found
    assert found["dirty"] is True
    (kept,) = folder.diffs.iterdir()
    assert kept.name == f"{found['diff']}.diff"
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == found["diff"]
    assert git(checkout, "status", "--porcelain") == status, "the user's index was changed"
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(checkout), str(clone))
    git(clone, "apply", str(kept))
    assert (clone / "scripts" / "learn.py").read_text() == "a = 2\n"
    assert (clone / "scripts" / "new.py").read_text() == "b = 3\n"


def test_outside_a_checkout_there_is_no_commit(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "repository", lambda: tmp_path)
    assert environment.commit(folder) == {"id": None, "dirty": None, "diff": None}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("obs.parquet", "application/vnd.apache.parquet"),
        ("X.h5ad", "application/x-hdf5"),
        ("F3.SVG", "image/svg+xml"),
        ("card.json", "application/json"),
        ("dictionary.safetensors", "application/octet-stream"),
        ("ledger.jsonl", "application/jsonl"),
        ("no_suffix", "application/octet-stream"),
    ],
)
def test_media_types(name, kind):
    assert media_type(name) == kind
