"""The sections of params.yaml.

The meaning of a key stands beside it in that file; that of the keys of data sets, backbones and
protocols, whose entries have names of their own, stands here.
"""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1, le=1_000_000)]


def _not_tiny(value: float) -> float:
    if value < 1e-6:
        raise ValueError(f"must be at least 1e-6, because float32 divides by it, found {value}")
    return value


Positive = Annotated[float, Field(gt=0, le=1e6), AfterValidator(_not_tiny)]
NotNegative = Annotated[float, Field(ge=0, le=1e6)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Rate = Annotated[float, Field(gt=0, le=10)]  # a learning rate above makes any loss infinite
Share = Annotated[float, Field(gt=0, lt=1)]
Block = Literal["first", "middle", "late", "last"] | Annotated[int, Field(ge=0)]
Stored = Literal["keys"] | Block
Level = Literal["context"] | Stored


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False,
        use_attribute_docstrings=True,
    )  # fmt: skip


def _expanded(value: str) -> str:
    """Expand ~ and environment variables, such as $EIGENSEG_DATA, in a path."""
    path = os.path.expanduser(os.path.expandvars(value))
    if "$" in path:
        raise ValueError(f"{value} names an environment variable that is not set: export it")
    return path


PathText = Annotated[str, AfterValidator(_expanded)]


LabelValue = Annotated[int, Field(ge=0, le=255)]


class DatasetParams(Section):
    root: PathText
    """a folder with `images/<split>/`, and perhaps `labels/<split>/` and `classes.txt`, or with
    loose photos; the path may be absolute, begin with ~, or name environment variables"""
    train: str
    """split that the head and both K-means learn from; `all` for loose photos"""
    eval: str
    """split that is segmented and scored"""
    format: Literal["folder", "images", "cityscapes", "ade20k", "coco_stuff", "pascal_context"] = (
        "folder"
    )
    """how it lies on disk: `folder`; `images` (`root/<split>/` with folders of any depth, without
    labels); or the layout of a benchmark"""
    classes: Count | None = None
    """number of classes that the labels of a benchmark are read with: 27 or 19 (Cityscapes), 150
    (ADE20K), 27 or 171 (COCO-Stuff), 59 or 60 (Pascal Context)"""
    subset: Count | None = None
    """images of the training split, those whose names' hashes come first; null = all"""
    white: Positive | None = None
    """value that becomes 255 in files of more than 8 bits a channel; null = the greatest of 10, 12,
    14 or 16 bits that the brightest pixel asks for"""
    values: dict[LabelValue, LabelValue] | None = None
    """classes of label values that are not the indices of classes, such as {255: 1}; the class 255
    means ignored (format `folder`)"""
    protocols: list[str] | None = None
    """`protocols` that score this data set; null = those of `extract.eval`"""

    @model_validator(mode="after")
    def _own_labels(self) -> DatasetParams:
        if self.values and self.format != "folder":
            raise ValueError(
                f"values is for format folder, found {self.format}, whose label values have a "
                "meaning already: remove it"
            )
        return self


class BackboneParams(Section):
    model: str
    """a ViT of timm, with or without the tag of its weights, or `local-dir:FOLDER` with a model
    that timm saved (the paper: ViT-S/16 at 384 px, ImageNet-21k)"""
    weights: PathText | None
    """checkpoint file, safetensors or torch; null = from the model hub, or what lies in FOLDER"""
    context: dict[Stored, Positive]
    """the cached levels that make the level `context`, each with its weight"""


def _check_windows(window: int | None, stride: int | None) -> None:
    if (window is None) != (stride is None):
        raise ValueError("window and stride are set together or both null")
    if window and stride and stride > window:
        raise ValueError(
            f"stride ({stride}) must not exceed window ({window}): pixels between windows would "
            "get no cluster"
        )


class TilesParams(Section):
    short_side: Annotated[int, Field(ge=1, le=16384)]
    window: Count | None
    stride: Count | None
    views: Count
    scale: (
        Annotated[list[Annotated[float, Field(ge=0.01, le=100)]], Field(min_length=2, max_length=2)]
        | None
    )
    crop: Count | None
    area: (
        Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2)]
        | None
    )
    flip: bool
    colour: Annotated[float, Field(ge=0, le=2)]
    seed: Seed

    @property
    def drawn(self) -> bool:
        """True where views differ from the image itself."""
        return bool(self.scale or self.crop or self.flip or self.colour)

    @model_validator(mode="after")
    def _different(self) -> TilesParams:
        if self.views > 1 and not self.drawn:
            raise ValueError(
                f"views ({self.views}) must be 1 where all views are the same: set scale, crop, "
                "flip or colour"
            )
        if self.scale and self.scale[0] > self.scale[1]:
            raise ValueError(f"scale must be [least, greatest], found {self.scale}")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> TilesParams:
        if self.drawn and self.window:
            raise ValueError(
                "views are cut out by crop: set window and stride to null, or draw no views"
            )
        if self.area and (self.scale or not self.crop or self.area[0] > self.area[1]):
            raise ValueError(
                f"area must be [least, greatest] beside a crop and without a scale, found "
                f"{self.area}, crop {self.crop}, scale {self.scale}: set scale or area to null"
            )
        _check_windows(self.window, self.stride)
        return self


