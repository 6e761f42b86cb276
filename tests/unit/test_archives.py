"""Public archives: the requests that are sent, paging, patience, and every complaint. The network is 127.0.0.1."""

import hashlib
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from public_server import public_server

from conceptome.archives import ADAPTERS, retrieve
from conceptome.config.archives import Request
from conceptome.config.base import rebuild
from conceptome.config.datasets import Dataset, ImageFields, Input
from conceptome.config.run import Config, Run, Study
from conceptome.datasets.uniprot import read_fasta, read_flat, read_tsv
from conceptome.errors import SourceError
from conceptome.sources import SourceEntry, transfer
from conceptome.sources import retrieve as retrieve_source
from conceptome.workflow import Plan

PLATE = "cpg0016-jump/source_4/workspace/{kind}/2021_04_26_Batch1/{plate}/{name}"
DATASET = "0895c838-e550-48a3-a777-dbcd35d30272"
VERSION = "17616a35-1b3d-4754-9553-8ddb71267d63"
IMAGES = "cpg0016-jump/source_4/images/2021_04_26_Batch1/images/BR1__2021-Measurement1/Images"


@pytest.fixture
def server(monkeypatch):
    with public_server() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", running.url)
        monkeypatch.setattr(transfer, "RETRY_PAUSE_S", 0.0)
        yield running


@pytest.fixture
def bring(tmp_path):
    """Retrieve what a request asks for; give the file and the receipt."""

    def run(adapter, images=False, **keys):
        request = rebuild(Request, {"adapter": adapter, **keys})
        target, receipt = tmp_path / request.file(), tmp_path / "receipt.json"
        retrieve(request, target, receipt, tmp_path / "images" if images else None)
        return target, json.loads(receipt.read_text())

    return run


def key(kind, plate, name):
    return "cellpainting-gallery/" + PLATE.format(kind=kind, plate=plate, name=name)


def profile(plate, n=2):
    wells = [f"A0{i + 1}" for i in range(n)]
    return pd.DataFrame({"Metadata_Plate": plate, "Metadata_Well": wells, "Cells_Area": range(n)})


@pytest.fixture
def gallery(server, tmp_path):
    """A batch of three plates in the gallery's shape: profiles in two formats, image sets, images."""
    for plate in ("BR1", "BR2", "BR3"):
        path = tmp_path / f"{plate}.csv.gz"
        profile(plate).to_csv(path, index=False)
        server.objects[key("profiles", plate, f"{plate}_normalized.csv.gz")] = path.read_bytes()
        for other in ("augmented", "normalized_negcon", "heatmap"):
            server.objects[key("profiles", plate, f"{plate}_{other}.txt")] = b"other"
    profile("BR2").to_parquet(path := tmp_path / "BR2.parquet")
    server.objects[key("profiles", "BR2", "BR2_normalized.parquet")] = path.read_bytes()
    rows = []
    for well in ("A01", "A02"):
        for site in (1, 2):
            row = {"Metadata_Plate": "BR1", "Metadata_Well": well, "Metadata_Site": site}
            for channel in ("DNA", "AGP"):
                name = f"{IMAGES}/{well}-{site}-{channel}.tiff"
                row[f"URL_Orig{channel}"] = f"s3://cellpainting-gallery/{name}"
                server.objects[f"cellpainting-gallery/{name}"] = f"{well} {site} {channel}".encode()
            rows.append(row)
    server.objects[key("load_data_csv", "BR1", "load_data.csv")] = pd.DataFrame(rows).to_csv(index=False).encode()
    old = pd.DataFrame(rows).rename(columns={"URL_OrigDNA": "FileName_OrigDNA", "URL_OrigAGP": "FileName_OrigAGP"})
    for channel in ("DNA", "AGP"):
        paths = old[f"FileName_Orig{channel}"].str.rsplit("/", n=1)
        old[f"PathName_Orig{channel}"] = paths.str[0] + "/"
        old[f"FileName_Orig{channel}"] = paths.str[1]
    server.objects[key("load_data_csv", "BR2", "load_data.csv")] = old.to_csv(index=False).encode()
    return {"project": "cpg0016-jump", "source": "source_4", "batch": "2021_04_26_Batch1"}


