"""Labels that change where windows meet, and elsewhere: ``python examples/maps/seams.py``.

Each scene is labelled as one window and in several, by what `nerve-fast map` calls. A pixel is near
a seam where two windows overlap, or within 16 pixels of that.
"""

import argparse
import itertools
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from nerve_fast import NerveConfig, NervePipeline
from nerve_fast.pipeline.map_settings import MapSettings
from nerve_fast.pipeline.mapping import label_raster
from nerve_fast.tiny.scenes import NAMES, generate

SEED = 1_220_000
"""Of the scenes: none of them was trained or tuned on."""

NEAR = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--side", type=int, default=768)
    parser.add_argument("--window", type=int, default=480)
    parser.add_argument("--normalization", default="shift")
    options = parser.parse_args()
    pipe = NervePipeline.from_pretrained("tiny", device="cpu")
    config = NerveConfig(normalization=options.normalization)
    overlaps = (0, options.window // 8, options.window // 4)
    found: dict[int, list[np.ndarray]] = {overlap: [] for overlap in overlaps}
    for number in range(options.scenes):
        with tempfile.TemporaryDirectory() as folder:
            scene = Path(folder, "scene.tif")
            right = write(scene, SEED + number, options.side)
            whole, _ = labelled(pipe, scene, config, options.side, 0)
            for overlap in overlaps:
                parts, seam = labelled(pipe, scene, config, options.window, overlap)
                rows = [seam, ~seam, whole != parts, whole == right, parts == right]
                found[overlap].append(np.stack(rows))
    print(
        f"{options.scenes} scenes of {options.side} pixels, {options.normalization}, in windows "
        f"of {options.window}; labels unlike those of one window, and right ones of both"
    )
    print("| overlap | near seams | elsewhere | right near seams | right elsewhere |")
    print("|---|---|---|---|---|")
    for overlap, each in found.items():
        near, elsewhere, unlike, whole, parts = np.concatenate(each, axis=1)
        cells = [f"{unlike[where].mean():.2%}" for where in (near, elsewhere)]
        cells += [
            f"{parts[where].mean():.1%} (one window: {whole[where].mean():.1%})"
            for where in (near, elsewhere)
        ]
        print(f"| {overlap} | {' | '.join(cells)} |")


def write(path: Path, seed: int, side: int) -> np.ndarray:
    """Write a scene with coordinates; returns its labels as indices into the names."""
    picture, mask, names = generate(seed, side)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=side,
        width=side,
        count=3,
        dtype="uint8",
        crs="EPSG:32632",
        transform=from_origin(500_000, 5_400_000, 0.5, 0.5),
    ) as dataset:
        dataset.write(np.asarray(picture).transpose(2, 0, 1))
    return np.array([NAMES.index(name) for name in names])[mask]


def labelled(
    pipe: NervePipeline, scene: Path, config: NerveConfig, window: int, overlap: int
) -> tuple[np.ndarray, np.ndarray]:
    """The labels of a scene, and where seams are near."""
    output = scene.with_name("labels.tif")
    settings = MapSettings(
        raster=scene,
        labels=NAMES,
        output=output,
        config=config,
        window=window,
        window_overlap=overlap,
    )
    tiling = label_raster(settings, pipe).tiling
    seam = np.zeros(tiling.size, bool)
    for starts, length, lines in (
        (tiling.tops, tiling.tile[0], seam),
        (tiling.lefts, tiling.tile[1], seam.T),
    ):
        for before, after in itertools.pairwise(starts):
            lines[after - NEAR : before + length + NEAR] = True
    with rasterio.open(output) as dataset:
        return dataset.read(1), seam


if __name__ == "__main__":
    main()
