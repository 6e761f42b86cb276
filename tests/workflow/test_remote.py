"""Inputs and results on S3 and HTTP, by Snakemake's storage plugins and by the archives: moto answers on 127.0.0.1."""

import http.server
import io
import json
import os
import random
import subprocess
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from breaking_proxy import breaking_proxy
from workspace import Workspace, copy_of_repository, environment, tools

from conceptome.archives import retrieve
from conceptome.config.archives import Request
from conceptome.config.base import rebuild
from conceptome.errors import SourceError
from conceptome.files import sha256_file
from conceptome.sources import transfer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STUDY = """
dataset:
  reader: profiles
  title: A screen on another machine
  inputs: {wells: {path: PLACE}}
  rename: {Metadata_Plate: plate, Metadata_Well: well, Metadata_Compound: compound}
  sample_id: [plate, well]
  control: {column: compound, values: [DMSO]}
  group: plate
  labels: {compound: {kind: categorical, role: biological, title: compound}}
models: {profiles: {adapter: profiles}}
whitenings: {none: {method: none}}
dictionaries: {random: {method: random, m: 6, k: 2}}
enrichment: {labels: [compound]}
"""
FIELDS = """
dataset:
  reader: image_fields
  title: Fields of a public plate
  inputs:
    load_data:
      archive: {adapter: cell_painting_gallery, project: cpg0016-jump, source: source_4, batch: 2021_04_26_Batch1,
                plates: [BR1, BR2, BR3], content: images, sites: [1], channels: [DNA]}
  channels: [DNA]
  rename: {Metadata_Plate: plate, Metadata_Well: well, Metadata_Site: site}
  field: [plate, well, site]
  sample_id: [plate, well, site]
  cropping: {by: tile, size: 8}
  group: plate
models: {intensity: {adapter: intensity}}
whitenings: {none: {method: none}}
dictionaries: {random: {method: random, m: 2, k: 1}}
"""
EMBEDDED = "results/activations/screen/profiles.sha256"
BATCH = "cpg0016-jump/source_4/workspace/profiles/2021_04_26_Batch1"


def wells() -> bytes:
    """A table of 5 plates × 8 wells × 3 features."""
    draw = random.Random(0)
    rows = ["Metadata_Plate,Metadata_Well,Metadata_Compound,Cells_Area,Cells_Shape,Nuclei_Area"]
    for plate in range(5):
        for well in range(8):
            features = ",".join(f"{draw.gauss(0, 1):.4f}" for _ in range(3))
            rows.append(f"P{plate},A{well},{'DMSO' if well % 2 else 'drug'},{features}")
    return "\n".join(rows).encode() + b"\n"


def plate_of_images(plate: str) -> dict[str, bytes]:
    """Two wells × two sites × two channels of 16 × 16 pixels, and the table that names them, as the gallery has it."""
    import tifffile

    files, rows = {}, []
    for well in ("A01", "A02"):
        for site in (1, 2):
            row = {"Metadata_Plate": plate, "Metadata_Well": well, "Metadata_Site": site}
            for channel in ("DNA", "ER"):
                name = f"cpg0016-jump/source_4/images/2021_04_26_Batch1/images/{plate}/{well}-{site}-{channel}.tiff"
                tifffile.imwrite(image := io.BytesIO(), np.full((16, 16), 100 * site + len(rows), dtype=np.uint16))
                files[f"cellpainting-gallery/{name}"] = image.getvalue()
                row[f"URL_Orig{channel}"] = f"s3://cellpainting-gallery/{name}"
            rows.append(row)
    table = pd.DataFrame(rows).to_csv(index=False).encode()
    return {f"cellpainting-gallery/{BATCH.replace('profiles', 'load_data_csv')}/{plate}/load_data.csv": table, **files}


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """Port of an S3 server with a bucket of inputs, one for results, and a gallery of seven plates."""
    python = tools("s3-server.txt", "moto")
    folder = tmp_path_factory.mktemp("buckets")
    files = {"inputs/screen/wells.csv": wells(), "runs/readme.txt": b"results of runs\n"}
    for number in range(7):
        table = f"Metadata_Plate,Metadata_Well,Cells_Area\nBR{number},A01,{number}\n"
        files[f"cellpainting-gallery/{BATCH}/BR{number}/BR{number}.csv"] = table.encode()
    for plate in ("BR1", "BR2", "BR3"):
        files |= plate_of_images(plate)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    script = Path(__file__).with_name("s3_server.py")
    with subprocess.Popen([python, script, folder], stdout=subprocess.PIPE, text=True, env=variables) as server:
        try:
            yield int(server.stdout.readline())
        finally:
            server.kill()


