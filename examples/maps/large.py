"""A raster of 20,000 × 20,000 pixels within ``--max-memory 4GB``: its time and peak memory.

``python examples/maps/large.py`` makes the raster where it is not there yet, runs `nerve-fast map`
with the models that ship in a process of its own, checks what it wrote, and prints a line of each.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from raster import FACTOR, NODATA, OFFSET, make

from nerve_fast.imaging.visualize import save_picture
from nerve_fast.tiny.scenes import NAMES
from nerve_fast.utils.files import cache_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--scale", type=int, default=5)
    parser.add_argument("--max-memory", default="4GB")
    parser.add_argument("--folder", type=Path, default=cache_folder() / "maps")
    parser.add_argument("--picture", type=Path, metavar="FILE")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    scene = options.folder / f"scene-{options.side}-{options.scale}.tif"
    if not scene.exists():
        start = time.perf_counter()
        make(scene, options.side, options.scale)
        print(f"{scene}: made in {time.perf_counter() - start:.0f} s", flush=True)
    labels, outlines = options.folder / "labels.tif", options.folder / "labels.gpkg"
    command = [
        *(sys.executable, "-m", "nerve_fast", "map", scene, "-o", labels, "--polygons", outlines),
        *("--labels", ";".join(NAMES), "--models", "tiny", "--device", "cpu", "--bands", "3,2,1"),
        *("--scale", str(options.scale), "--max-memory", options.max_memory),
    ]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    threads = os.environ.get("OMP_NUM_THREADS", os.cpu_count())
    print(f"{seconds / 60:.1f} min with {threads} threads, {peak / 1e9:.2f} GB (the whole process)")
    check(scene, labels)
    if options.picture:
        draw(scene, labels, options.picture)


def draw(scene: Path, labels: Path, picture: Path, side: int = 600) -> None:
    """The raster and its labels side by side, from their overviews."""
    with rasterio.open(scene) as given, rasterio.open(labels) as made:
        bands = given.read([3, 2, 1], out_shape=(3, side, side)).astype(np.float32)
        colours = np.array([made.colormap(1)[value][:3] for value in range(256)], np.uint8)
        found = colours[made.read(1, out_shape=(side, side))]
    plain = np.clip((bands - OFFSET) / FACTOR, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    gap = np.full((side, 8, 3), 255, np.uint8)
    save_picture(Image.fromarray(np.hstack([plain, gap, found])), picture)


def check(scene: Path, labels: Path) -> None:
    """Compare where there is data, and say what was found, block by block."""
    counts = np.zeros(256, np.int64)
    wrong = 0
    with rasterio.open(scene) as given, rasterio.open(labels) as made:
        assert (given.crs, given.transform, given.shape) == (made.crs, made.transform, made.shape)
        for _, window in given.block_windows(1):
            found = made.read(1, window=window)
            wrong += int(((given.read(1, window=window) == NODATA) != (found == made.nodata)).sum())
            counts += np.bincount(found.ravel(), minlength=256)
        print(
            f"{made.width} × {made.height} pixels, overviews {made.overviews(1)}, "
            f"{labels.stat().st_size / 1e6:.1f} MB; {wrong} pixels with data where there is none, "
            "or the other way round"
        )
    shares = {name: counts[number] / counts[:255].sum() for number, name in enumerate(NAMES)}
    print("; ".join(f"{name} {share:.1%}" for name, share in shares.items()))


if __name__ == "__main__":
    main()