def test_the_adapters_are_those_of_the_configuration():
    from typing import get_args

    from conceptome.config.archives import Request

    assert tuple(get_args(kind.model_fields["adapter"].annotation)[0] for kind in get_args(get_args(Request)[0])) == (
        ADAPTERS
    )


def test_profiles_of_plates_are_stacked_and_their_origins_written_down(server, gallery, bring):
    target, receipt = bring("cell_painting_gallery", **gallery, plates=["BR2", "BR1"], profile="normalized")
    table = pd.read_parquet(target)
    assert table["Metadata_Plate"].tolist() == ["BR2", "BR2", "BR1", "BR1"]
    assert table["Cells_Area"].tolist() == [0, 1, 0, 1]
    # Parquet is taken where there is a choice.
    assert [item["url"].rsplit("/", 1)[-1] for item in receipt["files"]] == [
        "BR2_normalized.parquet", "BR1_normalized.csv.gz",
    ]  # fmt: skip
    body = server.objects[key("profiles", "BR1", "BR1_normalized.csv.gz")]
    assert receipt["files"][1]["sha256"] == hashlib.sha256(body).hexdigest()
    assert receipt["sha256"] == hashlib.sha256(target.read_bytes()).hexdigest()
    # Four and five files in pages of three: each listing took two requests, and nothing was signed.
    assert sum("continuation-token=3" in path for path in server.asked) == 2
    assert not server.signed


def test_image_sets_name_their_images_by_address(gallery, bring):
    target, _ = bring("cell_painting_gallery", **gallery, plates=["BR1", "BR2"], content="load_data")
    # The second plate has folders and files in place of addresses: the same addresses come out.
    table = pd.read_csv(target)
    assert sorted(table.columns) == [
        "Metadata_Plate", "Metadata_Site", "Metadata_Well", "URL_OrigAGP", "URL_OrigDNA",
    ]  # fmt: skip
    assert table["URL_OrigDNA"][0] == f"s3://cellpainting-gallery/{IMAGES}/A01-1-DNA.tiff"
    assert table["URL_OrigDNA"][:4].tolist() == table["URL_OrigDNA"][4:].tolist()


def test_images_of_chosen_wells_come_along(server, gallery, bring, tmp_path):
    target, receipt = bring(
        "cell_painting_gallery", True, **gallery, plates=["BR1"], content="images", wells=["A02"], channels=["DNA"]
    )
    table = pd.read_csv(target)
    assert table["Metadata_Site"].tolist() == [1, 2]
    assert "FileName_OrigAGP" not in table.columns
    assert [(tmp_path / name).read_text() for name in table["FileName_OrigDNA"]] == ["A02 1 DNA", "A02 2 DNA"]
    assert len(receipt["files"]) == 3
    assert sum(path.endswith(".tiff") for path in server.asked) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"plates": ["BR4"]}, "there is no plate 'BR4' in s3://cellpainting-gallery/cpg0016-jump/.*; did you mean 'BR"),
        ({"batch": "2021_04_26_Batch2"}, "no batch '2021_04_26_Batch2' in .*; did you mean '2021_04_26_Batch1'"),
        ({"source": "source_99"}, "source_99/workspace/profiles/ holds nothing: check project and source"),
        ({"profile": "normalised"}, "plate BR1 has no BR1_normalised .*; did you mean 'BR1_normalized.csv.gz'"),
        ({"sha256": "0" * 64}, "profiles.parquet has sha256 .*, but the configuration asks for 0000"),
    ],
)
def test_what_the_gallery_does_not_hold_is_named_in_one_line(gallery, bring, tmp_path, change, said):
    with pytest.raises(SourceError, match=said) as failure:
        bring("cell_painting_gallery", **{**gallery, "plates": ["BR1"], "profile": "normalized", **change})
    assert "\n" not in str(failure.value)
    assert not (tmp_path / "profiles.parquet").exists()
    assert not list(tmp_path.glob(".*.partial"))


