"""What a model adapter is given."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from conceptome.config.base import Strict


class ModelBase(Strict):
    """Keys that every adapter shares."""

    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="how activations are stored: float32 or bfloat16"
    )
    rows_per_shard: int = Field(65_536, gt=0, description="rows of a shard of the activation store")
    seed: int = Field(0, description="of whatever the model draws")


SITES = ("hidden", "residual", "normalised", "attention", "feed_forward")
Site = Literal["hidden", "residual", "normalised", "attention", "feed_forward"]
SITE = (
    "hidden: the model's hidden states as its own library numbers them (the last one after the final norm); residual: "
    "the residual stream after the layer, before any norm; normalised: what the norm that follows makes of it; "
    "attention, feed_forward: what that half of the layer adds to the residual stream"
)
ALSO = "further layers of the same forward pass, stored beside this one for the measure `layers`"
Compute = Literal["float32", "bfloat16"]
COMPUTE = (
    "bfloat16: matrix products in half width, faster where the processor multiplies it, to two or three digits; what "
    "is stored follows dtype"
)


class Checkpoint(ModelBase):
    """Keys of models whose weights are ready: from a source, a local folder or a hub (exactly one of the three)."""

    source: str | None = Field(None, description="name in config/sources.yaml of a package that carries a checkpoint")
    path: str | None = Field(None, description="local folder of the checkpoint, as docs/models.md lists its files")
    hub: str | None = Field(None, description="hub name (owner/model); needs revision")
    revision: str | None = Field(None, description="commit of the hub's checkpoint: the weights stay fixed")
    stand_in: str | None = Field(None, description="what the checkpoint really is, when it stands in for another")

    @model_validator(mode="after")
    def _one_origin(self) -> Checkpoint:
        if sum(origin is not None for origin in (self.source, self.path, self.hub)) != 1:
            raise ValueError("give exactly one of 'source' (config/sources.yaml), 'path' (a local folder) and 'hub'")
        if self.hub is not None and self.revision is None:
            raise ValueError("'hub' needs 'revision' (a commit), so that the weights stay fixed")
        return self


class Layered(Checkpoint):
    """Keys of models of which a layer is taken."""

    layer: int | None = Field(
        None, ge=0, description="0 is the embedding, i the output of layer i; null: the last, see docs/models.md"
    )
    also_layers: list[int] = Field([], description=ALSO)
    site: Site = Field("hidden", description=SITE)
    compute: Compute = Field("float32", description=COMPUTE, exclude_if=lambda compute: compute == "float32")

    @model_validator(mode="after")
    def _layers_once(self) -> Layered:
        if len(set(self.also_layers)) < len(self.also_layers) or self.layer in self.also_layers:
            raise ValueError("'also_layers' must not repeat a layer")
        return self


class Scvi(ModelBase):
    """An scVI model trained on the data set's counts; activations of the encoder's hidden layer or its latent mean."""

    adapter: Literal["scvi"]
    layer: Literal["encoder", "latent"] = Field("encoder", description="encoder (its hidden layer) or latent")
    n_hidden: int = Field(128, gt=0, description="width of the hidden layers")
    n_latent: int = Field(10, gt=0, description="width of the latent layer")
    n_layers: int = Field(1, gt=0, description="hidden layers")
    max_epochs: int = Field(100, gt=0, description="passes over the training cells")
    batch_size: int = Field(128, gt=0, description="cells per step")


class Pca(ModelBase):
    """Principal components of the data set's normalised expression or features, fitted on the training split."""

    adapter: Literal["pca"]
    n_components: int = Field(50, gt=0, description="components")


class ProfileFeatures(ModelBase):
    """The features themselves."""

    adapter: Literal["profiles"]


