"""The invented world of the tiny models: patterned shapes on textured grounds, with exact masks.

Colour alone is made a poor guide: objects wear stripes, checks or dots in contrasting tones, light
falls unevenly, shadows lie across the ground, and an object's colours may well be the ground's.

Pixels come from sums, products and square roots only (sines appear in scalars alone, never per
pixel), so that a seed draws the same bytes on every platform as far as floating point allows.
"""

import math

import numpy as np
from PIL import Image

OBJECTS = ("ball", "box", "star", "heart", "ring", "flower", "fish", "mushroom", "house", "tree")
BACKGROUNDS = ("grass", "sand", "water", "brick", "snow", "wood")
NAMES = BACKGROUNDS + OBJECTS

VALIDATION_SEED = 900_000  # hyper-parameters are picked on seeds from here on,
HELD_OUT_SEED = 1_000_000  # results are reported on seeds from here on; training draws below both
ABSENT = 3  # how many names that are not in the picture go with it
STRAY = 0.06  # how far an object's hue strays from spot to spot, in turns
BASE = 128  # the canvas that 1-4 objects are meant for
MIN_VISIBLE = 0.45  # the part of each object that later ones must leave uncovered

_SS = 2  # supersampling per side


def generate(seed, size=BASE):
    """Draw the scene of a seed.

    Args:
        seed: a non-negative int; the scene is a function of it and of ``size``.
        size: side of a square picture or ``(height, width)``, each at least 64. Objects keep their
            scale: a larger canvas holds more of them.

    Returns:
        image: PIL image, RGB, of the given size.
        mask: ``(H, W)`` int64, indices into ``names``.
        names: list of str: the names present (grounds, then objects), then three that are absent.

    Raises:
        TypeError: ``seed`` or ``size`` is not made of ints.
        ValueError: ``seed`` is negative or a side is below 64.
    """
    height, width = _check(seed, size)
    rng = np.random.default_rng(seed)
    canvas = _Canvas(height, width)
    labels = _paint_grounds(rng, canvas)
    light = rng.uniform(-1, 1, 2)  # where shadows fall
    objects: list[dict] = []
    crowd = max(1, round(height * width / BASE**2))
    for _ in range(int(rng.integers(1, 5, crowd).sum())):
        _place_object(rng, canvas, light, objects)
    return _finish(rng, canvas, labels, objects)


def _check(seed, size):
    sides = (size, size) if isinstance(size, int) else size
    ints = (int, np.integer)
    if not isinstance(seed, ints) or isinstance(seed, bool):
        raise TypeError(f"seed must be an int, got {seed!r}")
    if not isinstance(sides, tuple | list) or not all(isinstance(s, ints) for s in sides):
        raise TypeError(f"size must be an int or (height, width), got {size!r}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if len(sides) != 2 or min(sides) < 64:
        raise ValueError(f"size must be two sides of at least 64, got {size!r}")
    return int(sides[0]), int(sides[1])


class _Canvas:
    """Supersampled colours ``(h, w, 3)`` and labels ``(h, w)``; coordinates are in final pixels."""

    def __init__(self, height, width):
        self.height, self.width = height, width
        h, w = height * _SS, width * _SS
        self.y = ((np.arange(h) + 0.5) / _SS).astype(np.float32)[:, None]
        self.x = ((np.arange(w) + 0.5) / _SS).astype(np.float32)[None, :]
        self.rgb = np.empty((h, w, 3), np.float32)
        self.label = np.zeros((h, w), np.int64)  # grounds 0 and 1, objects from 2 on

    def window(self, cy, cx, radius):
        """Slices of the supersampled rows and columns within ``radius`` of a point."""

        def cut(centre, limit):
            low, high = int((centre - radius) * _SS), math.ceil((centre + radius) * _SS)
            return slice(max(low, 0), min(max(high, 0), limit))

        return cut(cy, self.rgb.shape[0]), cut(cx, self.rgb.shape[1])


# --- colour, noise and patterns -------------------------------------------------------------------


def _colour(hue, saturation, value):
    """HSV (hue in turns) to an RGB triple."""
    k = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    return (value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1))).astype(np.float32)


