"""What a configuration implies as files: which paths each rule reads and writes. Pure path arithmetic, no data."""

from __future__ import annotations

import os
import pkgutil
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from conceptome.config.archives import Archive
from conceptome.config.dictionaries import SEEDLESS
from conceptome.config.models import Whitening
from conceptome.config.papers import Paper
from conceptome.config.run import Baseline, Config, NullModel, Run, Study
from conceptome.datasets import outputs
from conceptome.dictionaries import METHODS
from conceptome.enrichment.tables import TABLES
from conceptome.errors import ConfigError
from conceptome.explanations.tables import TABLES as EXPLANATIONS
from conceptome.factorial import TABLES as FACTORIAL_TABLES
from conceptome.measures.registry import MEASURES, MODEL_READERS
from conceptome.measures.tables import TABLES as CORE_TABLES
from conceptome.models import MODELS, SCATTERED
from conceptome.papers import quantities
from conceptome.steering.tables import TABLES as STEERING

MODALITY = {
    "h5ad": "matrix",
    "image_crops": "images",
    "image_fields": "images",
    "kang2018": "matrix",
    "profiles": "matrix",
    "proteins": "proteins",
    "simulated_small": "simulated",
    "simulated_large": "simulated",
    "simulated_hierarchy": "simulated",
}


# Sections of a study that have a rule of their own, and the tables it writes.
SECTIONS = {"explanations": tuple(EXPLANATIONS), "steering": tuple(STEERING)}
# The table of a further measure that says which atoms are technical.
FLAGS = "variance_partition_atoms"