class Esm2(ModelBase):
    """ESM-2, one activation per residue; weights from a source, a local folder or a hub (exactly one of the three)."""

    adapter: Literal["esm2"]
    source: str | None = Field(None, description="name in config/sources.yaml of a package that carries a checkpoint")
    path: str | None = Field(None, description="local folder with config.json, vocab.txt and weights")
    hub: str | None = Field(None, description="hub name, e.g. facebook/esm2_t6_8M_UR50D; needs revision")
    revision: str | None = Field(None, description="revision of a checkpoint of a hub, for the card")
    layer: int = Field(3, ge=0, description="hidden state: 0 is the embedding, i the output of layer i")
    shuffle_weights: bool = Field(False, description="permute every weight tensor's entries: the null model")
    tokens_per_batch: int = Field(4096, gt=0, description="largest batch, padding included")
    stand_in: str | None = Field(None, description="what the checkpoint really is, when it stands in for another")
    # Left out of what is written down while they say nothing, so that runs from before these keys stay as they are.
    also_layers: list[int] = Field([], description=ALSO, exclude_if=lambda layers: not layers)
    site: Site = Field("hidden", description=SITE, exclude_if=lambda site: site == "hidden")
    compute: Compute = Field("float32", description=COMPUTE, exclude_if=lambda compute: compute == "float32")
    pool: Literal["tokens", "mean"] = Field(
        "tokens",
        description="tokens: one row per residue; mean: one per protein",
        exclude_if=lambda pool: pool == "tokens",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Esm2:
        if len(set(self.also_layers)) < len(self.also_layers) or self.layer in self.also_layers:
            raise ValueError("'also_layers' must not repeat a layer")
        if sum(origin is not None for origin in (self.source, self.path, self.hub)) != 1:
            raise ValueError("give exactly one of 'source' (config/sources.yaml), 'path' (a local folder) and 'hub'")
        if self.hub is not None and self.revision is None:
            raise ValueError("'hub' needs 'revision' (a commit), so that the weights stay fixed")
        return self


class ProteinModel(Layered):
    """Keys of protein language models."""

    pool: Literal["tokens", "mean"] = Field("tokens", description="tokens: one row per residue; mean: one per protein")
    tokens_per_batch: int = Field(4096, gt=0, description="largest batch, padding included")


class Esmc(ProteinModel):
    """ESM-C (Cambrian) in transformers' format, one activation per residue or protein."""

    adapter: Literal["esmc"]


class ProteinBert(ProteinModel):
    """A BERT encoder of proteins: AntiBERTy or ProtBert, one activation per residue or protein."""

    adapter: Literal["protein_bert"]


class ProteinT5(ProteinModel):
    """A T5 encoder of proteins: ProtT5 or Ankh, one activation per residue or protein."""

    adapter: Literal["protein_t5"]


class Unirep(ProteinModel):
    """UniRep's multiplicative LSTM of 64, 256 or 1,900 units; hidden states alone (`site: hidden`)."""

    adapter: Literal["unirep"]

    @model_validator(mode="after")
    def _hidden(self) -> Unirep:
        if self.site != "hidden":
            raise ValueError("'unirep' is recurrent: it has the site 'hidden' alone")
        return self


class CellModel(Layered):
    """Keys of single-cell models that read a cell as a sequence of genes."""

    pool: Literal["mean", "cls", "tokens"] = Field(
        "mean", description="mean over a cell's genes; cls: its class token; tokens: one row per gene of a cell"
    )
    tokens_per_batch: int = Field(16_384, gt=0, description="largest batch, padding included")


class Geneformer(CellModel):
    """Geneformer: a cell as its genes, ranked by expression over the gene's median; a BERT encoder."""

    adapter: Literal["geneformer"]
    dictionaries: str | None = Field(
        None, description="folder of the token, median and name dictionaries; null: that of the checkpoint"
    )
    subfolder: str | None = Field(None, description="folder of the model in the hub's repository")


class Scgpt(CellModel):
    """scGPT: a cell as pairs of gene and binned expression; its own encoder, rebuilt here."""

    adapter: Literal["scgpt"]
    pool: Literal["mean", "cls", "tokens"] = Field(
        "cls", description="mean over a cell's genes; cls: its class token; tokens: one row per gene of a cell"
    )
    max_length: int = Field(1200, gt=1, description="tokens of a cell; of longer ones a seeded sample of genes")
    bins: int = Field(51, gt=2, description="bins of expression, by the quantiles of each cell")


class Intensity(Strict):
    """How a channel's 8 or 16 bits become what a vision model reads; limits are those of each channel by itself."""

    method: Literal["percentile", "clip", "standardize"] = Field(
        "percentile",
        description="percentile: low and high are percents of the reference pixels, mapped to 0 and 1; clip: low and "
        "high are pixel values, mapped to 0 and 1; standardize: minus mean, over deviation of the reference pixels, "
        "clipped at low and high, and not normalised again",
    )
    low: float = Field(0.5, description="see method")
    high: float = Field(99.9, description="see method")
    log: bool = Field(False, description="take log(1 + pixel) before (percentile, standardize)")
    reference: Literal["training_controls", "plate_controls", "crop"] = Field(
        "training_controls",
        description="pixels that percentiles, mean and deviation are of: controls of the training split; the controls "
        "of each plate (`batch`), whatever their split; or the crop itself, which takes its brightness away",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Intensity:
        if self.low >= self.high:
            raise ValueError(f"intensity.low ({self.low}) must be below intensity.high ({self.high})")
        if self.method == "percentile" and not 0 <= self.low < self.high <= 100:
            raise ValueError("intensity.low and high are percents for method percentile: between 0 and 100")
        if self.method == "clip" and (self.log or self.reference != "training_controls"):
            raise ValueError("method clip takes pixel values as limits: it has no log and no reference")
        return self


class VisionBase(ModelBase):
    """Keys that every vision adapter shares: which pixels the model is given, and which tokens are kept."""

    channels: list[str] | None = Field(None, description="channels of the data set that are read, in order; null: all")
    views: Literal["together", "each"] = Field(
        "together",
        description="together: the channels are the model's input channels; each: one pass per channel, repeated to "
        "the model's input channels, and the activations side by side",
    )
    intensity: Intensity = Field(Intensity(), description="from 16 bits to the model's input")
    input_size: int = Field(
        224, gt=0, description="height and width of the model's input; crops are resized (bilinear)"
    )
    input_channels: int = Field(3, gt=0, description="channels of the model's input")
    mean: list[float] = Field([0.485, 0.456, 0.406], description="subtracted per input channel (ImageNet's)")
    std: list[float] = Field([0.229, 0.224, 0.225], description="divided by per input channel (ImageNet's)")
    pool: Literal["mean", "cls"] = Field("mean", description="mean of the patch tokens, or the first token")
    prefix_tokens: int = Field(1, ge=0, description="tokens before the patches (class, registers)")
    batch_size: int = Field(16, gt=0, description="images per forward pass")

    @model_validator(mode="after")
    def _per_channel(self) -> VisionBase:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.input_channels:
                raise ValueError(f"'{name}' needs one value per input channel ({self.input_channels})")
        if min(self.std) <= 0:
            raise ValueError("'std' must be positive")
        if self.pool == "cls" and self.prefix_tokens == 0:
            raise ValueError("pool: cls needs a token before the patches (prefix_tokens)")
        return self


class Onnx(VisionBase):
    """Any vision backbone as ONNX, at any tensor of its graph; weights from a source or a local file."""

    adapter: Literal["onnx"]
    source: str | None = Field(None, description="name in config/sources.yaml of an ONNX file")
    path: str | None = Field(None, description="a local ONNX file")
    layer: str = Field(
        description="tensor whose values are the activations: tokens (b, t, d), maps (b, d, h, w) or (b, d)"
    )
    # Left out of what is written down while it says nothing, as in Esm2.
    also_layers: list[str] = Field(
        [],
        description="earlier tensors of the same forward pass, from the first on, stored beside `layer` as layers 1, 2 "
        "and so on for the measure `layers`; `layer` itself is numbered after them",
        exclude_if=lambda layers: not layers,
    )
    stand_in: str | None = Field(None, description="what the model really is, when it stands in for another")

    @model_validator(mode="after")
    def _one_origin(self) -> Onnx:
        if (self.source is None) == (self.path is None):
            raise ValueError("give exactly one of 'source' (config/sources.yaml) and 'path' (a local ONNX file)")
        if len(set(self.also_layers)) < len(self.also_layers) or self.layer in self.also_layers:
            raise ValueError("'also_layers' must not repeat a layer")
        return self


class VisionModel(VisionBase, Layered):
    """Keys of vision models whose layers are taken."""


class Timm(VisionModel):
    """Any timm model, from a folder with its config.json and weights (UNI and other pathology encoders among them)."""

    adapter: Literal["timm"]


class TransformersVision(VisionModel):
    """A vision transformer of transformers: ViT (Phikon), DINOv2 (Phikon-v2), DINOv2 with registers, DINOv3."""

    adapter: Literal["transformers_vision"]


class ChannelAgnosticMae(VisionModel):
    """A channel-agnostic masked autoencoder (OpenPhenom): any number of channels, each standardised by itself."""

    adapter: Literal["channel_agnostic_mae"]
    input_size: int = Field(256, gt=0, description="height and width of the model's input; crops are resized")
    channelwise: bool = Field(False, description="mean tokens of each channel side by side, rather than over all")


class IntensityFeatures(ModelBase):
    """Mean and standard deviation of each channel of a crop: the baseline that knows brightness and nothing else."""

    adapter: Literal["intensity"]


class CpMeasure(ModelBase):
    """Classic CellProfiler features by cp_measure, of the nucleus and of the whole crop."""

    adapter: Literal["cp_measure"]
    nucleus_channel: str = Field(description="channel that the nucleus is found in")
    features: list[Literal["intensity", "sizeshape", "texture", "granularity", "radial_distribution", "zernike"]] = (
        Field(
            ["intensity", "sizeshape", "texture", "radial_distribution"],
            min_length=1,
            description="families of features",
        )
    )


class Autoencoder(ModelBase):
    """A ReLU autoencoder trained on simulated data (Schuster); activations of its latent layer."""

    adapter: Literal["autoencoder"]
    width: int = Field(100, gt=0, description="width of the latent layer")
    depth: Literal[2, 4, 6] = Field(2, description="linear layers of the encoder, and of the decoder")
    epochs: int = Field(100, gt=0, description="passes over the training samples")
    batch_size: int = Field(256, gt=0, description="samples per step")
    learning_rate: float = Field(1e-3, gt=0, description="of Adam")


class Dgd(ModelBase):
    """A deep generative decoder trained on the data set's counts (as in multiDGD); activations are its latents."""

    adapter: Literal["dgd"]
    n_latent: int = Field(20, gt=0, description="width of the latent layer")
    n_components: int = Field(10, gt=0, description="Gaussians in the mixture over the latent space")
    n_hidden: int = Field(100, gt=0, description="width of the decoder's hidden layers")
    n_layers: int = Field(2, gt=0, description="hidden layers of the decoder")
    epochs: int = Field(200, gt=0, description="passes over the training cells")
    batch_size: int = Field(128, gt=0, description="cells per step")
    learning_rate: float = Field(1e-3, gt=0, description="of Adam, for the decoder")
    latent_learning_rate: float = Field(1e-2, gt=0, description="of Adam, for latents and mixture")
    latent_steps: int = Field(100, gt=0, description="steps that find a cell's latent once the decoder is trained")
    radius: float = Field(2.0, gt=0, description="of the ball in which the prior keeps the means of the mixture")


Model = Annotated[
    Scvi
    | Pca
    | ProfileFeatures
    | Esm2
    | Esmc
    | ProteinBert
    | ProteinT5
    | Unirep
    | Geneformer
    | Scgpt
    | Onnx
    | Timm
    | TransformersVision
    | ChannelAgnosticMae
    | IntensityFeatures
    | CpMeasure
    | Autoencoder
    | Dgd,
    Field(discriminator="adapter"),
]


class Whitening(Strict):
    """A linear map fitted on the training split: on its control rows, or on all.

    none: the identity; standardize: mean and standard deviation per dimension; pca: principal axes scaled to unit
    variance.
    """

    method: Literal["none", "standardize", "pca"] = Field(description="pca, standardize or none")
    n_components: int | None = Field(None, gt=0, description="pca: axes kept; null: all")
    shrinkage: float = Field(
        0.0, ge=0, le=1, description="covariance ← (1−s)·covariance + s·mean eigenvalue·I (Ledoit-Wolf target)"
    )
    floor: float = Field(1e-6, ge=0, description="eigenvalues below floor × the largest are raised to it")
    fit_on: Literal["control", "all"] = Field(
        "control", description="rows of the training split that it is fitted on: the controls, or all"
    )
    unit_norm: bool = Field(False, description="scale rows to unit length after the map (as ICFL's paper does)")
