"""params.yaml: every choice of the pipeline, strictly checked before any work starts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from cache.store.errors import InputError

Count = Annotated[int, Field(ge=1, le=1_000_000)]


def _not_tiny(value: float) -> float:
    if value < 1e-6:
        raise ValueError(f"must be at least 1e-6, for float32 divides by it, found {value}")
    return value


Positive = Annotated[float, Field(gt=0, le=1e6), AfterValidator(_not_tiny)]
NotNegative = Annotated[float, Field(ge=0, le=1e6)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Rate = Annotated[float, Field(gt=0, le=10)]  # a learning rate above makes any loss infinite
Share = Annotated[float, Field(gt=0, lt=1)]
Block = Literal["first", "middle", "late", "last"] | Annotated[int, Field(ge=0)]
Stored = Literal["keys"] | Block
Level = Literal["context"] | Stored


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _expanded(value: str) -> str:
    """A path with its environment variables, such as $EIGENSEG_DATA, put in."""
    path = os.path.expandvars(value)
    if "$" in path:
        raise ValueError(f"{value} names an environment variable that is not set: export it")
    return path


PathText = Annotated[str, AfterValidator(_expanded)]


class DatasetParams(_Section):
    root: PathText
    train: str
    eval: str
    format: Literal["folder", "images", "cityscapes", "ade20k", "coco_stuff", "pascal_context"] = (
        "folder"
    )
    classes: Count | None = None
    subset: Count | None = None


class BackboneParams(_Section):
    model: str
    weights: PathText | None
    context: dict[Stored, Positive]


class ViewParams(_Section):
    count: Count
    scale: (
        Annotated[list[Annotated[float, Field(ge=0.01, le=100)]], Field(min_length=2, max_length=2)]
        | None
    )
    crop: Count | None
    flip: bool
    colour: Annotated[float, Field(ge=0, le=2)]
    seed: Seed

    @property
    def drawn(self) -> bool:
        """Whether there is anything to draw: else the image as it is is trained on."""
        return bool(self.scale or self.crop or self.flip or self.colour)

    @model_validator(mode="after")
    def _different(self) -> ViewParams:
        if self.count > 1 and not self.drawn:
            raise ValueError(
                f"count ({self.count}) must be 1 where all views are the same: set scale, crop, "
                "flip or colour"
            )
        if self.scale and self.scale[0] > self.scale[1]:
            raise ValueError(f"scale must be [least, greatest], found {self.scale}")
        return self


class ExtractParams(_Section):
    short_side: Annotated[int, Field(ge=1, le=16384)]
    window: Count | None
    stride: Count | None
    blocks: Annotated[list[Block], Field(min_length=1)]
    final_norm: list[Block]
    keys: bool
    precision: Literal["auto", "float32", "bfloat16"]
    dtype: Literal["float16", "int8"]
    batch: Count
    views: ViewParams

    @model_validator(mode="after")
    def _consistent(self) -> ExtractParams:
        if self.views.drawn and self.window:
            raise ValueError(
                "views are cut out by views.crop: set window and stride to null, or draw no views"
            )
        if (self.window is None) != (self.stride is None):
            raise ValueError("window and stride are set together or both null")
        if self.window and self.stride and self.stride > self.window:
            raise ValueError(
                f"stride ({self.stride}) must not exceed window ({self.window}): pixels between "
                "windows would get no cluster"
            )
        return self


class PixelGraphParams(_Section):
    k: Count
    weight: NotNegative


class ContextParams(_Section):
    components: Count
    temperature: Positive
    reach: Positive


class GraphParams(_Section):
    level: Level
    scope: Literal["group", "dataset", "batch"]
    group_images: Count
    rounds: Count
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
                "other_images asks for scope dataset: the images of a batch are few and random"
            )
        return self


class HeadParams(_Section):
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


class TrainParams(_Section):
    objective: Literal["neuralef", "pmi"]
    power: Annotated[float, Field(gt=0, le=1)]
    start: Literal["kmeans", "random"]
    start_scale: Positive
    epochs: Count
    lr: Rate
    lr_end: NotNegative
    beta: NotNegative | None
    tau_start: Positive
    tau_end: Positive


class KMeansParams(_Section):
    level: Level
    spherical: bool
    whiten: Count | None


class SegmentParams(_Section):
    temperature: Positive | None
    crf: Literal["none", "ours", "program", "program_constant_guide"]
    merge_to: Annotated[int, Field(ge=2)] | None
    names: PathText | None


class EvalParams(_Section):
    labelled: Literal[1, 2, 5, 10, "all"]


class ComputeParams(_Section):
    device: Literal["auto", "cpu", "cuda"]
    scheduler: Annotated[str, Field(pattern=r"^(sync|threads|local|tcp://.+)$")]
    threads: Count | None


class Params(_Section):
    """The whole of params.yaml; the meaning of each key stands beside it in that file."""

    seed: Seed
    dataset: str
    backbone: str
    clusters: Annotated[int, Field(ge=2, le=65536)]
    datasets: dict[str, DatasetParams]
    backbones: dict[str, BackboneParams]
    extract: ExtractParams
    context: ContextParams
    graph: GraphParams
    head: HeadParams
    train: TrainParams
    kmeans: KMeansParams
    segment: SegmentParams
    eval: EvalParams
    compute: ComputeParams

    @model_validator(mode="after")
    def _known_names(self) -> Params:
        for key, names in (("dataset", self.datasets), ("backbone", self.backbones)):
            if getattr(self, key) not in names:
                raise ValueError(
                    f"{key}: {getattr(self, key)!r} is not one of {', '.join(names)} "
                    f"(the entries of `{key}s`)"
                )
        return self

    @model_validator(mode="after")
    def _every_view_used(self) -> Params:
        if self.graph.scope != "batch" and self.extract.views.count > self.graph.rounds:
            raise ValueError(
                f"graph.rounds ({self.graph.rounds}) must be at least extract.views.count "
                f"({self.extract.views.count}), for a round takes one view of each image: raise "
                "graph.rounds, or set graph.scope to batch"
            )
        return self

    @model_validator(mode="after")
    def _able_to_start(self) -> Params:
        head = self.head
        changed = head.width is not None or head.level_norm or head.orthogonal
        if self.train.start == "kmeans" and changed:
            raise ValueError(
                "train.start: a head that starts from K-means takes its tokens as they are: set "
                "head.width to null, head.level_norm and head.orthogonal to false, or train.start "
                "to random"
            )
        return self

    @property
    def data(self) -> DatasetParams:
        """The entry of `datasets` that `dataset` names."""
        return self.datasets[self.dataset]

    @property
    def vit(self) -> BackboneParams:
        """The entry of `backbones` that `backbone` names."""
        return self.backbones[self.backbone]

    @property
    def used_levels(self) -> set[int | str]:
        """The levels that graph, head and baseline look at."""
        return {self.graph.level, *self.head.levels, self.kmeans.level}

    @property
    def splits(self) -> tuple[str, ...]:
        """The training and the evaluation split, each once."""
        return tuple(dict.fromkeys((self.data.train, self.data.eval)))


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of YAML 1.2: DVC writes 0.00001 as 1e-05, to YAML 1.1 a text."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping whose keys are all different: YAML takes the last of two without a word."""
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    twice = sorted({str(key) for key in keys if keys.count(key) > 1})
    if twice:
        raise yaml.YAMLError(
            f"keys must stand once, found twice: {', '.join(twice)}{node.start_mark}"
        )
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse(text: str) -> Any:
    """What a text in YAML says, read as DVC reads and writes it.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return yaml.load(text, _Loader)


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check the parameters.

    Raises:
        InputError: the file is missing or not YAML, or keys are unknown, missing or of a wrong
            value; every fault is listed with its dotted key and the values that are valid.
    """
    try:
        tree = parse(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path} is missing: run the command in the project's folder, or give --params."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {error}") from error
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply to be read: restore the file.") from error
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        faults = "\n".join(f"  {line}" for line in dict.fromkeys(_faults(error)))
        raise InputError(f"{path} has faults:\n{faults}") from error