def _noise(rng, x, y, period):
    """Smooth value noise in [-1, 1] at the outer grid of ``x (1, w)`` and ``y (h, 1)``."""

    def knots(t):
        t = t.ravel() / period
        low = np.floor(t)
        f = t - low
        return (low - low.min()).astype(np.int64), f * f * (3 - 2 * f)

    (row, fy), (col, fx) = knots(y), knots(x)
    value = rng.uniform(-1, 1, (row.max() + 2, col.max() + 2)).astype(np.float32)
    value = value[:, col] * (1 - fx) + value[:, col + 1] * fx
    return value[row] * (1 - fy)[:, None] + value[row + 1] * fy[:, None]


def _wave(t):
    """A triangle wave of period 1 and range [-1, 1]."""
    return np.abs((t - np.floor(t)) * 4 - 2) - 1


def _mix(a, b, t):
    """Colours ``a`` to ``b``, ``(3,)`` or ``(h, w, 3)``, by ``t (h, w)``."""
    return a + (b - a) * t[..., None]


def _pattern(rng, x, y):
    """0 or 1 at an object's own coordinates ``x, y (h, w)``, in pixels."""
    kind = rng.choice(["plain", "stripes", "checks", "dots"], p=[0.2, 0.3, 0.25, 0.25])
    period = rng.uniform(8, 15)
    angle = rng.uniform(0, math.pi)
    c, s = math.cos(angle), math.sin(angle)
    u, v = (c * x + s * y) / period, (c * y - s * x) / period
    if kind == "plain":
        return np.zeros_like(x)
    if kind == "stripes":
        return (_wave(u) > 0).astype(np.float32)
    if kind == "checks":
        return ((_wave(u) > 0) ^ (_wave(v) > 0)).astype(np.float32)
    return (_wave(u) + _wave(v) > 0.5).astype(np.float32)


def _tone(rng, hue, value, x, y):
    """A colour whose hue strays from place to place, so that no single spot is sure evidence."""
    saturation = rng.uniform(0.45, 0.95)
    start, end = (_colour((hue + stray) % 1, saturation, value) for stray in (-STRAY, STRAY))
    return _mix(start, end, 0.5 + 0.5 * _noise(rng, x, y, 9))


def _dress(rng, hue, x, y, u, v):
    """Two tones, clearly apart and often of two hues, in a pattern.

    ``x (1, w)`` and ``y (h, 1)`` are places on the canvas, ``u, v (h, w)`` the same on the object.
    """
    other = hue if rng.random() < 0.7 else rng.random()
    dark = _tone(rng, hue, rng.uniform(0.25, 0.5), x, y)
    bright = _tone(rng, other, rng.uniform(0.8, 1.0), x, y)
    pattern = _pattern(rng, u, v)
    return _mix(dark, bright, pattern if rng.random() < 0.5 else 1 - pattern)


# --- grounds --------------------------------------------------------------------------------------


def _grass(rng, x, y):
    blades = _noise(rng, x, y, 3) * 0.6 + _noise(rng, x * 3, y, 5) * 0.6
    return _mix(
        _colour(rng.uniform(0.24, 0.36), 0.75, 0.35),
        _colour(rng.uniform(0.18, 0.3), 0.6, 0.75),
        np.clip(0.5 + 0.6 * blades, 0, 1),
    )


def _sand(rng, x, y):
    ripples = _wave((y + 3 * _noise(rng, x, y, 22)) / rng.uniform(9, 15))
    grain = _noise(rng, x, y, 1.5)
    return _mix(
        _colour(rng.uniform(0.08, 0.12), 0.55, 0.6),
        _colour(rng.uniform(0.1, 0.15), 0.35, 0.95),
        np.clip(0.5 + 0.3 * ripples + 0.25 * grain, 0, 1),
    )


