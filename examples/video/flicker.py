"""Labels that change where the picture does not: ``python examples/video/flicker.py``.

Films are made of invented scenes, each frame with noise of its own: one that stands still, one that
the camera moves over (by half a token and more), and one that an object crosses. Of each frame the
labels are compared with the truth, and with those of the frame before at the same places of the
scene, where the truth is the same; of the crossing object also with the truth where it has changed
since the frame before, which labels that lag would miss.

What `pipe.video` does, with several windows, stands beside what was not taken: the result of the
frame before, carried over by the cosines of keys, mixed into the prior.
"""

import argparse
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from nerve_fast import NerveConfig, NervePipeline
from nerve_fast.imaging.resampling import likeliest, to_tokens
from nerve_fast.refiners.walk import walk, weights_of
from nerve_fast.tiny.scenes import BACKGROUNDS, NAMES, generate

SEED = 1_300_000
"""Of the scenes: none of them was trained or tuned on."""

SIDE, MARGIN, NOISE = 128, 48, 6.0
"""Of a frame, of what the camera may move over, in pixels; of grey levels, a standard deviation."""


class Frame(NamedTuple):
    """A frame, its true labels as indices into the names, and where in the scene it lies."""

    image: Image.Image
    truth: np.ndarray
    corner: tuple[int, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--frames", type=int, default=8)
    options = parser.parse_args()
    pipe = NervePipeline.from_pretrained("tiny", device="cpu")
    print(f"{options.scenes} scenes of {options.frames} frames of {SIDE} × {SIDE} pixels")
    print(
        "| film | method | right | changed where the truth is the same | right where it changed |"
    )
    print("|---|---|---|---|---|")
    for kind in ("still", "pan", "object"):
        films = [film(kind, number, options.frames) for number in range(options.scenes)]
        for window in (0, 1, 2, 4):
            report(kind, f"window {window}", films, lambda f, w=window: windowed(pipe, f, w))
        report(kind, "result mixed into the prior", films, lambda f: mixed(pipe, f))


def film(kind: str, number: int, frames: int) -> list[Frame]:
    """The frames of a film."""
    chance = np.random.default_rng(number)
    scene, truth = named(SEED + number, SIDE + MARGIN)
    piece, mask, label = thing(SEED + 1_000 + number)
    made = []
    for time in range(frames):
        top, left = (time * 3 // 2, time * 3) if kind == "pan" else (0, 0)
        pixels = scene[top : top + SIDE, left : left + SIDE].astype(float)
        labels = truth[top : top + SIDE, left : left + SIDE].copy()
        if kind == "object":
            at = (slice(30, 30 + len(mask)), slice(5 + 8 * time, 5 + 8 * time + mask.shape[1]))
            height, width = labels[at].shape
            seen = mask[:height, :width]
            pixels[at][seen] = piece[:height, :width][seen]
            labels[at][seen] = label
        pixels = np.clip(pixels + chance.normal(0, NOISE, pixels.shape), 0, 255).round()
        made.append(Frame(Image.fromarray(pixels.astype(np.uint8)), labels, (top, left)))
    return made


def named(seed: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A scene and its labels as indices into the names."""
    picture, mask, names = generate(seed, side)
    return np.asarray(picture), np.array([NAMES.index(name) for name in names])[mask]


def thing(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The largest object of a scene, cut out: its pixels, where they are its own, its label."""
    pixels, labels = named(seed, SIDE)
    areas = np.bincount(labels.ravel(), minlength=len(NAMES))
    areas[: len(BACKGROUNDS)] = 0
    label = int(areas.argmax())
    rows, columns = np.nonzero(labels == label)
    cut = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
    return pixels[cut], labels[cut] == label, label


def windowed(pipe: NervePipeline, frames: list[Frame], window: int) -> Iterator[np.ndarray]:
    """The labels that ship."""
    images = (frame.image for frame in frames)
    for out in pipe.video(images, list(NAMES), window=window):
        yield out.label_map.numpy()


def mixed(pipe: NervePipeline, frames: list[Frame], share: float = 0.5) -> Iterator[np.ndarray]:
    """``G ← (1 − share) G + share S P``: ``P`` of the frame before, ``S`` of cosines."""
    config, before = NerveConfig(), None
    for frame in frames:
        seen = pipe.encode(frame.image)
        graph, entropy = seen.graph, seen.entropies(None, "auto").mean
        maps = pipe.prior.probabilities(seen.encoded, [[name] for name in NAMES])
        prior = to_tokens(maps, graph.grid)
        weights = weights_of(graph, config, entropy)[0]
        queries = (
            (normalize(graph.q[0], dim=-1) * weights[:, None, None]).transpose(0, 1).flatten(1)
        )
        if before is not None:
            keys, result = before
            carried = ((queries @ keys.T - 1) / config.temperature).softmax(-1) @ result
            prior = (1 - share) * prior + share * carried
        with torch.no_grad():
            (walked,) = walk(graph, prior, config, entropy=entropy)
        keys = normalize(graph.k[0], dim=-1).transpose(0, 1).flatten(1)
        before = keys, walked.maps.flatten(1).T
        yield likeliest(walked.maps, (SIDE, SIDE)).numpy()


def report(kind: str, method: str, films: list[list[Frame]], label) -> None:
    """Print a row of the table."""
    right, changed, fresh = [], [], []
    for frames in films:
        each = list(zip(frames, label(frames), strict=True))
        right += [labels == frame.truth for frame, labels in each]
        for (before, old), (after, new) in itertools.pairwise(each):
            down, across = (a - b for a, b in zip(after.corner, before.corner, strict=True))
            now = (slice(0, SIDE - down), slice(0, SIDE - across))
            then = (slice(down, SIDE), slice(across, SIDE))
            same = after.truth[now] == before.truth[then]
            changed.append((new[now] != old[then])[same])
            fresh.append((new[now] == after.truth[now])[~same])
    cells = [f"{np.mean(right):.2%}", f"{np.concatenate(changed).mean():.2%}"]
    new_places = np.concatenate(fresh)
    cells.append(f"{new_places.mean():.2%}" if new_places.size else "")
    print(f"| {kind} | {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
