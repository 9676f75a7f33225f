"""What a user asks for, and what was found, at each step of the walk."""

import dataclasses
from typing import NamedTuple, cast

from torch import Tensor

from nerve_fast.certainty import Certainty
from nerve_fast.config import NerveConfig
from nerve_fast.errors import InputError
from nerve_fast.imaging.resampling import mean_under
from nerve_fast.pipeline import SegmentationOutput, stages
from nerve_fast.priors.seeds import Seeds


class Click(NamedTuple):
    """A click: a label, and the pixel ``(x, y)`` of the image as it is segmented."""

    label: str
    x: int
    y: int


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the page's controls say.

    Attributes:
        words: classes, ``;`` between them.
        config: the graph stage's settings that the controls show; ``None`` takes those for words
            or for clicks alone.
        threshold: the least probability of a pixel's label, 0 for none.
    """

    words: str = ""
    config: NerveConfig | None = None
    threshold: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What was found, at each step of the walk.

    Attributes:
        name: of the image's file.
        out: of the pipeline, with all steps.
        seeds: the clicks.
        certainty: the threshold.
        config: the settings asked for.
    """

    name: str
    out: SegmentationOutput
    seeds: Seeds | None
    certainty: Certainty
    config: NerveConfig

    @property
    def last(self) -> int:
        """The number of steps of the walk."""
        return cast(int, self.config.steps)

    def maps(self, step: int) -> Tensor:
        """``(K, h, w)`` float32 after a number of steps, 0 being the prior."""
        if not 0 <= step <= self.last:
            raise InputError(f"step is {step}; expected a whole number from 0 to {self.last}")
        if step == self.last:
            return self.out.walked
        return self.out.steps[step] if step else self.out.prior

    def label_map(self, step: int) -> Tensor:
        """``(H, W)`` int64 after a number of steps, −1 where there is no label."""
        maps = self.maps(step)
        if step == self.last:
            return self.out.label_map
        width, height = self.out.image.size
        labels = stages.to_labels(maps, (height, width), self.certainty.least(self.out.labels))
        return labels if self.seeds is None else self.seeds.overrule(labels, self.out.labels)

    def confidences(self, step: int) -> Tensor:
        """``(K,)``: the mean probability of each label over its pixels, ``nan`` without any."""
        if step == self.last:
            return self.out.confidences
        return mean_under(self.maps(step), self.label_map(step))