@pytest.fixture(scope="module")
def plugins():
    """This process's environment, with the storage plugins at hand and credentials of nobody."""
    python = tools("remote.txt", "snakemake-storage-plugin-s3")
    [packages] = python.parents[1].glob("lib/python*/site-packages")
    known = environment()
    return {
        **known, "SNAKEMAKE_STORAGE_S3_ACCESS_KEY": "nobody", "SNAKEMAKE_STORAGE_S3_SECRET_KEY": "nothing",
        "PLUGINS": str(packages),
    }  # fmt: skip


def screen(folder: Path, study: str) -> Workspace:
    """A run of one small study."""
    repository = folder / "repository"
    if not repository.exists():
        copy_of_repository(repository)
    (repository / "config/studies/screen.yaml").write_text(study)
    run = {"name": "screen", "results": "results", "studies": ["screen"], "seeds": [0], "figures": ["selectivity"]}
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    return Workspace(folder, config=str(folder / "run.yaml"), results="results", repository=repository)


def run(workspace: Workspace, plugins, *arguments, **options) -> subprocess.CompletedProcess:
    path = os.pathsep.join([*(str(workspace.repository / name) for name in ("scripts", "kernels")), plugins["PLUGINS"]])
    return workspace.snakemake(*arguments, env={**plugins, "PYTHONPATH": path}, **options)


def test_inputs_and_results_lie_on_s3(s3, plugins, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here/wells.csv").write_bytes(wells())
    here = screen(tmp_path / "here", STUDY.replace("PLACE", "wells.csv"))
    here.snakemake(EMBEDDED)
    there = screen(tmp_path / "there", STUDY.replace("PLACE", "s3://inputs/screen/wells.csv"))
    with breaking_proxy(s3, b"Metadata_Plate,Metadata_Well,Metadata_Compound", times=2) as proxy:
        arguments = [
            "--storage-s3-endpoint-url", proxy.url, "--default-storage-provider", "s3",
            "--default-storage-prefix", "s3://runs/first", EMBEDDED,
        ]  # fmt: skip
        run(there, plugins, *arguments)
        # Two downloads of the input were broken off in their first line, and were tried again.
        assert proxy.broken == 2
        again = run(there, plugins, "--dry-run", *arguments)
        assert "Nothing to be done" in again.stdout + again.stderr, again.stdout + again.stderr
    stored = tmp_path / "stored"
    python, script = tools("s3-server.txt", "moto"), Path(__file__).with_name("s3_fetch.py")
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([python, script, f"http://127.0.0.1:{s3}", "runs", "first/results/", stored], check=True, env=clean)
    outputs = {name: digest for name, digest in here.digests().items() if not name.startswith("logs/")}
    assert {"data/screen/card.json", "data/screen/X.h5ad", "activations/screen/profiles.sha256"} <= set(outputs)
    assert any(name.startswith("activations/screen/profiles/") for name in outputs)
    assert {name: sha256_file(stored / name) for name in outputs} == outputs


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_an_input_lies_on_a_web_server(plugins, tmp_path):
    (tmp_path / "public").mkdir()
    (tmp_path / "public/wells.csv").write_bytes(wells())
    (tmp_path / "run").mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "public"))) as web:
        web.daemon_threads = True
        threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True).start()
        with breaking_proxy(web.server_port, b"Metadata_Plate,", times=1) as proxy:
            workspace = screen(tmp_path / "run", STUDY.replace("PLACE", f"{proxy.url}/wells.csv"))
            # The HTTP plugin gives up at once; nothing half-read is taken for the table, and the next run goes on.
            broken = run(workspace, plugins, "results/data/screen/card.json", check=False)
            assert broken.returncode != 0
            assert f"Failed to retrieve storage object from {proxy.url}/wells.csv" in broken.stdout + broken.stderr
            run(workspace, plugins, "results/data/screen/card.json")
        web.shutdown()
    card = yaml.safe_load(workspace.path("data/screen/card.json").read_text())
    assert card["n_samples"] == 40


