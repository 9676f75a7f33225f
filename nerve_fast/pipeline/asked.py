"""What a run over images is asked for."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from nerve_fast.certainty import Certainty, Threshold
from nerve_fast.config import NerveConfig, default_config
from nerve_fast.errors import InputError, SettingError, quoted
from nerve_fast.imaging import exports, visualize
from nerve_fast.imaging.tiling import Tiling
from nerve_fast.pipeline.jobs import check_keys
from nerve_fast.pipeline.seeding import SeedSettings
from nerve_fast.pipeline.settings import ModelSettings, check_count, check_switch, check_tolerance
from nerve_fast.priors import PriorConfig
from nerve_fast.utils.labels import parse_labels
from nerve_fast.utils.units import parse_bytes, parse_pixels

CLASSES = {
    "seeds": SeedSettings,
    "prior": PriorConfig,
    "config": NerveConfig,
    "models": ModelSettings,
}
"""Of those settings that are groups of settings."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentSettings:
    """Images, and what is made of them: immutable, checked when made.

    Attributes:
        images: files and folders of images.
        labels: one string a class; commas separate synonyms of one class; none where seeds say all.
        seeds: clicks, boxes and scribbles.
        output: the folder that results are written to.
        save_heatmaps, save_probabilities, save_steps: also write ``NAME.heatmaps.png``,
            ``NAME.npz``, ``NAME.steps.png``.
        export: formats of :data:`nerve_fast.imaging.exports.EXPORTS` that are written too.
        polygon_tolerance: how far, in pixels, exported outlines may be from the edges of pixels.
        resume: leave out images whose results are there.
        batch_size: number of images that are worked on together.
        verify: also run the reference backend and report the difference.
        resolution: the short side that the graph's network sees, in pixels; 0 is the image's own,
            ``None`` the model's.
        max_pixels: of an image file, above which it is not decoded: a number or such as
            ``"400MP"``; ``None`` is Pillow's limit, as for
            :func:`~nerve_fast.imaging.images.load_image`.
        max_memory: bytes that may be taken beyond the models, a number or such as ``"6GB"``, by the
            networks, the walk and the drawing and writing of results, but not by the images
            themselves, their decoding and reading ahead; ``None`` is nine tenths of what is free.
        global_keys: clusters that the global part takes its keys in, ``"auto"``, or ``None`` for
            everything exactly.
        max_key_error: that the clusters may have, relative; ``None`` takes it as it is.
        tile, overlap: of large images, in pixels; ``None`` follows from the model.
        top: of the words take for each image so many, see :class:`~nerve_fast.NervePipeline`; the
            files have the numbers of all labels.
        threshold: the least probability of a pixel's label, a number or numbers by label.
        background: the label of pixels under it; ``None`` gives them none.
        prior: how CLIP's patches become the prior.
        config: of the graph stage; ``None`` is the default, which with seeds alone is another.
        models: the networks.
        frames_in_graph: of a video, how many frames before each take part in its walk.
        share_images: whether processes that are started together share each image, its tiles,
            windows and walk, rather than the list of images.

    Raises:
        SettingError, InputError: a value is out of its range.
        TypeError: a value is of the wrong type.
    """

    images: Sequence[str | os.PathLike]
    labels: Sequence[str]
    output: str | os.PathLike
    seeds: SeedSettings = dataclasses.field(default_factory=SeedSettings)
    save_heatmaps: bool = False
    save_probabilities: bool = False
    save_steps: bool = False
    export: Sequence[str] = ()
    polygon_tolerance: float = 1.0
    resume: bool = False
    batch_size: int = 1
    verify: bool = False
    resolution: int | None = None
    max_pixels: int | str | None = None
    max_memory: int | str | None = None
    global_keys: int | Literal["auto"] | None = "auto"
    max_key_error: float | None = None
    tile: int | None = None
    overlap: int | None = None
    top: int | None = None
    threshold: Threshold | None = None
    background: str | None = None
    prior: PriorConfig = dataclasses.field(default_factory=PriorConfig)
    config: NerveConfig | None = None
    models: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    frames_in_graph: int = 2
    share_images: bool = False

    def __post_init__(self):
        for name, kind in CLASSES.items():
            if name == "config" and self.config is None:
                continue
            if not isinstance(getattr(self, name), kind):
                raise TypeError(
                    f"{name} is {quoted(getattr(self, name))}; expected {kind.__name__}(…)"
                )
        for name in ("images", "labels"):
            if not isinstance(getattr(self, name), (list, tuple)):
                raise TypeError(f"{name} is {quoted(getattr(self, name))}; expected a list")
        for field in dataclasses.fields(self):
            if field.type is bool or field.type == "bool":
                check_switch(field.name, getattr(self, field.name))
        if self.labels or not self.seeds:
            parse_labels(self.labels)
        check_count("batch_size", self.batch_size, 1)
        if self.share_images and self.verify:
            raise SettingError(
                "{share_images} and {verify} are both set; expected one of them, as the reference "
                "takes images whole"
            )
        check_keys(self.global_keys, self.max_key_error)
        if self.max_memory is not None:
            parse_bytes(self.max_memory)
        if self.max_pixels is not None:
            parse_pixels(self.max_pixels)
        if len(self.labels) > visualize.MOST_LABELS:
            raise InputError(
                f"{len(self.labels):,} labels are given; a label map holds at most "
                f"{visualize.MOST_LABELS:,}"
            )
        check_count("top", self.top, 1)
        if self.frames_in_graph is None:
            raise TypeError("frames_in_graph is None; expected a whole number, 0 or more")
        check_count("frames_in_graph", self.frames_in_graph, 0)
        if not isinstance(self.export, (list, tuple)):
            raise TypeError(f"export is {quoted(self.export)}; expected a list of formats")
        exports.check(self.export, self.vocabulary)
        object.__setattr__(self, "export", tuple(dict.fromkeys(self.export)))
        check_tolerance("polygon_tolerance", self.polygon_tolerance)
        object.__setattr__(self, "polygon_tolerance", float(self.polygon_tolerance))
        if self.top is not None and not self.labels:
            raise SettingError("{top} chooses among words; give {labels} too, or leave it out")
        certainty = Certainty(self.threshold, self.background)
        certainty.check(self.vocabulary)
        object.__setattr__(self, "threshold", certainty.threshold)
        if self.tile is not None:
            overlap = 0 if self.overlap is None else self.overlap
            Tiling.of((1, 1), self.tile, overlap, 1)
        object.__setattr__(self, "images", tuple(map(Path, self.images)))
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "output", Path(self.output))

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All labels that results may have: of the words, then those that only seeds have."""
        return tuple(dict.fromkeys((*self.labels, *self.seeds.labels)))

    @property
    def most_pixels(self) -> int | None:
        """Of an image file, as a number."""
        return None if self.max_pixels is None else parse_pixels(self.max_pixels)

    @property
    def taken_config(self) -> NerveConfig:
        """The settings of the graph stage that were given, or the default ones."""
        return self.config or default_config(bool(self.labels))