def test_troubles_that_pass_are_sat_out(server, gallery, bring):
    path = "/" + key("profiles", "BR1", "BR1_normalized.csv.gz")
    server.troubles = {path: ["cut", "damaged", (503, 0)], "/cellpainting-gallery/": [500, 429]}
    target, _ = bring("cell_painting_gallery", **gallery, plates=["BR1"], profile="normalized")
    assert len(pd.read_parquet(target)) == 2
    assert server.asked.count(path) == 4


def test_a_checksum_that_stays_wrong_is_one_line(server, gallery, bring, tmp_path):
    server.troubles = {"/" + key("profiles", "BR1", "BR1_normalized.csv.gz"): ["damaged"] * 4}
    with pytest.raises(SourceError, match=r"plate BR1, .*wrong checksum: the bytes have MD5 \w{32}, .*, 4 attempts$"):
        bring("cell_painting_gallery", **gallery, plates=["BR1"], profile="normalized")
    assert not (tmp_path / "profiles.parquet").exists()


@pytest.mark.parametrize(
    ("asked", "waited"), [("7", 7.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("soon", 0.0), ("3600", None)]
)
def test_retry_after_is_honoured_within_reason(server, monkeypatch, tmp_path, asked, waited):
    pauses = []
    monkeypatch.setattr(transfer.time, "sleep", pauses.append)
    server.objects["bucket/file"] = b"good"
    server.troubles = {"/bucket/file": [(429, asked)]}
    if waited is None:
        with pytest.raises(transfer.Unavailable, match="HTTP 429: it asks to wait 3,600 s"):
            transfer.download("s3://bucket/file", tmp_path / "file")
        return
    assert transfer.download("s3://bucket/file", tmp_path / "file").size == 4
    assert pauses == [waited]


def test_public_objects_have_https_addresses(monkeypatch):
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(variable, raising=False)
    assert transfer.http_address("s3://cellpainting-gallery/a b/c+d") == (
        "https://cellpainting-gallery.s3.amazonaws.com/a%20b/c%2Bd"
    )
    assert transfer.http_address("s3://b/k", "us-west-2") == "https://b.s3.us-west-2.amazonaws.com/k"
    assert transfer.http_address("s3://with.dot/k") == "https://s3.amazonaws.com/with.dot/k"
    assert transfer.http_address("https://example.org/x") == "https://example.org/x"


def test_a_source_may_lie_on_s3(server, tmp_path):
    body = b"published"
    server.objects["bucket/folder/file.csv"] = body
    about = {"description": "d", "licence": "CC0", "citation": "none", "size": len(body)}
    entry = SourceEntry(
        name="file.csv", url="s3://bucket/folder/file.csv", sha256=hashlib.sha256(body).hexdigest(), **about
    )
    assert retrieve_source(entry, tmp_path / "file.csv", mirrors=[]).read_bytes() == body
    wrong = SourceEntry(name="file.csv", url="s3://bucket/folder/file.csv", sha256="0" * 64, **about)
    with pytest.raises(SourceError, match=r"s3://bucket/folder/file\.csv gave another file"):
        retrieve_source(wrong, tmp_path / "other.csv", mirrors=[])
    assert not server.signed


@pytest.fixture
def proteins(server):
    server.entries = [f"P{i:05d}" for i in range(7)]
    return {"address": server.url, "query": "(organism_id:559292) AND (reviewed:true)", "page": 3}


def test_every_page_of_proteins_is_read_by_the_readers(server, proteins, bring):
    sequences = read_fasta(bring("uniprot", **proteins, format="fasta")[0])
    target, receipt = bring("uniprot", **proteins)
    from_table, features = read_tsv(target)
    from_flat, flat_features = read_flat(bring("uniprot", **proteins, format="flat")[0])
    assert list(sequences) == server.entries
    assert sequences == from_table == from_flat
    assert len(features) == len(flat_features) == 7
    assert features.iloc[6][["type", "note", "start", "end"]].tolist() == ["DOMAIN", "SH3", "2", "5"]
    assert receipt["release"] == "2026_03"
    assert receipt["entries"] == 7
    assert len(receipt["files"]) == 3
    first = next(path for path in server.asked if "format=tsv" in path)
    assert "/uniprotkb/search?query=%28organism_id%3A559292%29+AND+%28reviewed%3Atrue%29&format=tsv&size=3" in first
    assert "ft_domain" in first
    assert "sort=accession+asc" in first


@pytest.mark.parametrize(
    ("change", "releases", "said"),
    [
        ({"query": "nonsense:"}, None, "page 1 of query 'nonsense:': HTTP 400: the query or a field is not understood"),
        ({"release": "2026_01"}, None, "release 2026_03 answers, but the configuration asks for 2026_01"),
        ({}, ["2026_03", "2026_04"], "the release changed from 2026_03 to 2026_04 between two pages: try again"),
        ({"fields": ["ft_domain"]}, None, "fields lacks 'accession'"),
    ],
)
def test_uniprot_complaints_are_one_line(server, proteins, bring, change, releases, said):
    server.releases = releases or server.releases
    with pytest.raises(SourceError, match=said):
        bring("uniprot", **{**proteins, **change})


def test_uniprot_counts_what_it_was_promised(server, proteins, bring):
    server.troubles = {"/uniprotkb/search": [429, 503]}
    assert bring("uniprot", **proteins)[1]["entries"] == 7
    server.entries = []
    with pytest.raises(SourceError, match="finds no entry"):
        bring("uniprot", **proteins)


@pytest.fixture
def discover(server):
    """Discover and Census with one data set; its h5ad lies beside an RDS file."""
    server.objects["files/old.h5ad"] = b"old matrix"
    server.objects["files/new.h5ad"] = b"new matrix"
    server.objects["census/cell-census/2025-11-08/h5ads/" + DATASET + ".h5ad"] = b"frozen matrix"

    def version(identifier, name, size):
        assets = [{"filetype": "RDS", "url": "nowhere", "filesize": 1}]
        assets.append({"filetype": "H5AD", "url": f"{server.url}/files/{name}", "filesize": size})
        return {"dataset_id": DATASET, "dataset_version_id": identifier, "title": "Blood", "assets": assets}

    old = version(VERSION, "old.h5ad", 10)
    server.documents = {
        f"/curation/v1/datasets/{DATASET}/versions": [version("new", "new.h5ad", 10), old],
        f"/curation/v1/dataset_versions/{VERSION}": old,
        "/release.json": {
            "stable": "2025-11-08",
            "2025-11-08": {"h5ads": {"uri": "s3://census/cell-census/2025-11-08/h5ads/", "s3_region": "us-west-2"}},
        },
    }
    return {"dataset": DATASET, "discover": server.url, "releases": f"{server.url}/release.json"}


def test_a_data_set_comes_newest_by_version_or_from_a_release(discover, bring):
    target, receipt = bring("cellxgene", **discover)
    assert (target.read_bytes(), receipt["version"]) == (b"new matrix", "new")
    target, receipt = bring("cellxgene", **discover, version=VERSION)
    assert (target.read_bytes(), receipt["version"]) == (b"old matrix", VERSION)
    target, receipt = bring("cellxgene", **discover, census="stable")
    assert (target.read_bytes(), receipt["release"]) == (b"frozen matrix", "2025-11-08")


def test_cellxgene_complaints_are_one_line(server, discover, bring):
    other = DATASET.replace("0895", "1111")
    with pytest.raises(SourceError, match=f"data set {other}: .*HTTP 404: there is none of that identifier"):
        bring("cellxgene", **{**discover, "dataset": other})
    with pytest.raises(SourceError, match=f"is of data set {DATASET}, not of {other}"):
        bring("cellxgene", **{**discover, "dataset": other, "version": VERSION})
    with pytest.raises(SourceError, match="no release 2024-01-01; there are: 2025-11-08"):
        bring("cellxgene", **discover, census="2024-01-01")
    with pytest.raises(SourceError, match=f"data set {other} of Census 2025-11-08: .*this release does not hold it"):
        bring("cellxgene", **{**discover, "dataset": other, "census": "stable"})
    server.objects["files/old.h5ad"] = b"cut"
    with pytest.raises(SourceError, match=r"truncated: 3 of 10 bytes, 4 attempts"):
        bring("cellxgene", **discover, version=VERSION)
    server.documents[f"/curation/v1/dataset_versions/{VERSION}"]["assets"].pop()
    with pytest.raises(SourceError, match=r"has no H5AD file \(it has: RDS\)"):
        bring("cellxgene", **discover, version=VERSION)


def examples():
    text = (Path(__file__).parents[2] / "docs/hpc.md").read_text()
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    return {item["archive"]["adapter"]: item["archive"] for block in blocks for item in block["inputs"].values()}


def test_the_examples_of_the_document_are_requests():
    assert set(examples()) == set(ADAPTERS)
    assert rebuild(Request, examples()["uniprot"]).file() == "proteins.tsv"
    assert rebuild(Request, examples()["cellxgene"]).census == "2025-11-08"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"path": "wells.csv"}, "give exactly one of 'source'"),
        ({"content": "images"}, "content: images is for the input load_data of reader: image_fields"),
        ({"content": "load_data", "profile": "augmented"}, "profile belongs to content: profiles"),
        ({"wells": ["A01"]}, "wells belongs to content: images"),
        ({"illumination": True}, "illumination belongs to content: load_data or images"),
        ({"plates": ["BR1", "BR1"]}, "plates names a plate twice"),
    ],
)
def test_requests_that_mean_nothing_are_refused(change, said):
    archive = {"adapter": "cell_painting_gallery", "project": "p", "source": "s", "batch": "b", "plates": ["BR1"]}
    place = {"path": change.pop("path")} if "path" in change else {}
    study = {"reader": "profiles", "title": "T", "inputs": {"wells": {"archive": {**archive, **change}, **place}}}
    with pytest.raises(ValueError, match=said):
        rebuild(Dataset, study)


def test_the_plan_knows_where_answers_lie():
    request = rebuild(Request, {**examples()["cell_painting_gallery"], "content": "images", "profile": None})
    table = Input(archive=request)
    dataset = ImageFields(
        reader="image_fields", title="T", inputs={"load_data": table}, channels=["DNA"], sample_id=["w"], field=["w"]
    )
    models, whitenings = {"m": {"adapter": "intensity"}}, {"none": {"method": "none"}}
    study = {"models": models, "whitenings": whitenings, "dictionaries": {"identity": {"method": "identity"}}}
    study = Study.model_validate({"dataset": dataset.model_dump(mode="json"), **study}, strict=False)
    run = Run(name="r", studies=["plate"], results="results", seeds=[0], figures=["reconstruction"])
    plan = Plan(Config(run=run, studies={"plate": study}), {})
    assert plan.dataset_inputs("plate") == {"load_data": "results/archives/plate/load_data/load_data.csv"}
    assert plan.archive_images("plate") == ["results/archives/plate/load_data/images"]
    assert [item[:2] for item in plan.archives()] == [("plate", "load_data")]
    assert plan.own_files("plate") == plan.image_files("plate") == []
