"""What the labelling of a georeferenced raster is asked for."""

import dataclasses
import numbers
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from nerve_fast.certainty import Certainty, Threshold
from nerve_fast.config import NerveConfig
from nerve_fast.errors import InputError, SettingError, quoted
from nerve_fast.imaging import visualize
from nerve_fast.imaging.tiling import Tiling
from nerve_fast.numerics import is_finite
from nerve_fast.pipeline.jobs import check_keys
from nerve_fast.pipeline.settings import ModelSettings, check_count
from nerve_fast.priors import PriorConfig
from nerve_fast.utils.files import shown
from nerve_fast.utils.labels import parse_labels
from nerve_fast.utils.units import parse_bytes

CLASSES = {"prior": PriorConfig, "config": NerveConfig, "models": ModelSettings}
"""Of those settings that are groups of settings."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapSettings:
    """A raster, and what is made of it: immutable, checked when made.

    Attributes:
        raster: a GeoTIFF.
        labels: one string a class; commas separate synonyms of one class.
        output: the GeoTIFF of labels that is written; its class names are in ``OUTPUT.aux.xml``.
        polygons: a GeoPackage (``.gpkg``) or GeoJSON (``.geojson``) that is written too.
        bands: red, green and blue, or one that is shown as grey, counted from 1; ``None`` takes
            those that the file names so, else the first three, else the first one.
        percentiles: of a band's values that become black and white; ``None`` takes bands of 8 bits
            as they are, and 2 and 98 of others.
        scale: pixels along each side that the networks see as one. The labels have the raster's own
            pixels at any scale.
        window: side of the windows that are segmented one by one, in pixels of the scale; ``None``
            is 256 tokens, or what the memory holds.
        window_overlap: of neighbouring windows; ``None`` is 32 tokens, a quarter of a
            window at most.
        max_memory: bytes that may be taken beyond the models, a number or such as ``"6GB"``;
            ``None`` is nine tenths of what is free. Polygons are not in it.
        global_keys, max_key_error, tile, overlap, top: of each window, as for
            :class:`~nerve_fast.NervePipeline`.
        threshold: the least probability of a pixel's label, a number or numbers by label.
        background: the label of pixels under it; ``None`` gives them none.
        prior, config, models: as for :class:`~nerve_fast.pipeline.asked.SegmentSettings`.

    Raises:
        SettingError, InputError: a value is out of its range.
        TypeError: a value is of the wrong type.
    """

    raster: str | os.PathLike
    labels: Sequence[str]
    output: str | os.PathLike
    polygons: str | os.PathLike | None = None
    bands: Sequence[int] | None = None
    percentiles: Sequence[float] | None = None
    scale: int = 1
    window: int | None = None
    window_overlap: int | None = None
    max_memory: int | str | None = None
    global_keys: int | Literal["auto"] | None = "auto"
    max_key_error: float | None = None
    tile: int | None = None
    overlap: int | None = None
    top: int | None = None
    threshold: Threshold | None = None
    background: str | None = None
    prior: PriorConfig = dataclasses.field(default_factory=PriorConfig)
    config: NerveConfig = dataclasses.field(default_factory=NerveConfig)
    models: ModelSettings = dataclasses.field(default_factory=ModelSettings)

    def __post_init__(self):
        for name, kind in CLASSES.items():
            if not isinstance(getattr(self, name), kind):
                raise TypeError(
                    f"{name} is {quoted(getattr(self, name))}; expected {kind.__name__}(…)"
                )
        parse_labels(self.labels)
        if len(self.labels) > visualize.MOST_LABELS:
            raise InputError(
                f"{len(self.labels):,} labels are given; a label map holds at most "
                f"{visualize.MOST_LABELS:,}"
            )
        object.__setattr__(self, "labels", tuple(self.labels))
        for name in ("raster", "output", "polygons"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))
        if Path(self.output).suffix.lower() not in (".tif", ".tiff"):
            raise SettingError(
                "{output} is {0}; expected the name of a GeoTIFF to write, such as labels.tif",
                shown(self.output),
            )
        self._check_bands()
        for name in ("scale", "window", "top"):
            check_count(name, getattr(self, name), 1)
        if self.scale is None:
            raise TypeError("scale is None; expected a whole number, 1 or more")
        check_count("window_overlap", self.window_overlap, 0)
        check_keys(self.global_keys, self.max_key_error)
        if self.max_memory is not None:
            parse_bytes(self.max_memory)
        if self.tile is not None:
            Tiling.of((1, 1), self.tile, self.overlap or 0, 1)
        certainty = self.certainty
        certainty.check(self.labels)
        object.__setattr__(self, "threshold", certainty.threshold)

    def _check_bands(self):
        if self.bands is not None:
            if not isinstance(self.bands, (list, tuple)):
                raise TypeError(f"bands is {quoted(self.bands)}; expected a list of numbers")
            for band in self.bands:
                check_count("bands", band, 1)
            if len(self.bands) not in (1, 3) or None in self.bands:
                raise SettingError(
                    "{bands} is {0}; expected three bands, as red, green and blue, or one",
                    quoted(list(self.bands)),
                )
            object.__setattr__(self, "bands", tuple(map(int, self.bands)))
        if self.percentiles is not None:
            given = self.percentiles
            if not isinstance(given, (list, tuple)) or not all(
                isinstance(one, numbers.Real) and not isinstance(one, bool) for one in given
            ):
                raise TypeError(f"percentiles is {quoted(given)}; expected two numbers")
            pair = len(given) == 2 and all(map(is_finite, given))
            if not pair or not 0 <= given[0] < given[1] <= 100:
                raise SettingError(
                    "{percentiles} is {0}; expected two numbers from 0 to 100, the lower one first",
                    quoted(list(given)),
                )
            object.__setattr__(self, "percentiles", tuple(map(float, given)))

    @property
    def certainty(self) -> Certainty:
        """How probable a pixel's label must be."""
        return Certainty(self.threshold, self.background)

    @property
    def taken_config(self) -> NerveConfig:
        """The settings of the graph stage."""
        return self.config
