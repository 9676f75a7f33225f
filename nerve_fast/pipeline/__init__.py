"""The whole method: an image and words in, a label for every pixel out."""

from nerve_fast.pipeline.output import SegmentationOutput
from nerve_fast.pipeline.pipeline import NervePipeline

__all__ = ["NervePipeline", "SegmentationOutput"]
