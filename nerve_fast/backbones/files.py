"""Which files of a folder or of a hub's repository a model needs, and what is read from them."""

import dataclasses
import json
import math
import os
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from nerve_fast.errors import InputError

VARIANTS = ("", "fp16", "bf16")
"""In the names of weights, in the order in which they are preferred; the first has no mark."""

MOST = 1 << 20
MOST_LAYERS = 512
"""Whole numbers of configurations above these are damage; the second is for counts of layers."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of one network: one file, or an index and the shards that it lists.

    Attributes:
        file: the file or the index, relative to the model's folder.
        variant: the mark in the file's name, or ``None``.
        safe: whether the format is safetensors, or else PyTorch's.
    """

    file: str
    variant: str | None
    safe: bool

    def is_part(self, name: str) -> bool:
        """Whether a file of this name is needed: the file itself, or a shard of the index."""
        if name == self.file:
            return True
        index, path = PurePosixPath(self.file), PurePosixPath(name)
        variant = next((mark for mark in VARIANTS[1:] if f".{mark}" in path.name), None)
        return (
            index.suffix == ".json"
            and path.parent == index.parent
            and path.name.startswith(index.name.partition(".")[0])
            and "-of-" in path.name
            and path.suffix == (".safetensors" if self.safe else ".bin")
            and variant == self.variant
        )


@dataclasses.dataclass(frozen=True)
class Network:
    """One network of a model.

    Attributes:
        folder: below the model's; empty where the model is one network.
        stems: names of the weights without ending, in safetensors and in PyTorch's format.
    """

    folder: str = ""
    stems: tuple[str, str] = ("model", "pytorch_model")

    @property
    def config(self) -> str:
        """The name of the configuration."""
        return _below(self.folder, "config.json")

    def candidates(self) -> Iterator[Weights]:
        """Every way in which the weights may be stored, the preferred ones first."""
        for variant in VARIANTS:
            mark = f".{variant}" if variant else ""
            for stem, ending in zip(self.stems, ("safetensors", "bin"), strict=True):
                safe = ending == "safetensors"
                for name in (f"{stem}{mark}.{ending}", f"{stem}.{ending}.index{mark}.json"):
                    yield Weights(_below(self.folder, name), variant or None, safe)

    def weights(self, names: Collection[str]) -> Weights | None:
        """The preferred weights among files of these names."""
        return next((found for found in self.candidates() if found.file in names), None)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The files of a kind of model.

    Attributes:
        networks: all of which are needed.
        others: files besides; of each tuple any one is enough.
    """

    networks: tuple[Network, ...]
    others: tuple[tuple[str, ...], ...] = ()

    def required(self) -> list[tuple[str, ...]]:
        """Names of files; of each tuple any one is enough, of weights a variant as well."""
        required = list(self.others)
        for network in self.networks:
            plain = [found.file for found in network.candidates() if found.variant is None]
            required += [(network.config,), tuple(plain)]
        return required

    def missing(self, names: Collection[str]) -> tuple[str, ...] | None:
        """The first tuple of :meth:`required` of which ``names`` has none."""
        variants = {
            found.file
            for network in self.networks
            for found in network.candidates()
            if network.weights(names) is not None
        }
        return next(
            (wanted for wanted in self.required() if not {*wanted} & {*names, *variants}), None
        )

    def needed(self, names: Collection[str]) -> list[str]:
        """Select the files of a repository that loading reads; of weights in many formats, one."""
        folders = {str(PurePosixPath(name).parent) for wanted in self.required() for name in wanted}
        described = {
            name
            for name in names
            if str(PurePosixPath(name).parent) in folders
            and PurePosixPath(name).suffix in (".json", ".txt", ".model")
        }
        weights = filter(None, (network.weights(names) for network in self.networks))
        return sorted(
            described | {name for found in weights for name in names if found.is_part(name)}
        )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A folder that holds all files of a model.

    Attributes:
        folder: the model's.
        revision: the commit of the hub's repository that the folder is a copy of, or ``None``.
    """

    folder: Path
    revision: str | None = None

    def network(self, network: Network, kind: type[Any], dtype: torch.dtype, **options: Any) -> Any:
        """Load a network of a class of transformers or diffusers; no code of the folder is run.

        Args:
            network: says which files.
            kind: the class.
            dtype: of its weights.
            options: further arguments of the class.

        Raises:
            InputError: a number of the configuration is beyond bounds, or a shard is missing.
            ValueError: the weights do not fit the configuration.
        """
        weights = network.weights(names_in(self.folder))
        if weights is None:
            raise InputError(f"{self.folder / network.config}: no weights lie beside it")
        config = read_config(self.folder / network.config)
        options = {**options, "local_files_only": True}
        transformer = issubclass(kind, PreTrainedModel)
        if transformer:
            options["trust_remote_code"] = False
        self._check_size(network, kind, config, weights, transformer, options)
        if network.folder:
            options["subfolder"] = network.folder
        return complete(
            kind.from_pretrained(
                str(self.folder),
                variant=weights.variant,
                use_safetensors=weights.safe,
                output_loading_info=True,
                **{"dtype" if transformer else "torch_dtype": dtype},
                **options,
            )
        )

    def _check_size(self, network, kind, config, weights, transformer, options) -> None:
        """Refuse a configuration of more weights than there are bytes, before allocating."""
        files = [self.folder / weights.file]
        if weights.file.endswith(".json"):
            shards = set(read_json(files[0])["weight_map"].values())
            files = [files[0].parent / shard for shard in sorted(shards)]
        for file in files:
            if not file.is_file():
                raise InputError(f"{file}: is missing, and {weights.file} lists it")
        stored = sum(file.stat().st_size for file in files)
        arguments = {name: options[name] for name in options if name.startswith("add_")}
        with torch.device("meta"):
            if transformer:
                made = kind.config_class.from_pretrained(
                    str(self.folder / network.folder), local_files_only=True
                )
                empty = kind(made, **arguments)
            else:
                empty = kind.from_config(config)
        described = count(empty)
        # No format takes less than a byte for a weight.
        if described > stored:
            raise ValueError(
                f"{network.config} describes {described} weights, and the files have {stored} bytes"
            )