def _water(rng, x, y):
    waves = _wave((y + 4 * _noise(rng, x, y, 16)) / rng.uniform(6, 10))
    return _mix(
        _colour(rng.uniform(0.55, 0.65), 0.85, 0.5),
        _colour(rng.uniform(0.48, 0.6), 0.4, 0.95),
        np.clip(0.35 + 0.5 * waves * _noise(rng, x, y, 11) + 0.25 * waves, 0, 1),
    )


def _brick(rng, x, y):
    height = rng.uniform(9, 14)
    row = np.floor(y / height)
    u, v = (x / (2.1 * height) + 0.5 * (row % 2)), y / height
    mortar = (u % 1.0 < 0.08) | (v % 1.0 < 0.16)
    tint = rng.uniform(-1, 1, (int(row.max()) + 1, int(u.max()) + 2)).astype(np.float32)
    tone = tint[row.astype(np.int64), np.floor(u).astype(np.int64)]
    bricks = _mix(
        _colour(rng.uniform(0.0, 0.05), 0.75, 0.4),
        _colour(rng.uniform(0.02, 0.07), 0.6, 0.8),
        np.clip(0.5 + 0.4 * tone + 0.15 * _noise(rng, x, y, 2), 0, 1),
    )
    return np.where(mortar[..., None], _colour(0.1, 0.12, rng.uniform(0.55, 0.85)), bricks)


def _snow(rng, x, y):
    drifts = _noise(rng, x, y, 20) + 0.3 * _noise(rng, x, y, 5)
    sparkle = _noise(rng, x, y, 2) > 0.8
    return _mix(
        _colour(rng.uniform(0.55, 0.68), 0.3, 0.75),
        _colour(0.6, 0.03, 1.0),
        np.clip(0.6 + 0.5 * drifts + 0.3 * sparkle, 0, 1),
    )


def _wood(rng, x, y):
    board = rng.uniform(18, 30)
    plank = np.floor(x / board)
    shift = rng.uniform(0, 50, int(plank.max()) + 1).astype(np.float32)[plank.astype(np.int64)]
    rings = _wave((x + 5 * _noise(rng, x, y / 5, 8) + shift) / rng.uniform(5, 8))
    boards = _mix(
        _colour(rng.uniform(0.05, 0.08), 0.75, 0.35),
        _colour(rng.uniform(0.07, 0.1), 0.6, 0.75),
        np.clip(0.5 + 0.3 * rings + 0.01 * (shift - 25), 0, 1),
    )
    return np.where(((x / board) % 1.0 < 0.06)[..., None], _colour(0.06, 0.7, 0.15), boards)


_GROUNDS = {
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "brick": _brick,
    "snow": _snow,
    "wood": _wood,
}


def _paint_grounds(rng, canvas):
    """One ground, or two with a wavy border between them; returns their names."""
    names = rng.choice(BACKGROUNDS, 2, replace=False)[: 1 + (rng.random() < 0.5)]
    canvas.rgb[:] = _GROUNDS[names[0]](rng, canvas.x, canvas.y)
    if len(names) == 2:
        level = rng.uniform(0.3, 0.7) * canvas.height
        slope = rng.uniform(-0.4, 0.4)
        border = (
            level
            + slope * (canvas.x - canvas.width / 2)
            + 5 * _noise(rng, canvas.x, canvas.y[:1], 25)
        )
        below = canvas.y > border
        canvas.rgb[below] = _GROUNDS[names[1]](rng, canvas.x, canvas.y)[below]
        canvas.label[below] = 1
    return [str(n) for n in names]


# --- objects: signed distances in a frame where an object's radius is about 1, y pointing down ----


def _circle(x, y, cx, cy, r):
    return np.sqrt((x - cx) ** 2 + (y - cy) ** 2) - r


def _ellipse(x, y, cx, cy, a, b):
    return (np.sqrt(((x - cx) / a) ** 2 + ((y - cy) / b) ** 2) - 1) * min(a, b)