def is_parameter(key: str) -> bool:
    """Whether a dotted key is one of params.yaml, whatever the names of its entries."""
    tree: object | None = Params
    for part in key.split("."):
        tree = _child(tree, part)
    return tree is not None


def _faults(error: ValidationError) -> list[str]:
    return [_fault(_dotted(item["loc"]), item) for item in error.errors(include_url=False)]


def _dotted(loc: tuple[int | str, ...]) -> str:
    """The dotted key: pydantic also puts the names of union members into the location."""
    tree: object = Params
    keys: list[str] = []
    for part in loc:
        following = _child(tree, part)
        if following is not None:
            keys.append(str(part))
            tree = following
        elif not keys or (isinstance(tree, type) and issubclass(tree, BaseModel)):
            keys.append(str(part))
    return ".".join(keys)


def _child(tree: object, part: int | str) -> object | None:
    if isinstance(tree, type) and issubclass(tree, BaseModel):
        field = tree.model_fields.get(str(part))
        return field.annotation if field else None
    container, arguments = get_origin(tree), get_args(tree)
    if container is Annotated:
        return _child(arguments[0], part)
    if (container is dict and isinstance(part, str)) or (
        container is list and isinstance(part, int)
    ):
        return arguments[-1]
    return None


def _fault(key: str, item: object) -> str:
    details: dict = item  # type: ignore[assignment]
    if details["type"] == "extra_forbidden":
        return f"{key}: unknown key; valid here: {', '.join(_siblings(key))}"
    if details["type"] == "missing":
        return f"{key}: missing, add it"
    message = details["msg"].removeprefix("Value error, ")
    if details["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message}, found {details['input']!r}"


def _siblings(key: str) -> list[str]:
    tree: object = Params
    for part in key.split(".")[:-1]:
        step: int | str = int(part) if part.isdigit() else part
        tree = _child(tree, step)
    return list(tree.model_fields) if isinstance(tree, type) else []  # type: ignore[attr-defined]