def count(model: nn.Module) -> int:
    """The number of elements in parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(math.prod(tensor.shape) for tensor in tensors)


def complete(model_and_report: tuple[Any, dict[str, Any]]) -> Any:
    """The model of ``from_pretrained(…, output_loading_info=True)``, if every weight was there.

    Raises:
        ValueError: weights are missing or of another shape; the library drew them at random.
    """
    model, report = model_and_report
    for kind in ("missing_keys", "mismatched_keys"):
        names = sorted(str(name) for name in report[kind])
        if names:
            raise ValueError(
                f"{len(names)} {kind.replace('_keys', '')} weights, such as {names[0]}"
            )
    return model


def names_in(folder: Path) -> set[str]:
    """Names of the files in a folder and in those below it, relative and with slashes."""
    names = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if Path(place) != folder:
            folders.clear()
        paths = (Path(place, name) for name in files)
        names |= {path.relative_to(folder).as_posix() for path in paths if path.is_file()}
    return names


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: the file is not readable, or holds something else.
    """
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{file}: cannot be read as JSON: {reason}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds a JSON {type(content).__name__}; expected an object")
    return content


def read_config(file: Path) -> dict[str, Any]:
    """A configuration, with no number that a network or a schedule could not be built for.

    Raises:
        InputError: the file is not readable, holds no object, or a number is beyond bounds.
    """
    config = read_json(file)
    try:
        _check_numbers(config, "")
    except ValueError as error:
        raise InputError(f"{file}: {error}") from error
    return config


def _check_numbers(value: Any, name: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_numbers(inner, key)
    elif isinstance(value, list):
        if len(value) > MOST:
            raise ValueError(f"{name} has {len(value)} entries; expected at most {MOST}")
        for inner in value:
            _check_numbers(inner, name)
    elif isinstance(value, int):
        # layers_per_block, num_hidden_layers, …
        most = MOST_LAYERS if "layers" in name else MOST
        if not -most <= value <= most:
            raise ValueError(f"{name} is {value:.6g}; expected at most {most}")


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
