"""Requests to public archives: which file of theirs an input is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from conceptome.config.base import Strict

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Address = Annotated[str, Field(pattern=r"^https?://[^\s/]+(/[^\s]*)?$")]
Identifier = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]


class Archive(Strict):
    """Keys that all archives share."""

    sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="of the file as it is written here; null: not checked. The receipt beside the file has it: pin it "
        "there, since an archive may change",
    )


class CellPaintingGallery(Archive):
    """Plates of one batch of the Cell Painting Gallery (a public S3 bucket, asked without credentials).

    profiles: one table of the plates' profiles. load_data: one table of image sets, with the address of every image.
    images: the same table for chosen wells and sites, and the images themselves, for the reader image_fields.
    """

    adapter: Literal["cell_painting_gallery"]
    project: Name = Field(description="such as cpg0016-jump")
    source: Name = Field(description="folder below the project: who contributed (broad, source_4)")
    batch: Name = Field(description="such as 2021_04_26_Batch1")
    plates: list[Name] = Field(min_length=1, description="plates, stacked in this order")
    content: Literal["profiles", "load_data", "images"] = Field("profiles", description="which file")
    profile: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_]+$",
        description="stage of the profiles, what follows the plate in the file's name: augmented, normalized, "
        "normalized_negcon, normalized_feature_select_negcon_plate …; null: as aggregated",
    )
    illumination: bool = Field(
        False, description="load_data, images: the table that names illumination functions, too (load_data_with_illum)"
    )
    channels: list[Name] | None = Field(None, description="images: channels to retrieve; null: all")
    wells: list[Name] | None = Field(None, description="images: wells to retrieve, such as A01; null: all")
    sites: list[int] | None = Field(None, description="images: sites of each well to retrieve; null: all")
    bucket: Name = Field("cellpainting-gallery", description="the S3 bucket")

    @model_validator(mode="after")
    def _keys_of_the_content(self) -> CellPaintingGallery:
        if len(set(self.plates)) < len(self.plates):
            raise ValueError("plates names a plate twice")
        if self.profile is not None and self.content != "profiles":
            raise ValueError(f"profile belongs to content: profiles, not to {self.content}")
        if self.illumination and self.content == "profiles":
            raise ValueError("illumination belongs to content: load_data or images")
        chosen = next((key for key in ("channels", "wells", "sites") if getattr(self, key) is not None), None)
        if chosen and self.content != "images":
            raise ValueError(f"{chosen} belongs to content: images, not to {self.content}")
        return self

    def file(self) -> str:
        """Name of the file that is written."""
        return "profiles.parquet" if self.content == "profiles" else "load_data.csv"


class Cellxgene(Archive):
    """The .h5ad of one data set of CELLxGENE, from Discover (newest or one version) or from a release of Census."""

    adapter: Literal["cellxgene"]
    dataset: Identifier = Field(description="identifier of the data set")
    version: Identifier | None = Field(
        None, description="identifier of the version (of Discover); null: the newest, which changes"
    )
    census: str | None = Field(
        None,
        pattern=r"^(stable|latest|\d{4}-\d{2}-\d{2})$",
        description="release of Census to take it from (2025-11-08, say; stable and latest move); null: Discover",
    )
    discover: Address = Field("https://api.cellxgene.cziscience.com", description="address of Discover's interface")
    releases: Address = Field(
        "https://census.cellxgene.cziscience.com/cellxgene-census/v1/release.json",
        description="address of the list of releases of Census",
    )

    @model_validator(mode="after")
    def _one_place(self) -> Cellxgene:
        if self.version is not None and self.census is not None:
            raise ValueError("give 'version' (of Discover) or 'census' (a release), not both")
        return self

    def file(self) -> str:
        """Name of the file that is written."""
        return "dataset.h5ad"


class Uniprot(Archive):
    """All entries of UniProtKB that a query finds, by the REST interface, page by page."""

    adapter: Literal["uniprot"]
    query: str = Field(min_length=1, description="such as (organism_id:559292) AND (reviewed:true)")
    format: Literal["fasta", "tsv", "flat"] = Field(
        "tsv",
        description="fasta: sequences; tsv: features (and sequences) by column, for annotation_format: uniprot_tsv; "
        "flat: whole entries, for annotation_format: flat",
    )
    fields: list[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]] = Field(
        [
            *("accession", "id", "length", "sequence", "ft_act_site", "ft_binding", "ft_carbohyd", "ft_coiled"),
            *("ft_compbias", "ft_crosslnk", "ft_disulfid", "ft_dna_bind", "ft_domain", "ft_helix", "ft_intramem"),
            *("ft_lipid", "ft_mod_res", "ft_motif", "ft_peptide", "ft_propep", "ft_region", "ft_repeat", "ft_signal"),
            *("ft_site", "ft_strand", "ft_topo_dom", "ft_transit", "ft_transmem", "ft_turn", "ft_zn_fing"),
        ],
        min_length=1,
        description="tsv: columns, by the names of the interface; accession must be one",
    )
    release: str | None = Field(
        None,
        pattern=r"^\d{4}_\d{2}$",
        description="release that must answer (2026_03, say); null: any. The receipt says which it was",
    )
    page: int = Field(500, gt=0, le=500, description="entries per request")
    address: Address = Field("https://rest.uniprot.org", description="address of the interface")

    def file(self) -> str:
        """Name of the file that is written."""
        return {"fasta": "proteins.fasta", "tsv": "proteins.tsv", "flat": "proteins.txt"}[self.format]


Request = Annotated[CellPaintingGallery | Cellxgene | Uniprot, Field(discriminator="adapter")]
