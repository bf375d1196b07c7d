"""params.yaml: every choice of the pipeline, strictly checked before any work starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from cache.store.errors import InputError
from stages.settings.sections import (
    BackboneParams,
    ComputeParams,
    ContextParams,
    DatasetParams,
    EvalParams,
    ExtractParams,
    GraphParams,
    HeadParams,
    KMeansParams,
    ProtocolParams,
    Section,
    Seed,
    SegmentParams,
    TrainParams,
)


class Params(Section):
    """The whole of params.yaml; the meaning of each key stands beside it in that file."""

    seed: Seed
    dataset: str
    train_on: str | None = None
    eval_on: Annotated[list[str], Field(min_length=1)] | None = None
    backbone: str
    clusters: Annotated[int, Field(ge=2, le=65536)]
    datasets: dict[str, DatasetParams]
    backbones: dict[str, BackboneParams]
    extract: ExtractParams
    protocols: dict[str, ProtocolParams]
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
        named = [("dataset", self.dataset), ("train_on", self.trained)]
        named += [("eval_on", name) for name in self.evaluated]
        for key, name in named:
            if name not in self.datasets:
                raise ValueError(
                    f"{key}: {name!r} is not one of {', '.join(self.datasets)} "
                    "(the entries of `datasets`)"
                )
        if self.backbone not in self.backbones:
            raise ValueError(
                f"backbone: {self.backbone!r} is not one of {', '.join(self.backbones)} "
                "(the entries of `backbones`)"
            )
        if len(set(self.evaluated)) < len(self.evaluated):
            raise ValueError(f"eval_on: must name each once, found {', '.join(self.evaluated)}")
        return self

    @model_validator(mode="after")
    def _known_protocols(self) -> Params:
        for dataset in self.evaluated:
            names = self.datasets[dataset].protocols or self.extract.eval
            unknown = [name for name in names if name not in self.protocols]
            if unknown or len(set(names)) < len(names):
                raise ValueError(
                    f"extract.eval must name entries of `protocols` ({', '.join(self.protocols)}), "
                    f"each once, found {', '.join(names)}"
                )
        return self

    @model_validator(mode="after")
    def _every_view_used(self) -> Params:
        if self.extract.train.views > self.train.epochs:
            raise ValueError(
                f"extract.train.views ({self.extract.train.views}) must not exceed train.epochs "
                f"({self.train.epochs}), because an epoch takes one view of each image: lower "
                "views or raise epochs"
            )
        return self

    @model_validator(mode="after")
    def _unscored_labels(self) -> Params:
        data, learned = self.datasets[self.trained], self.train.labelled
        scored = self.trained in self.evaluated and data.train == data.eval
        if scored and learned is not None and not self.train.names:
            raise ValueError(
                f"train.labelled ({learned}) must not learn from the labels that are scored, found "
                f"the split {data.train} for both: put the photos to score into a split of their "
                "own (datasets.<name>.eval)"
            )
        return self

    @model_validator(mode="after")
    def _no_more_segments_than_clusters(self) -> Params:
        if (self.segment.merge_to or 0) > self.clusters:
            raise ValueError(
                f"segment.merge_to ({self.segment.merge_to}) must not exceed clusters "
                f"({self.clusters}): lower it, set it to null, or raise `clusters`"
            )
        return self

    @model_validator(mode="after")
    def _able_to_start(self) -> Params:
        head, start = self.head, self.train.start
        if start == "kmeans" and head.width is not None:
            raise ValueError(
                f"train.start: kmeans needs a head without a projection, found width {head.width}: "
                "set head.width to null, or train.start to discriminant or random"
            )
        if start != "random" and (head.level_norm or head.orthogonal):
            raise ValueError(
                f"train.start: {start} needs a head without level norms and with a free last "
                "layer: set head.level_norm and head.orthogonal to false, or train.start to random"
            )
        return self

    @property
    def data(self) -> DatasetParams:
        """Entry of `datasets` that `dataset` names."""
        return self.datasets[self.dataset]

    @property
    def vit(self) -> BackboneParams:
        """Entry of `backbones` that `backbone` names."""
        return self.backbones[self.backbone]

    @property
    def protocols_used(self) -> dict[str, ProtocolParams]:
        """Protocols of evaluation by name, in order.

        Every data set is scored by all that any of them asks for, so that scores compare.
        """
        asked = [self.datasets[name].protocols or self.extract.eval for name in self.evaluated]
        return {name: self.protocols[name] for names in asked for name in names}

    @property
    def trains_as_scored(self) -> bool:
        """True where the tiles of the first protocol are those of training."""
        first = next(iter(self.protocols_used.values()))
        same = first.short_side in (None, self.extract.train.short_side)
        return same and not (first.crop or first.window or self.extract.train.drawn)

    @property
    def segmented(self) -> tuple[str, ...]:
        """Splits that get label maps, each once: those to score and those that fit mappings."""
        sets, fits = self.eval_sets, "train" in self.eval.mapping
        fitted = [self.fitted_on(*item) for item in sets if fits]
        return tuple(dict.fromkeys([*fitted, *(split for _, split in sets)]))

    @property
    def used_levels(self) -> set[int | str]:
        """The levels that graph, head and baseline look at."""
        return {self.graph.level, *self.head.levels, self.kmeans.level}

    def used_text(self) -> str:
        """Write what this run has used as YAML: data sets, backbones and protocols in use."""
        tree = self.model_dump(mode="json", exclude={"compute"})
        in_use = {"datasets": self.used, "backbones": [self.backbone]}
        in_use["protocols"] = self.protocols_used
        for key, names in in_use.items():
            tree[key] = {name: tree[key][name] for name in names}
        return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=100)

    @property
    def trained(self) -> str:
        """The data set whose training split is learned from."""
        return self.train_on or self.dataset

    @property
    def evaluated(self) -> list[str]:
        """The data sets whose evaluation splits are scored."""
        return self.eval_on or [self.dataset]

    @property
    def used(self) -> dict[str, tuple[str, ...]]:
        """The splits to read, each once, by data set, that of training first."""
        found = {self.trained: [self.datasets[self.trained].train]}
        for name in self.evaluated:
            found.setdefault(name, []).append(self.datasets[name].eval)
        return {name: tuple(dict.fromkeys(splits)) for name, splits in found.items()}

    def split_text(self, name: str, split: str) -> str:
        """Name a split as the index does: with its data set where several are used."""
        return split if len(self.used) == 1 else f"{name}/{split}"

    @property
    def train_split(self) -> str:
        """Training split by its name in the index."""
        return self.split_text(self.trained, self.datasets[self.trained].train)

    @property
    def eval_sets(self) -> list[tuple[str, str]]:
        """Data sets to score, and their evaluation splits by their names in the index."""
        return [(name, self.split_text(name, self.datasets[name].eval)) for name in self.evaluated]

    def fitted_on(self, name: str, split: str) -> str:
        """Give the split whose labels fit the scored mapping.

        It is the training split of the same data set, or the scored split itself where the head was
        trained on another one, whose classes differ.
        """
        return self.train_split if name == self.trained else split


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of YAML 1.2: DVC writes 1e-05, which is a text in YAML 1.1."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """Read a mapping and refuse equal keys, of which YAML takes the last."""
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
    """Parse YAML as DVC reads and writes it.

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
    """True for a dotted key of params.yaml, whatever the names of its entries."""
    tree: object | None = Params
    for part in key.split("."):
        tree = _child(tree, part)
    return tree is not None


def _faults(error: ValidationError) -> list[str]:
    return [_fault(_dotted(item["loc"]), item) for item in error.errors(include_url=False)]


def _dotted(loc: tuple[int | str, ...]) -> str:
    """Give the dotted key of a location, in which pydantic also puts names of union members."""
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