def test_without_the_plugin_the_message_names_it(tmp_path):
    workspace = screen(tmp_path, STUDY.replace("PLACE", "s3://inputs/screen/wells.csv"))
    done = workspace.snakemake("--dry-run", EMBEDDED, check=False)
    assert done.returncode != 0
    assert "s3://inputs/screen/wells.csv" in done.stdout + done.stderr


def test_images_of_an_archive_become_crops(s3, tmp_path):
    workspace = screen(tmp_path, FIELDS)
    variables = {**environment(workspace.repository), "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{s3}"}
    workspace.snakemake("results/data/screen/crops.npy", env=variables)
    crops = np.load(workspace.path("data/screen/crops.npy"))
    # Three plates × two wells × one site × four tiles.
    assert crops.shape[0] == 24
    assert sorted(set(crops.ravel().tolist())) == [100, 102]
    receipt = json.loads(workspace.path("archives/screen/load_data/receipt.json").read_text())
    assert len(receipt["files"]) == 3 + 6


def test_the_gallery_is_listed_without_credentials(s3, tmp_path, monkeypatch):
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(transfer, "LISTED", 3)
    with breaking_proxy(s3, b"<ListBucketResult", times=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        assert list(transfer.keys("cellpainting-gallery", f"{BATCH}/", folders=True)) == [
            f"{BATCH}/BR{number}/" for number in range(7)
        ]
        assert proxy.broken == 1
        place = {"project": "cpg0016-jump", "source": "source_4", "batch": "2021_04_26_Batch1"}
        request = {"adapter": "cell_painting_gallery", **place, "plates": ["BR3", "BR0"]}
        retrieve(rebuild(Request, request), tmp_path / "profiles.parquet", tmp_path / "receipt.json")
        assert pd.read_parquet(tmp_path / "profiles.parquet")["Cells_Area"].tolist() == [3, 0]
        with pytest.raises(SourceError, match=r"there is no plate 'BR9' in s3://cell.*did you mean 'BR"):
            retrieve(rebuild(Request, {**request, "plates": ["BR9"]}), tmp_path / "x.parquet", tmp_path / "x.json")
    # One byte of an object is damaged on the way, every time.
    with damaging(s3) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(transfer, "RETRY_PAUSE_S", 0.0)
        with pytest.raises(SourceError, match=r"plate BR3, .*: wrong checksum: the bytes have MD5 .*, 4 attempts$"):
            retrieve(rebuild(Request, request), tmp_path / "x.parquet", tmp_path / "x.json")
    assert not (tmp_path / "x.parquet").exists()


def damaging(port):
    """A server before the S3 server that flips one letter of every table that comes through."""
    from contextlib import contextmanager
    from urllib.request import urlopen

    class Damage(Quiet):
        def do_GET(self):
            with urlopen(f"http://127.0.0.1:{port}{self.path}") as answer:
                body, tag = answer.read(), answer.headers.get("ETag", "")
            body = body.replace(b"A01", b"B01")
            self.send_response(200)
            for name, value in (("Content-Length", str(len(body))), ("ETag", tag)):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    @contextmanager
    def serve():
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Damage) as web:
            threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True).start()
            yield web.server_port
            web.shutdown()

    return serve()