def _rect(x, y, cx, cy, a, b):
    return np.maximum(np.abs(x - cx) - a, np.abs(y - cy) - b)


def _convex(x, y, *corners):
    """A convex polygon; corners clockwise on the screen."""
    distance = None
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = math.hypot(bx - ax, by - ay)
        side = ((by - ay) * (x - ax) - (bx - ax) * (y - ay)) / length
        distance = side if distance is None else np.maximum(distance, side)
    return distance


def _points(n, radius, turn=0.0):
    angles = [2 * math.pi * (k + turn) / n for k in range(n)]
    return [(radius * math.sin(a), -radius * math.cos(a)) for a in angles]


def _star(x, y):
    outer, inner = _points(5, 1.1), _points(5, 0.46, 0.5)
    arms = [_convex(x, y, inner[k - 1], outer[k], inner[k], (0.0, 0.0)) for k in range(5)]
    return [np.minimum.reduce(arms)]


def _heart(x, y):
    lobes = np.minimum(_circle(x, y, -0.45, -0.35, 0.55), _circle(x, y, 0.45, -0.35, 0.55))
    return [np.minimum(lobes, _convex(x, y, (-0.86, 0.02), (0.0, -0.7), (0.86, 0.02), (0.0, 1.05)))]


def _flower(x, y):
    petals = [_circle(x, y, px, py, 0.4) for px, py in _points(6, 0.66)]
    return [np.minimum.reduce(petals), _circle(x, y, 0, 0, 0.42)]


def _fish(x, y):
    tail = _convex(x, y, (0.3, 0.0), (1.15, -0.6), (1.15, 0.6))
    return [
        np.minimum(_ellipse(x, y, -0.2, 0, 0.85, 0.55), tail),
        _circle(x, y, -0.62, -0.12, 0.14),
    ]


def _mushroom(x, y):
    cap = np.maximum(_ellipse(x, y, 0, 0.1, 1.05, 1.0), y - 0.1)
    return [cap, _convex(x, y, (-0.28, 0.1), (0.28, 0.1), (0.4, 1.0), (-0.4, 1.0))]


def _house(x, y):
    roof = _convex(x, y, (0.0, -1.1), (1.1, -0.1), (-1.1, -0.1))
    return [_rect(x, y, 0, 0.4, 0.85, 0.55), roof, _rect(x, y, 0.1, 0.6, 0.2, 0.35)]


def _tree(x, y):
    crown = np.minimum(
        _convex(x, y, (0.0, -1.2), (0.7, -0.1), (-0.7, -0.1)),
        _convex(x, y, (0.0, -0.75), (0.95, 0.6), (-0.95, 0.6)),
    )
    return [crown, _rect(x, y, 0, 0.85, 0.2, 0.27)]


# name: (its parts, the later painted over the earlier; usual hue; how far it may be turned)
_SHAPES = {
    "mushroom": (_mushroom, 0.03, 0.25),
    "house": (_house, 0.11, 0.15),
    "star": (_star, 0.18, 0.5),
    "tree": (_tree, 0.34, 0.15),
    "ring": (lambda x, y: [np.abs(_circle(x, y, 0, 0, 0.75)) - 0.27], 0.44, math.pi),
    "fish": (_fish, 0.53, 0.4),
    "box": (lambda x, y: [_rect(x, y, 0, 0, 0.85, 0.85)], 0.65, 0.6),
    "ball": (lambda x, y: [_circle(x, y, 0, 0, 0.95)], 0.75, math.pi),
    "flower": (_flower, 0.86, math.pi),
    "heart": (_heart, 0.95, 0.4),
}