class ExtractParams(Section):
    train: TilesParams
    eval: Annotated[list[str], Field(min_length=1)]
    blocks: Annotated[list[Block], Field(min_length=1)]
    final_norm: list[Block]
    keys: bool
    precision: Literal["auto", "float32", "bfloat16"]
    dtype: Literal["float16", "int8"]
    batch: Count


class PixelGraphParams(Section):
    k: Count
    weight: NotNegative


class ProtocolParams(Section):
    short_side: Annotated[int, Field(ge=1, le=16384)] | None
    """px that the short side is resized to; null = `extract.train.short_side`"""
    crop: Count | None
    """px, side of the square in the centre that is scored; null = the whole image"""
    window: Count | None
    """px, side of sliding windows, whose scores are averaged in pixels; null = none"""
    stride: Count | None
    """px between windows"""

    @model_validator(mode="after")
    def _one_way(self) -> ProtocolParams:
        _check_windows(self.window, self.stride)
        if self.crop and self.window:
            raise ValueError("a protocol has a crop or windows, not both: set one to null")
        if self.short_side is None and (self.crop or self.window):
            raise ValueError("a protocol with a crop or windows needs a short_side")
        return self


class ContextParams(Section):
    components: Count
    temperature: Positive
    reach: Positive


class GraphParams(Section):
    level: Level
    scope: Literal["group", "dataset", "batch"]
    group_patches: Count
    k: Count | Share
    recall: Annotated[float, Field(gt=0, le=1)]
    other_images: bool
    alpha: NotNegative
    seed: Seed
    pixel: Annotated[list[PixelGraphParams], Field(min_length=1)]

    @model_validator(mode="after")
    def _countable(self) -> GraphParams:
        if self.scope == "dataset" and isinstance(self.k, float):
            raise ValueError(
                f"k ({self.k}) must be a count, such as 32, with scope dataset: a fraction of all "
                "patches would be thousands of neighbours each"
            )
        if self.scope != "dataset" and self.other_images:
            raise ValueError(
                "other_images needs scope dataset: the images of a group are few and random"
            )
        return self


class HeadParams(Section):
    levels: Annotated[list[Level], Field(min_length=1)]
    width: Count | None
    depth: Annotated[int, Field(ge=0, le=1000)]
    head_dim: Count
    mlp_hidden: Count
    level_norm: bool
    orthogonal: bool
    heads: Count | None
    qkv_bias: bool
    last_bias: bool


class DiscriminantParams(Section):
    clusters: Annotated[int, Field(ge=2)] | None
    runs: Count


def _names_file(value: str) -> str:
    if not value.endswith(".json"):
        raise ValueError(
            f"must be null, a number of images, all or the names.json of an atlas, found {value!r}"
        )
    return value


class TrainParams(Section):
    labelled: Count | Literal["all"] | Annotated[PathText, AfterValidator(_names_file)] | None
    choose: Literal["different", "typical", "random"]
    start: Literal["discriminant", "kmeans", "random"]
    start_scale: Positive
    discriminant: DiscriminantParams
    epochs: Count
    precision: Literal["auto", "float32", "bfloat16"]
    lr: Rate
    lr_end: NotNegative
    beta: NotNegative | None
    tau_start: Positive
    tau_end: Positive

    @property
    def names(self) -> str | None:
        """The file of names to learn from, if `labelled` gives one."""
        return self.labelled if isinstance(self.labelled, str) and self.labelled != "all" else None

    @model_validator(mode="after")
    def _falling(self) -> TrainParams:
        if self.lr_end > self.lr:
            raise ValueError(
                f"lr_end ({self.lr_end:g}) must not exceed lr ({self.lr:g}), from which the rate "
                "falls to it: lower lr_end as well"
            )
        return self


class KMeansParams(Section):
    level: Level
    spherical: bool
    whiten: Count | None


class SegmentParams(Section):
    temperature: Positive | None
    crf: Literal["none", "ours", "program", "program_constant_guide"]
    merge_to: Annotated[int, Field(ge=2)] | None
    names: PathText | None

    @model_validator(mode="after")
    def _one_softmax(self) -> SegmentParams:
        if self.crf.startswith("program") and self.temperature is not None:
            raise ValueError(
                f"the CRF `{self.crf}` puts logits through a softmax itself, found a softmax of "
                f"temperature {self.temperature} before it: set temperature to null, or choose the "
                "CRF `ours`"
            )
        return self


class EvalParams(Section):
    mapping: Annotated[list[Literal["oracle", "train"]], Field(min_length=1)]
    labelled: Literal[1, 2, 5, 10, "all"]


class ComputeParams(Section):
    device: Literal["auto", "cpu", "cuda"]
    scheduler: Annotated[str, Field(pattern=r"^(sync|threads|local|tcp://.+)$")]
    threads: Count | None

    @property
    def gpu(self) -> bool:
        """True where a GPU may be used if there is one."""
        return self.device != "cpu"
