"""What a data set is: its reader, its files, its labels, its split."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from conceptome.config.archives import CellPaintingGallery, Request
from conceptome.config.base import Strict

RESERVED_LABELS = ("sample_id", "control", "group", "split")


class Input(Strict):
    """One input file: a name in config/sources.yaml, a path, or a request to a public archive (exactly one of them)."""

    source: str | None = Field(None, description="name in config/sources.yaml")
    path: str | None = Field(
        None,
        description="a file of your own, relative to where you run; or s3://… or https://… (docs/hpc.md)",
    )
    archive: Request | None = Field(None, description="a file of a public archive")

    @model_validator(mode="after")
    def _one(self) -> Input:
        if sum(origin is not None for origin in (self.source, self.path, self.archive)) != 1:
            raise ValueError(
                "give exactly one of 'source' (a name in config/sources.yaml), 'path' (a file of yours) and 'archive'"
            )
        return self


class Label(Strict):
    """A column of obs that is a label, and what kind of label it is."""

    kind: Literal["categorical", "ordinal", "numeric"] = Field(
        "categorical", description="categorical, ordinal (ordered numbers) or numeric"
    )
    role: Literal["biological", "technical"] = Field(
        "biological", description="biological, or technical (a warning, never a finding)"
    )
    title: str | None = Field(None, description="name in figures; null: the column's name")
    instances: str | None = Field(
        None,
        description="column whose distinct values are the independent instances of a class (the compounds of an "
        "injury class); classes with a single instance are marked in the card",
    )


class Control(Strict):
    """Which samples are controls: rows whose `column` holds one of `values`."""

    column: str = Field(description="column that says which samples are controls")
    values: list[str | int | float | bool] = Field(description="its values that mean control")


class Split(Strict):
    """Fractions of GROUPS (not of samples) in each split, and the seed of the draw."""

    train: float = Field(0.6, description="share of the groups")
    validation: float = Field(0.2, description="share of the groups")
    test: float = Field(0.2, description="share of the groups")
    seed: int = Field(0, description="of the assignment of groups")

    @model_validator(mode="after")
    def _sums_to_one(self) -> Split:
        if min(self.train, self.validation, self.test) <= 0 or abs(self.train + self.validation + self.test - 1) > 1e-9:
            raise ValueError("train, validation and test must be positive and sum to 1")
        return self


class QualityControl(Strict):
    """Filters and normalisation of single-cell counts, as scanpy names them."""

    min_genes: int = Field(200, description="genes that a kept cell expresses")
    min_cells: int = Field(5, description="cells in which a kept gene is expressed")
    max_percent_mitochondrial: float | None = Field(
        None, description="largest share of mitochondrial counts of a kept cell, in percent"
    )
    target_sum: float = Field(1e4, description="counts per cell after normalisation; null: the median")
    n_top_genes: int = Field(2000, description="variable genes that models read")


class DatasetBase(Strict):
    """Keys that every reader shares."""

    # The sets of input names that the reader takes; empty: one or more inputs with names of the user's choice.
    input_names: ClassVar[tuple[tuple[str, ...], ...]] = ()

    title: str = Field(description="name in figures and cards")
    inputs: dict[str, Input] = Field({}, description="what the reader reads: key → source, path or archive")
    split: Split = Field(Split(), description="shares of train, validation and test; whole groups move together")
    labels: dict[str, Label] = Field({}, description="column → what it is")
    subsample: int | None = Field(None, gt=0, description="keep this many samples (cells, wells, proteins), seeded")
    control_fraction: float = Field(
        0.2, gt=0, le=1, description="where there is no natural control, this seeded random share of samples serves"
    )

    @model_validator(mode="after")
    def _inputs_known(self) -> DatasetBase:
        if self.input_names and not any(set(self.inputs) == set(names) for names in self.input_names):
            wanted = " or ".join("{" + ", ".join(names) + "}" for names in self.input_names)
            given = ", ".join(self.inputs) or "none"
            raise ValueError(f"this reader's inputs are {wanted} (given: {given})")
        if not self.input_names and not self.inputs:
            raise ValueError("this reader needs at least one input")
        return self

    @model_validator(mode="after")
    def _images_for_fields(self) -> DatasetBase:
        for name, item in self.inputs.items():
            images = isinstance(item.archive, CellPaintingGallery) and item.archive.content == "images"
            if images and not (isinstance(self, ImageFields) and name == "load_data"):
                raise ValueError(f"inputs.{name}: content: images is for the input load_data of reader: image_fields")
        return self

    @model_validator(mode="after")
    def _labels_not_reserved(self) -> DatasetBase:
        for name in self.labels:
            if name in RESERVED_LABELS:
                raise ValueError(f"label '{name}' has a reserved name ({', '.join(RESERVED_LABELS)}): rename it")
        return self


class CellsBase(DatasetBase):
    """Keys that the single-cell readers share."""

    quality_control: QualityControl = Field(QualityControl(), description="scanpy's filters and normalisation")


class H5ad(CellsBase):
    """Any AnnData file. `inputs: {h5ad: ...}`."""

    input_names: ClassVar[tuple[tuple[str, ...], ...]] = (("h5ad",),)
    reader: Literal["h5ad"]
    counts: str | None = Field(
        None, description="layer with raw counts; 'X' for .X, 'raw' for .raw.X; null: the matrix is already normalised"
    )
    normalised: str = Field(
        "X", description="where the normalised, log-transformed matrix lies if counts is null: a layer, 'X' or 'raw'"
    )
    gene_symbols: str | None = Field(None, description="var column with gene symbols; null: the var index")
    control: Control | None = Field(
        None, description="which cells are controls; null: none, whitening is then fitted on a seeded share"
    )
    group: str | None = Field(None, description="obs column of the unit of independence (donor, say); null: the cell")
    batch: str | None = Field(None, description="obs column of the batch")


class Kang2018(CellsBase):
    """Kang et al. 2018. `inputs: {counts: pbmc_stim.RData, annotated: muscat_example_sce.rda}`."""

    input_names: ClassVar[tuple[tuple[str, ...], ...]] = (("counts", "annotated"),)
    reader: Literal["kang2018"]
    min_transfer_probability: float = Field(
        0.5, ge=0, le=1, description="cells whose best transferred type is less probable than this get no type"
    )


class Replace(Strict):
    """Several recorded values that mean one thing: each of `values` becomes `by`."""

    values: list[str | int | float] = Field(min_length=1, description="values to be replaced")
    by: str | int | float = Field(description="what replaces them")


class Scaffold(Strict):
    """The Bemis-Murcko scaffold of each compound, as a new metadata column."""

    smiles: str = Field(description="metadata column (new name) with the compound's SMILES")
    column: str = Field("scaffold", description="name of the new column")


class Profiles(DatasetBase):
    """A table of profiles, one row per well or cell. `inputs`: one or more tables, stacked in the order given."""

    reader: Literal["profiles"]
    unit: Literal["well", "cell", "site"] = Field("well", description="what a row is")
    metadata_columns: list[str] | None = Field(
        None, description="columns that are metadata; null: columns that start with metadata_prefix"
    )
    metadata_prefix: str = Field(
        "Metadata_", description="columns of this prefix are metadata, unless metadata_columns lists them"
    )
    ignore_columns: list[str] = Field([], description="columns that are neither labels nor features")
    sample_id: list[str] | None = Field(
        None, description="columns (new names) whose values, joined by ':', name a sample; null: row number"
    )
    rename: dict[str, str] = Field({}, description="original metadata column → short name used everywhere after")
    replace: dict[str, list[Replace]] = Field(
        {}, description="metadata column (new name) → recorded values that are one and the same value"
    )
    control: Control | None = Field(
        None, description="which profiles are controls; null: none, whitening is then fitted on a seeded share"
    )
    group: str | None = Field(None, description="column of the unit of independence (plate, say); null: the profile")
    control_group: str | None = Field(
        None,
        description="column by which controls are dealt to the splits where `group` is a treatment (plate, say): all "
        "controls share one treatment, which would put them into one split; null: by `group`, like all others",
    )
    stratify: str | None = Field(
        None, description="column whose values are spread over the splits in proportion (injury class, say); null: none"
    )
    scaffold: Scaffold | None = Field(
        None, description="adds a metadata column with the scaffold of each compound, to be named by `group`"
    )
    batch: str | None = Field(None, description="column of the batch")
    transform: Literal["none", "standardize"] = Field(
        "none", description="standardize: subtract the mean and divide by the deviation of training controls"
    )


class SplitPlan(Strict):
    """Which values of `split_by` make up each split, declared rather than drawn."""

    train: list[str] = Field(min_length=1, description="values of split_by in the training split")
    validation: list[str] = Field(min_length=1, description="values of split_by in the validation split")
    test: list[str] = Field(min_length=1, description="values of split_by in the test split")


class ImagesBase(DatasetBase):
    """Keys that the readers of microscopy images share."""

    channels: list[str] = Field(min_length=1, description="names of the channels, in the order of the images")
    sample_id: list[str] = Field(
        min_length=1, description="columns (new names) whose values, joined by ':', name a crop (with its number)"
    )
    rename: dict[str, str] = Field({}, description="original column of the table → short name used everywhere after")
    replace: dict[str, list[Replace]] = Field(
        {}, description="column (new name) → recorded values that are one and the same value"
    )
    control: Control | None = Field(
        None, description="which crops are controls; null: none, whitening is then fitted on a seeded share"
    )
    group: str | None = Field(None, description="column of the unit of independence (field, well); null: the crop")
    split_by: str | None = Field(
        None,
        description="column that is wholly in one split where that is more than the group (plate); null: the group",
    )
    split_plan: SplitPlan | None = Field(
        None, description="values of split_by (or group) in each split; null: drawn with split.seed"
    )
    batch: str | None = Field(None, description="column of the batch (plate)")
    position: str | None = Field(
        None, description="column of the position on the plate (well): classes that have one position only are marked"
    )


class ImageCrops(ImagesBase):
    """Crops of single cells that others cut. `inputs: {crops: archive, table: CSV with one row per crop}`.

    The archive (.tar, also compressed, or .zip) holds one array (.npy) or TIFF per crop, uint8 or uint16.
    """

    input_names: ClassVar[tuple[tuple[str, ...], ...]] = (("crops", "table"),)
    reader: Literal["image_crops"]
    file_column: str = Field("file", description="column of the table with a crop's path inside the archive")
    folder: str = Field("", description="folder of the archive that these paths start from")
    axes: Literal["yxc", "cyx"] = Field("yxc", description="order of a crop's axes; c is the channel")
    sha256_column: str | None = Field(None, description="column with the sha256 of each file, to check; null: none")


class Cropping(Strict):
    """How crops are cut from a field of view."""

    by: Literal["tile", "centroid"] = Field(
        "tile", description="tile: a grid from the upper left corner; centroid: around the objects of a table"
    )
    size: int = Field(96, gt=1, description="height and width of a crop, in pixels")
    stride: int | None = Field(None, gt=0, description="tile: pixels from one crop to the next; null: size")
    x: str = Field("x", description="centroid: column with the object's column in pixels, from 0")
    y: str = Field("y", description="centroid: column with the object's row in pixels, from 0")


class ImageFields(ImagesBase):
    """Fields of view (TIFF, OME-TIFF, OME-Zarr) named by a table in the manner of CellProfiler's LoadData.

    `inputs: {load_data: CSV}`, or `{load_data: CSV, objects: CSV}` with centroids. One row per field; for every channel
    its file, and where the file holds several planes, which of them. Paths are relative to the table. Crops keep the
    images' 8 or 16 bits.
    """

    input_names: ClassVar[tuple[tuple[str, ...], ...]] = (("load_data",), ("load_data", "objects"))
    reader: Literal["image_fields"]
    file_column: str = Field("FileName_Orig{channel}", description="column with a channel's file")
    folder_column: str = Field(
        "PathName_Orig{channel}", description="column with the folder of that file; used where the table has it"
    )
    plane_column: str = Field(
        "Frame_Orig{channel}",
        description="column with the plane of that file, from 0; without it a file of several planes must have one per "
        "channel, in order",
    )
    illumination_column: str = Field(
        "FileName_Illum{channel}",
        description="column with a channel's illumination function; used where the table has it",
    )
    illumination: Literal["divide", "subtract"] = Field("divide", description="how it is applied: divide or subtract")
    field: list[str] = Field(min_length=1, description="columns (new names) that together name a field of view")
    cropping: Cropping = Field(Cropping(), description="how crops are cut")

    @model_validator(mode="after")
    def _objects_for_centroids(self) -> ImageFields:
        if (self.cropping.by == "centroid") != ("objects" in self.inputs):
            raise ValueError(
                "cropping.by: centroid needs the input 'objects' (a table of centroids), and tile has none"
            )
        return self


class Homology(Strict):
    """When two proteins count as homologues (MMseqs2), and so belong to one cluster."""

    min_identity: float = Field(0.3, ge=0, le=1, description="identical residues in the alignment, as a share")
    coverage: float = Field(0.8, ge=0, le=1, description="share of the sequence that the alignment covers")
    coverage_mode: Literal["both", "either"] = Field(
        "both", description="whether both sequences must be covered, or one is enough (a domain within a long protein)"
    )
    max_evalue: float = Field(1e-3, gt=0, description="alignments with a larger E-value do not count")


class Proteins(DatasetBase):
    """Protein sequences, one sample per residue.

    `inputs`: {sequences: FASTA, annotations: table}, {annotations: UniProt TSV export with a column 'Sequence'}, or
    {flat: UniProt flat file}.
    """

    input_names: ClassVar[tuple[tuple[str, ...], ...]] = (("sequences", "annotations"), ("annotations",), ("flat",))
    reader: Literal["proteins"]
    annotation_format: Literal["table", "uniprot_tsv", "flat"] = Field(
        "table", description="table, uniprot_tsv or flat"
    )
    columns: dict[Literal["protein", "type", "note", "start", "end", "isoform"], str] = Field(
        {}, description="table: our name (protein, type, note, start, end, isoform) → the table's column"
    )
    max_length: int = Field(512, gt=0, description="longer proteins are left out")
    n_proteins: int | None = Field(None, gt=0, description="seeded choice that covers the concepts; null: all")
    max_residues: int | None = Field(
        None, gt=0, description="residues in all; proteins are drawn until they are reached"
    )
    min_proteins_per_concept: int = Field(5, gt=0, description="concepts on fewer proteins are dropped")
    max_shared_words: float | None = Field(
        0.5,
        gt=0,
        le=1,
        description="leave out a protein that shares more than this share of its 5-letter words with one already "
        "chosen (0.5: about 87 % identity): near copies must not stand on both sides of the split; null: keep all",
    )
    ignore_types: list[str] = Field(
        ["CHAIN", "CONFLICT", "MUTAGEN", "VARIANT", "VAR_SEQ"],
        description="types that are no concept: the whole chain, and differences between sequences",
    )
    bond_types: list[str] = Field(
        ["DISULFID", "CROSSLNK"], description="types whose start and end are two bonded residues, not a stretch"
    )
    merge_numbered_notes: bool = Field(
        True, description="'RRM 1' and 'RRM 2' → 'RRM', 'Helical; Name=3' → 'Helical': copies of one concept"
    )
    non_standard_residues: Literal["error", "drop_protein", "keep"] = Field(
        "error", description="what happens to proteins with letters beside the 20 amino acids"
    )
    beyond_end: Literal["error", "drop"] = Field("error", description="annotations beyond the end of their sequence")
    split_by: Literal["protein", "homology"] = Field(
        "protein",
        description="what moves as a whole between splits and is the unit of independence (`group`): the protein, or "
        "the cluster of homologues",
    )
    homology: Homology | None = Field(
        None,
        description="find homologues, and count in the card those that a split by protein leaves on both sides; null: "
        "only where split_by is homology, with the values above",
    )
    seed: int = Field(0, description="of the choice of proteins")


class SimulatedSmall(DatasetBase):
    """Schuster's small simulation (arXiv 2410.11468): activity × accessibility → transcription factors → RNA."""

    input_names: ClassVar[tuple[tuple[str, ...], ...]] = ((),)
    reader: Literal["simulated_small"]
    n_samples: int = Field(12_000, gt=0, description="samples")
    seed: int = Field(0, description="of the simulation")