def _place_object(rng, canvas, light, objects):
    """Draw one object over the others, or none if no place leaves them visible enough."""
    name = str(rng.choice(OBJECTS))
    parts, hue, turn = _SHAPES[name]
    for _ in range(8):
        radius = rng.uniform(18, 30)
        cy, cx = (
            rng.uniform(0.6 * radius, side - 0.6 * radius) for side in (canvas.height, canvas.width)
        )
        angle = rng.uniform(-turn, turn)
        rows, cols = canvas.window(cy, cx, 1.5 * radius)
        c, s = math.cos(angle) / radius, math.sin(angle) / radius
        dy, dx = canvas.y[rows] - cy, canvas.x[:, cols] - cx
        x, y = c * dx + s * dy, c * dy - s * dx
        if name == "fish" and rng.random() < 0.5:
            x = -x
        layers = parts(x, y)
        outline = np.minimum.reduce(layers)
        inside = outline < 0
        label = canvas.label[rows, cols]
        covered = np.bincount(label[inside], minlength=2 + len(objects))[2:]
        if all(
            o["visible"] - n >= MIN_VISIBLE * o["area"]
            for o, n in zip(objects, covered, strict=True)
        ):
            break
    else:
        return
    for o, n in zip(objects, covered, strict=True):
        o["visible"] -= n
    area = int(inside.sum())
    objects.append({"name": name, "area": area, "visible": area})
    rgb = canvas.rgb[rows, cols]

    # The shadow is the outline again, moved away from the light and soft at its rim.
    reach = rng.uniform(0.12, 0.3)
    sx = x - reach * (c * light[0] + s * light[1]) * radius
    sy = y - reach * (c * light[1] - s * light[0]) * radius
    shade = np.clip(0.5 - 4 * np.minimum.reduce(parts(sx, sy)), 0, 1) * rng.uniform(0.35, 0.6)
    rgb *= (1 - shade)[..., None]

    own_hue = hue + rng.uniform(-0.03, 0.03) if rng.random() < 0.9 else rng.random()
    bevel = 0.75 + 0.25 * np.clip(-outline * 5, 0, 1) - 0.2 * (x * light[0] + y * light[1])
    for k, layer in enumerate(layers):
        paint = _dress(rng, own_hue + 0.5 * (k % 2), dx, dy, x * radius, y * radius)
        part = layer < 0
        rgb[part] = (paint * bevel[..., None])[part]
    label[inside] = 1 + len(objects)


def _subpixels(canvas):
    """The supersampled canvas as ``_SS**2`` canvases of the final size."""
    return [canvas[i::_SS, j::_SS] for i in range(_SS) for j in range(_SS)]


def _finish(rng, canvas, grounds, objects):
    """Light, colour cast and grain; then final pixels, each named by what covers most of it."""
    h, w = canvas.height, canvas.width
    rgb = sum(_subpixels(canvas.rgb)) / _SS**2
    y, x = (np.arange(h, dtype=np.float32)[:, None], np.arange(w, dtype=np.float32)[None, :])
    slope = rng.uniform(-0.3, 0.3, 2)
    light = (
        0.95
        + slope[0] * (y / h - 0.5) * 2
        + slope[1] * (x / w - 0.5) * 2
        + 0.15 * _noise(rng, x, y, 40)
    )
    rgb = rgb * light[..., None] * rng.uniform(0.85, 1.1, 3) + rng.uniform(-0.05, 0.05, (h, w, 1))
    image = Image.fromarray((np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8))

    every = grounds + ([] if len(grounds) == 2 else [grounds[0]]) + [o["name"] for o in objects]
    names = list(dict.fromkeys(every))
    kind = _subpixels(np.array([names.index(n) for n in every])[canvas.label])
    mask = np.stack(
        [sum((sub == k).astype(np.uint8) for sub in kind) for k in range(len(names))]
    ).argmax(0)
    # A ground may be hidden altogether; its name then goes, and the indices close ranks.
    seen = np.unique(mask)
    mask = np.searchsorted(seen, mask)
    names = [names[k] for k in seen]
    others = [n for n in NAMES if n not in names]
    names += [str(n) for n in rng.choice(others, ABSENT, replace=False)]
    return image, mask.astype(np.int64), names