class Plan:
    """The files of a run.

    Parameters
    ----------
    config
        The validated configuration.
    sources
        The entries of config/sources.yaml by name.

    Raises
    ------
    ConfigError
        A study names a source that config/sources.yaml does not hold, or one name of a dictionary stands for methods
        with and without seeds.
    """

    def __init__(self, config: Config, sources: Mapping[str, object]):
        self.config = config
        self.sources = sources
        self.results = config.run.results
        self.datasets = list(config.studies)
        self._studies = {**config.bases, **config.studies}
        for name in self.needed_sources():
            if name not in sources:
                raise ConfigError(f"source '{name}' is not in config/sources.yaml: add it there, or give a 'path'")
        for name in {*self.dictionary_names(seedless=False)} & {*self.dictionary_names(seedless=False, together=True)}:
            raise ConfigError(
                f"dictionaries.{name}: one process trains it in one study and several in another: give one of them "
                "another name"
            )
        seeded = {*self.dictionary_names(seedless=False), *self.dictionary_names(seedless=False, together=True)}
        for name in {*self.dictionary_names(seedless=True)} & seeded:
            raise ConfigError(
                f"dictionaries.{name}: one study fits it with seeds and another with a method without seeds "
                f"({', '.join(SEEDLESS)}): give one of them another name"
            )

    def study(self, dataset: str) -> Study:
        """The study of a data set (they share their name), of the run or one that a study of the run extends."""
        return self._studies[dataset]

    def base(self, dataset: str) -> Study | None:
        """The study that a study extends, if any."""
        extends = self.study(dataset).extends
        return self.study(extends) if extends else None

    def data_home(self, dataset: str) -> str:
        """The study whose prepared data a study reads: the one it extends, if their data sets agree, else itself."""
        base, study = self.base(dataset), self.study(dataset)
        return self.data_home(study.extends) if base and base.dataset == study.dataset else dataset

    def model_home(self, dataset: str, model: str) -> str:
        """The study below which a model's activations lie."""
        base, study = self.base(dataset), self.study(dataset)
        shared = self.data_home(dataset) != dataset and base.models.get(model) == study.models[model]
        return self.model_home(study.extends, model) if shared else dataset

    def whitening_home(self, dataset: str, model: str, whitening: str) -> str:
        """The study below which a whitening of a model lies."""
        base, study = self.base(dataset), self.study(dataset)
        shared = self.model_home(dataset, model) != dataset and (
            base.whitenings.get(whitening) == self.whitening(dataset, whitening)
        )
        return self.whitening_home(study.extends, model, whitening) if shared else dataset

    def fit_home(self, dataset: str, model: str, whitening: str, dictionary: str) -> str:
        """The study below which the fits of a dictionary lie."""
        base, study = self.base(dataset), self.study(dataset)
        shared = self.whitening_home(dataset, model, whitening) != dataset and (
            base.dictionaries.get(dictionary) == study.dictionaries[dictionary]
        )
        return self.fit_home(study.extends, model, whitening, dictionary) if shared else dataset

    def activations(self, dataset: str, model: str) -> str:
        """The activation store of a model."""
        return f"{self.results}/activations/{self.model_home(dataset, model)}/{model}"

    def scattered(self, dataset: str, model: str) -> bool:
        """Whether a model can be run on parts of a data set: it is not fitted on it."""
        return self.study(dataset).models[model].adapter in SCATTERED

    def whitening(self, dataset: str, name: str) -> Whitening:
        """A whitening of a study, or one that the factorial study adds to it."""
        factorial = self.config.run.factorial
        added = factorial.studies[dataset].whitenings if factorial and dataset in factorial.studies else {}
        return {**added, **self.study(dataset).whitenings}[name]

    def whitening_files(self, dataset: str, model: str, whitening: str) -> list[str]:
        """The transform and the card of a whitening."""
        home = self.whitening_home(dataset, model, whitening)
        folder = f"{self.results}/whitening/{home}/{model}/{whitening}"
        return [f"{folder}/whitening.safetensors", f"{folder}/card.json"]

    def needed_sources(self) -> list[str]:
        """Names of all sources that the configured studies read, in order, once each."""
        names: dict[str, None] = {}
        for study in self._studies.values():
            names.update((item.source, None) for item in study.dataset.inputs.values() if item.source)
            names.update((model.source, None) for model in study.models.values() if getattr(model, "source", None))
            names.update((name, None) for name in study.enrichment.gene_sets)
        return list(names)

    def of_modality(self, modality: str) -> list[str]:
        """Data sets of one modality (matrix, proteins, images, simulated)."""
        return [name for name in self._studies if MODALITY[self.study(name).dataset.reader] == modality]

    def source_file(self, name: str) -> str:
        """Where a retrieved source lies."""
        return f"{self.results}/sources/{name}"

    def dataset_inputs(self, dataset: str) -> dict[str, str]:
        """Input files of a data set's reader by their key in the study."""
        inputs = self.study(dataset).dataset.inputs
        return {
            key: self.source_file(item.source)
            if item.source
            else item.path or f"{self.archive_folder(dataset, key)}/{item.archive.file()}"
            for key, item in inputs.items()
        }

    def archives(self) -> list[tuple[str, str, Archive]]:
        """Every (data set, input, request) that a public archive answers."""
        return [
            (dataset, name, item.archive)
            for dataset, study in self._studies.items()
            for name, item in study.dataset.inputs.items()
            if item.archive and self.data_home(dataset) == dataset
        ]

    def archive_folder(self, dataset: str, name: str) -> str:
        """Where the answer of a public archive lies, for one input of a data set."""
        return f"{self.results}/archives/{dataset}/{name}"

    def archive_images(self, dataset: str) -> list[str]:
        """The folder of the images that came with a data set's table of fields (a list, so that a rule can take it)."""
        item = self.study(dataset).dataset.inputs.get("load_data")
        images = item is not None and getattr(item.archive, "content", None) == "images"
        return [f"{self.archive_folder(dataset, 'load_data')}/images"] if images else []

    def own_files(self, dataset: str) -> list[str]:
        """Input files of a data set that no source retrieves: a user's own."""
        return [item.path for item in self.study(dataset).dataset.inputs.values() if item.path]

    def image_files(self, dataset: str) -> list[str]:
        """Image files that a table of fields names and that exist; the reader says which are missing."""
        from conceptome.datasets.image_fields import files

        config = self.study(dataset).dataset
        if self.archive_images(dataset):
            return []
        table = self.dataset_inputs(dataset).get("load_data")
        if not table or not Path(table).exists():
            return []
        return [str(path) for path in files(config, Path(table)) if path.exists()]

    def structures(self, dataset: str) -> list[str]:
        """Structure files of a data set's proteins: a user's own, in one folder."""
        from conceptome.enrichment.structures import files

        folder = self.study(dataset).enrichment.structures
        return [] if folder is None else [str(path) for path in files(folder)]

    def gene_sets(self, dataset: str) -> dict[str, str]:
        """GMT files of a data set's enrichment by the name of their collection: retrieved ones, then a user's own."""
        enrichment = self.study(dataset).enrichment
        return {name: self.source_file(name) for name in enrichment.gene_sets} | enrichment.own_gene_sets

    def ontology(self, dataset: str) -> list[str]:
        """The ontology of a data set's gene sets, when it has one (a list, so that a rule can take it as an input)."""
        path = self.study(dataset).enrichment.ontology
        return [path] if path else []

    def own_terms(self, dataset: str) -> list[str]:
        """Gene sets and ontology that no source retrieves: a user's own."""
        return [*self.study(dataset).enrichment.own_gene_sets.values(), *self.ontology(dataset)]

    def data_files(self, dataset: str) -> list[str]:
        """The prepared files of a data set."""
        folder = f"{self.results}/data/{self.data_home(dataset)}"
        return [f"{folder}/{name}" for name in outputs(self.study(dataset).dataset.reader)]

    def card(self, dataset: str) -> str:
        """The card of a prepared data set."""
        return f"{self.results}/data/{self.data_home(dataset)}/card.json"

    def weights(self, dataset: str, model: str) -> list[str]:
        """The checkpoint folder of a model, when it has one (a list, so that a rule can take it as an input)."""
        entry = self.study(dataset).models[model]
        source = [self.source_file(entry.source)] if getattr(entry, "source", None) else []
        return source + self.own_weights(dataset, model)

    def weight_listings(self, dataset: str, model: str) -> list[str]:
        """The listing of a retrieved checkpoint folder: a change of its content is seen by it."""
        source = getattr(self.study(dataset).models[model], "source", None)
        return [f"{self.source_file(source)}.sha256"] if source and self.sources[source].kind == "folder" else []

    def own_weights(self, dataset: str, model: str) -> list[str]:
        """The checkpoint folder of a model when it is a user's own, and the folder of its dictionaries."""
        entry = self.study(dataset).models[model]
        return [path for name in ("path", "dictionaries") if (path := getattr(entry, name, None))]

    def measure_weights(self, dataset: str, model: str, measure: str) -> list[str]:
        """The checkpoint of a model, for a further measure that runs it again; none for the others."""
        return self.weights(dataset, model) if measure in MODEL_READERS else []

    def measure_listings(self, dataset: str, model: str, measure: str) -> list[str]:
        """The listing of that checkpoint, where it is a retrieved folder."""
        return self.weight_listings(dataset, model) if measure in MODEL_READERS else []

    def measure_model(self, dataset: str, model: str, measure: str) -> dict | None:
        """The options of a model, for a further measure that runs it again."""
        return self.study(dataset).models[model].model_dump(mode="json") if measure in MODEL_READERS else None

    def whitenings(self, dataset: str, model: str) -> list[str]:
        """Whitenings that a model is taken through; a null model or a baseline only through those it names."""
        narrowed = self._narrowed(dataset).get(model)
        return narrowed.whitenings if narrowed else list(self.study(dataset).whitenings)

    def dictionaries(self, dataset: str, model: str) -> list[str]:
        """Dictionaries that are learned on a model; on a null model or a baseline only those it names."""
        narrowed = self._narrowed(dataset).get(model)
        return narrowed.dictionaries if narrowed else list(self.study(dataset).dictionaries)

    def _narrowed(self, dataset: str) -> Mapping[str, NullModel | Baseline]:
        """Models that are taken through some whitenings and dictionaries only."""
        study = self.study(dataset)
        return {**study.null_models, **study.baselines}

    def fits(self, dataset: str, model: str) -> list[tuple[str, int]]:
        """Every (dictionary, seed) of a model, in the configured order."""
        return [(name, seed) for name in self.dictionaries(dataset, model) for seed in self.seeds(dataset, name)]

    def seeds(self, dataset: str, dictionary: str) -> list[int]:
        """Seeds that a dictionary is fitted with: one where its method does not depend on it."""
        seedless = self.study(dataset).dictionaries[dictionary].method in SEEDLESS
        return self.config.run.seeds[:1] if seedless else self.config.run.seeds

    def processes(self, dataset: str, dictionary: str) -> int:
        """Processes that train a dictionary together."""
        return getattr(self.study(dataset).dictionaries[dictionary], "processes", 1)

    def gpus(self, dataset: str, dictionary: str) -> int:
        """GPUs that the training of a dictionary asks for."""
        return int(getattr(self.study(dataset).dictionaries[dictionary], "device", "cpu") != "cpu")

    def dictionary_names(self, *, seedless: bool, together: bool = False) -> list[str]:
        """Names of the dictionaries of all studies whose method does not (or does) depend on a seed.

        `together`: those that several processes train; else the others.
        """
        return sorted(
            {
                name
                for study in self._studies.values()
                for name, dictionary in study.dictionaries.items()
                if (dictionary.method in SEEDLESS) == seedless and (getattr(dictionary, "processes", 1) > 1) == together
            }
        )

    def methods(self, dataset: str, model: str) -> dict[str, str]:
        """The method of each dictionary of a model."""
        study = self.study(dataset)
        return {name: study.dictionaries[name].method for name in self.dictionaries(dataset, model)}

    def fit_files(self, kind: str, dataset: str, model: str, whitening: str) -> list[str]:
        """One file per fit, in the order of `fits`; kind is 'dictionary', 'card' or 'codes'."""
        folder, name = {
            "dictionary": ("dictionaries", "dictionary.safetensors"),
            "card": ("dictionaries", "card.json"),
            "codes": ("codes", "codes.parquet"),
        }[kind]
        return [
            f"{self.results}/{folder}/{self.fit_home(dataset, model, whitening, dictionary)}/{model}/{whitening}/"
            f"{dictionary}/seed{seed}/{name}"
            for dictionary, seed in self.fits(dataset, model)
        ]

    def spaces(self) -> list[tuple[str, str, str]]:
        """Every (data set, model, whitening)."""
        return [
            (dataset, model, whitening)
            for dataset in self.datasets
            for model in self.study(dataset).models
            for whitening in self.whitenings(dataset, model)
        ]

    def other_adapters(self, dataset: str, model: str) -> list[str]:
        """Adapter modules that embedding this model never reaches, so that editing them re-runs nothing here."""
        used = MODELS[self.study(dataset).models[model].adapter]
        return sorted({module.split(":")[0] for module in MODELS.values()} - {used.split(":")[0]})

    def other_methods(self, dataset: str, dictionary: str) -> list[str]:
        """Dictionary modules that learning this dictionary never reaches."""
        return self.other_modules(self.study(dataset).dictionaries[dictionary].method)

    @staticmethod
    def other_modules(method: str) -> list[str]:
        """Dictionary modules that fitting a method never reaches."""
        return sorted({module for module, *_ in METHODS.values()} - {METHODS[method][0]})

    def other_measures(self, measure: str) -> list[str]:
        """Modules of measures that taking this further one need not reach (what it imports counts all the same)."""
        import conceptome.measures

        names = [module.name for module in pkgutil.iter_modules(conceptome.measures.__path__)]
        return [f"conceptome.measures.{name}" for name in sorted(names) if name != measure]

    def source_pattern(self, kind: str) -> str:
        """Regular expression of the needed sources that are single files (kind 'file') or folders (kind 'folder')."""
        return any_of([name for name in self.needed_sources() if self.sources[name].kind == kind])

    def evidence_files(self, table: str) -> list[str]:
        """One evidence table over the spaces that have it: null models have enrichment tables only."""
        if table in FACTORIAL_TABLES:
            return [f"{self.factorial_folder()}/{table}.parquet"]
        further = next((name for name, tables in MEASURES.items() if table in tables), None)
        section = next((name for name, tables in SECTIONS.items() if table in tables), None)
        return [
            f"{self.results}/evidence/{dataset}/{model}/{whitening}/{table}.parquet"
            for dataset, model, whitening in self.spaces()
            if table in TABLES or model not in self.study(dataset).null_models
            if further is None or self.measured(dataset, further)
            if section is None or getattr(self.study(dataset), section) is not None
        ]

    def technical_flags(self, dataset: str, model: str, whitening: str) -> list[str]:
        """The table that flags technical atoms, where the study measures it (a list, so that a rule can take it)."""
        measure = next((name for name, tables in MEASURES.items() if FLAGS in tables), None)
        if measure is None or not self.measured(dataset, measure):
            return []
        return [f"{self.results}/evidence/{dataset}/{model}/{whitening}/{FLAGS}.parquet"]

    def explained_spaces(self) -> list[tuple[str, str, str]]:
        """Every (data set, model, whitening) with cards; null models have none."""
        return [
            (dataset, model, whitening)
            for dataset, model, whitening in self.spaces()
            if self.study(dataset).explanations is not None and model not in self.study(dataset).null_models
        ]

    def explained_dictionaries(self, dataset: str, model: str) -> list[str]:
        """Dictionaries of a model that have cards."""
        chosen = self.study(dataset).explanations.dictionaries
        return [name for name in self.dictionaries(dataset, model) if chosen is None or name in chosen]

    def card_pages(self, dataset: str, model: str, whitening: str) -> list[str]:
        """Pages of cards of one space: one per dictionary, the index last."""
        folder = f"{self.results}/studies/{self.config.run.name}/cards/{dataset}/{model}/{whitening}"
        return [f"{folder}/{name}.html" for name in [*self.explained_dictionaries(dataset, model), "index"]]

    def every_card_page(self) -> list[str]:
        """Pages of cards of all spaces."""
        return [page for space in self.explained_spaces() for page in self.card_pages(*space)]

    def measured(self, dataset: str, measure: str) -> bool:
        """Whether a study asks for a further measure."""
        return getattr(self.study(dataset).measures, measure) is not None

    def core_settings(self, dataset: str) -> dict:
        """What the job of the core measures is told: a further measure, switched on or changed, does not re-run it."""
        return self.study(dataset).measures.model_dump(mode="json", exclude=set(MEASURES))

    def compared_stores(self, dataset: str, model: str, measure: str) -> list[str]:
        """Activation stores of the other models that a further measure's section names under `models`.

        Raises
        ------
        ConfigError
            A model that the study does not have.
        """
        study = self.study(dataset)
        named = getattr(getattr(study.measures, measure), "models", [])
        for name in named:
            if name not in study.models:
                raise ConfigError(f"measures.{measure}.models names '{name}', which is not among the study's models")
        return [self.activations(dataset, name) for name in named if name != model]

    def measure_files(self, dataset: str, measure: str) -> list[str]:
        """Ontologies that a further measure's section names: a user's own files."""
        section = getattr(self.study(dataset).measures, measure)
        return [ontology.path for ontology in getattr(section, "ontologies", {}).values()]

    def figures(self) -> list[str]:
        """The configured figures that at least one study provides evidence for."""
        studies = self.config.studies.values()
        applies = {
            **{name: any(self.measured(dataset, name) for dataset in self.datasets) for name in MEASURES},
            "selectivity": any(study.measures.selectivity for study in studies),
            "probes": any(study.measures.probes for study in studies),
            # Ordinal labels are trends, which this figure does not show.
            "labels": any(
                name not in study.dataset.labels or study.dataset.labels[name].kind != "ordinal"
                for study in studies
                for name in study.enrichment.labels
            ),
            "gene_sets": any(study.enrichment.gene_sets or study.enrichment.own_gene_sets for study in studies),
            "residues": any(study.enrichment.residues for study in studies),
            "perturbations": any(study.enrichment.perturbations for study in studies),
            "recovery": any(study.measures.recovery for study in studies),
            "stability": len(self.config.run.seeds) > 1,
            **{name: any(getattr(study, name) is not None for study in studies) for name in SECTIONS},
            "factorial": bool(self.factorial_cells()),
        }
        return [figure for figure in self.config.run.figures if applies.get(figure, True)]

    def places(self) -> list[tuple[str, str]]:
        """Every (data set, model), in the configured order."""
        return [(dataset, model) for dataset in self.datasets for model in self.study(dataset).models]

    def activation_folders(self) -> list[str]:
        """The activation store of each of `places`."""
        return [self.activations(dataset, model) for dataset, model in self.places()]

    def evidence_settings(self, figure: str) -> dict[str, dict]:
        """What a caption needs to know of each study: null models, and the settings behind intervals and nulls."""
        if figure == "factorial":
            settings = self.config.run.factorial.model_dump(mode="json")
            return {name: {"factorial": settings} for name in self.datasets}
        return {
            name: study.model_dump(
                mode="json", include={"null_models", "baselines", "measures", "enrichment", *SECTIONS}
            )
            for name, study in self.config.studies.items()
        }

    def factorial_methods(self) -> list[str]:
        """Every method of the factorial study."""
        factorial = self.config.run.factorial
        return [*factorial.dictionaries, *factorial.remaining] if factorial else []

    def factorial_cells(self) -> list[str]:
        """One table of cells per data set, whitening and method of the factorial study; none where there is none."""
        factorial = self.config.run.factorial
        if factorial is None:
            return []
        crossed = [(whitening, method) for whitening in factorial.whitenings for method in factorial.dictionaries]
        jobs = [*crossed, *((factorial.baseline_whitening, method) for method in factorial.remaining)]
        return [
            f"{self.results}/factorial/{dataset}/{factorial.studies[dataset].model}/{whitening}/{method}.parquet"
            for dataset in self.datasets
            if dataset in factorial.studies
            for whitening, method in jobs
        ]

    def factorial_settings(self, dataset: str, method: str) -> dict:
        """What a job of the factorial study is told: another data set's or method's settings do not re-run it."""
        factorial = self.config.run.factorial
        kept = ("encoders", "dictionaries", "whitenings", "max_rows", "shrinkages", "thresholds", "null_draws")
        told = factorial.model_dump(mode="json", include={*kept, "bootstraps", "confidence", "seed"})
        setting = factorial.studies[dataset].model_dump(mode="json")
        setting["options"] = _only(method, setting["options"])
        return {**told, "options": _only(method, factorial.options), "studies": {dataset: setting}}

    def factorial_seeds(self, method: str) -> list[int]:
        """Seeds that a method of the factorial study is fitted with."""
        return self.config.run.seeds[:1] if method in SEEDLESS else self.config.run.seeds

    def factorial_files(self) -> list[str]:
        """The tables and the page of the factorial study."""
        names = [*(f"{table}.parquet" for table in FACTORIAL_TABLES), "factorial.md"]
        return [f"{self.factorial_folder()}/{name}" for name in names] if self.factorial_cells() else []

    def factorial_folder(self) -> str:
        """Where the tables of the factorial study lie."""
        return f"{self.results}/studies/{self.config.run.name}/factorial"

    def papers(self) -> dict[str, Paper]:
        """The papers of the run by the study that regenerates each."""
        return {name: study.paper for name, study in self.config.studies.items() if study.paper is not None}

    def paper_tables(self) -> list[tuple[str, str, str]]:
        """(study, table, file) of every evidence table that a paper's items name, over the study's spaces.

        Raises
        ------
        ConfigError
            An item names a table that no rule writes, or a study that the run leaves out or that does not measure it.
        """
        found: dict[tuple[str, str, str], None] = {}
        for study, paper in self.papers().items():
            for quantity in quantities(paper):
                place = quantity.study or study
                if place not in self.datasets:
                    raise ConfigError(f"study {study}: its paper reads study '{place}': add it to 'studies'")
                if quantity.table not in self.tables():
                    raise ConfigError(f"study {study}: its paper names table '{quantity.table}', which nothing writes")
                files = [path for path in self.evidence_files(quantity.table) if f"/evidence/{place}/" in path]
                if not files:
                    raise ConfigError(
                        f"study {study}: its paper names table '{quantity.table}' of {place}, which does not ask for it"
                    )
                found.update(((place, quantity.table, path), None) for path in files)
        return list(found)

    @staticmethod
    def tables() -> set[str]:
        """Names of all evidence tables."""
        sections = (*MEASURES.values(), *SECTIONS.values())
        return {*TABLES, *CORE_TABLES, *(table for tables in sections for table in tables)}

    def paper_files(self) -> list[str]:
        """The status of every figure and table of the papers, and a page for each paper."""
        names = ["numbers.parquet", "corrections.parquet", "papers.md", *(f"{study}.md" for study in self.papers())]
        return [f"{self.paper_folder()}/{name}" for name in names] if self.papers() else []

    def paper_folder(self) -> str:
        """Where the papers' pages lie."""
        return f"{self.results}/studies/{self.config.run.name}/papers"

    def figure_files(self) -> list[str]:
        """Every file of every figure: what a run is for."""
        return [
            f"{self.figure_folder(figure)}/{name}"
            for figure in self.figures()
            for name in (f"{figure}.svg", f"{figure}.png", f"{figure}.csv", "caption.md")
        ]

    def figure_folder(self, figure: str) -> str:
        """Where a figure lies."""
        return f"{self.results}/studies/{self.config.run.name}/figures/{figure}"


def _only(key: str, values: Mapping[str, object]) -> dict[str, object]:
    """Return the one entry of a mapping, if it is there."""
    return {key: values[key]} if key in values else {}


def any_of(names: Sequence[str]) -> str:
    """Regular expression that matches exactly the given names; with no names, one that matches nothing."""
    return "|".join(re.escape(name) for name in names) or r"(?!)"


def job_environment(run: Run, repository: Path) -> dict[str, str]:
    """Environment variables that every job inherits.

    Thread counts are fixed by the configuration, not by the machine: sums are then added in the same order wherever
    the run happens on the same kind of processor.
    """
    threads = str(run.threads)
    path = os.pathsep.join(str(repository / folder) for folder in ("scripts", "kernels"))
    return {
        **dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS"),
            threads,
        ),
        "PYTHONPATH": path,
        "PYTHONHASHSEED": "0",
        "MPLBACKEND": "Agg",
        "SOURCE_DATE_EPOCH": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CONCEPTOME_RESULTS": run.results,
    }