class SimulatedLarge(DatasetBase):
    """Schuster's large simulation (arXiv 2410.11468): programs → batch → cell type mask → genes."""

    input_names: ClassVar[tuple[tuple[str, ...], ...]] = ((),)
    reader: Literal["simulated_large"]
    n_samples: int = Field(6_000, gt=0, description="samples (cells)")
    n_programs: int = Field(100, gt=0, description="hidden expression programmes")
    n_genes: int = Field(2_000, gt=0, description="observed genes")
    n_cell_types: int = Field(40, gt=0, description="hidden cell types")
    n_batches: int = Field(3, gt=0, description="hidden batches")
    seed: int = Field(0, description="of the simulation")


class SimulatedHierarchy(DatasetBase):
    """Sums of a parent concept and one of its children, as in the hierarchical benchmark of Costa et al. 2025."""

    input_names: ClassVar[tuple[tuple[str, ...], ...]] = ((),)
    reader: Literal["simulated_hierarchy"]
    n_samples: int = Field(20_000, gt=0, description="samples")
    n_dimensions: int = Field(64, gt=1, description="dimensions of a sample")
    n_parents: int = Field(24, gt=0, description="parent concepts")
    n_children: int = Field(3, gt=0, description="children of each parent; each is orthogonal to its parent")
    n_active: int = Field(3, gt=0, description="families that a sample is a sum of")
    sibling_cosine: float = Field(0.5, ge=0, lt=1, description="cosine of two children of one parent, on average")
    noise: float = Field(0.02, ge=0, description="standard deviation of the noise in each dimension")
    seed: int = Field(0, description="of the simulation")

    @model_validator(mode="after")
    def _enough_families(self) -> SimulatedHierarchy:
        if self.n_active > self.n_parents:
            raise ValueError(f"n_active ({self.n_active}) exceeds n_parents ({self.n_parents})")
        return self


Dataset = Annotated[
    H5ad
    | Kang2018
    | Profiles
    | Proteins
    | ImageCrops
    | ImageFields
    | SimulatedSmall
    | SimulatedLarge
    | SimulatedHierarchy,
    Field(discriminator="reader"),
]
