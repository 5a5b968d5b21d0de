"""Scenes: what is in a drawn picture, and the picture itself.

A scene has a background and one or two groups of equal objects; two groups stand in a relation to each other. Shapes
are polygons in units of an object's radius, y upwards, painted in order; a picture is painted at twice its size and
averaged down, with jitter in every colour, size, angle and place, and grain over all, so that no two are alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageChops, ImageDraw

Point = tuple[float, float]
Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (214, 36, 38),
    "yellow": (246, 214, 36),
    "green": (38, 152, 58),
    "blue": (36, 84, 208),
    "purple": (150, 40, 190),
    "white": (246, 246, 246),
    "black": (28, 28, 30),
}


@dataclass(frozen=True, slots=True)
class Background:
    """Colours at top and bottom of the sky and, where there is any, of the ground; the specks on it; what it hides."""

    sky: tuple[Colour, Colour]
    ground: tuple[Colour, Colour] | None
    hides: str  # the colour of COLOURS that would not be seen on it
    specks: tuple[int, float, float, Colour]  # blades, waves, clouds, stars: how many, half width and height, colour


_DAY = ((150, 200, 245), (215, 235, 250))

BACKGROUNDS: dict[str, Background] = {
    "grass": Background(_DAY, ((120, 190, 90), (70, 150, 50)), "green", (70, 0.003, 0.012, (56, 120, 40))),
    "sand": Background(_DAY, ((240, 222, 170), (222, 190, 120)), "yellow", (90, 0.005, 0.003, (188, 160, 100))),
    "sea": Background(_DAY, ((90, 160, 205), (20, 80, 150)), "blue", (30, 0.05, 0.003, (26, 104, 195))),
    "snow": Background(
        ((140, 150, 165), (180, 188, 198)),
        ((232, 238, 246), (250, 252, 255)),
        "white",
        (50, 0.006, 0.006, (214, 220, 230)),
    ),
    "sky": Background(((95, 165, 240), (190, 222, 250)), None, "blue", (9, 0.10, 0.03, (236, 243, 250))),
    "night": Background(((6, 8, 30), (28, 32, 72)), None, "black", (45, 0.004, 0.004, (230, 230, 200))),
    "sunset": Background(((120, 60, 110), (250, 160, 80)), None, "purple", (8, 0.18, 0.012, (240, 120, 90))),
    "rain": Background(((92, 100, 112), (134, 142, 152)), None, "black", (90, 0.0015, 0.03, (172, 182, 196))),
    "road": Background(_DAY, ((104, 104, 108), (72, 72, 76)), "black", (10, 0.06, 0.007, (226, 226, 220))),
    "leaves": Background(_DAY, ((150, 98, 54), (112, 68, 36)), "red", (130, 0.011, 0.007, (214, 122, 42))),
    "wall": Background(((168, 166, 162), (150, 148, 146)), None, "white", (0, 0, 0, (0, 0, 0))),
}


@dataclass(frozen=True, slots=True)
class Group:
    """Equal objects: how many, how large ("small", "medium" or "big"), which colour and which shape."""

    count: int
    size: str
    colour: str
    kind: str


@dataclass(frozen=True, slots=True)
class Scene:
    """A background and what stands before it; `relation` says where the first group is, seen from the second."""

    background: str
    groups: tuple[Group, ...]
    relation: str | None  # "left", "right", "above", "below" or "behind"; None where there is one group


def _oval(x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360) -> list[Point]:
    turns = [math.radians(start + (end - start) * step / 28) for step in range(29)]
    return [(x + rx * math.cos(turn), y + ry * math.sin(turn)) for turn in turns]


def _box(x: float, y: float, rx: float, ry: float) -> list[Point]:
    return [(x - rx, y - ry), (x + rx, y - ry), (x + rx, y + ry), (x - rx, y + ry)]


def _star(points: int, inner: float) -> list[Point]:
    radii = [1 if corner % 2 == 0 else inner for corner in range(2 * points)]
    turns = [math.pi / 2 + math.pi * corner / points for corner in range(2 * points)]
    return [(radius * math.cos(turn), radius * math.sin(turn)) for radius, turn in zip(radii, turns, strict=True)]


def _heart() -> list[Point]:
    turns = [2 * math.pi * step / 40 for step in range(40)]
    wave = ((13, 1), (-5, 2), (-2, 3), (-1, 4))
    return [(math.sin(t) ** 3, sum(a * math.cos(n * t) for a, n in wave) / 16 + 0.1) for t in turns]


_BROWN, _DARK, _PALE, _LEAF, _GOLD = (112, 72, 40), (40, 40, 44), (226, 236, 244), (52, 130, 60), (250, 206, 60)

# Kind -> polygons, each with its colour: a number is the object's own colour times that much light.
SHAPES: dict[str, tuple[tuple[Sequence[Point], float | Colour], ...]] = {
    "circle": ((_oval(0, 0, 1, 1), 1), (_oval(-0.3, 0.35, 0.28, 0.2), 1.35)),
    "square": ((_box(0, 0, 0.86, 0.86), 1), (_box(0, 0, 0.6, 0.6), 1.12)),
    "triangle": (([(0, 0.95), (-1, -0.8), (1, -0.8)], 1),),
    "star": ((_star(5, 0.42), 1),),
    "heart": ((_heart(), 1),),
    "house": (
        (_box(0, -0.35, 0.8, 0.6), 1),
        ([(-1, 0.25), (0, 1), (1, 0.25)], 0.6),
        (_box(0.35, -0.6, 0.17, 0.35), _BROWN),
        (_box(-0.35, -0.3, 0.2, 0.2), _PALE),
    ),
    "tree": (
        (_box(0, -0.6, 0.14, 0.4), _BROWN),
        (_oval(-0.38, 0.0, 0.5, 0.42), 0.9),
        (_oval(0.38, 0.0, 0.5, 0.42), 0.9),
        (_oval(0, 0.42, 0.58, 0.55), 1),
    ),
    "car": (
        ([(-0.62, 0.1), (-0.36, 0.58), (0.36, 0.58), (0.62, 0.1)], 0.85),
        ([(-0.46, 0.12), (-0.29, 0.46), (-0.04, 0.46), (-0.04, 0.12)], _PALE),
        ([(0.46, 0.12), (0.29, 0.46), (0.04, 0.46), (0.04, 0.12)], _PALE),
        (_box(0, -0.13, 1, 0.26), 1),
        (_oval(-0.55, -0.4, 0.25, 0.25), _DARK),
        (_oval(0.55, -0.4, 0.25, 0.25), _DARK),
    ),
    "boat": (
        (_box(0, 0.2, 0.05, 0.75), _BROWN),
        ([(0.08, 0.92), (0.08, -0.2), (0.8, -0.2)], 1.15),
        ([(-0.08, 0.7), (-0.08, -0.2), (-0.6, -0.2)], 0.9),
        ([(-1, -0.32), (1, -0.32), (0.66, -0.85), (-0.66, -0.85)], 1),
    ),
    "fish": (
        ([(0.5, 0), (1, 0.5), (1, -0.5)], 0.8),
        (_oval(-0.2, 0, 0.8, 0.48), 1),
        (_oval(-0.6, 0.12, 0.1, 0.1), _DARK),
    ),
    "flower": (
        (_box(0, -0.6, 0.06, 0.4), _LEAF),
        *((_oval(0.4 * math.cos(a), 0.3 + 0.4 * math.sin(a), 0.3, 0.3), 1) for a in (0.3, 1.35, 2.4, 3.45, 4.5, 5.55)),
        (_oval(0, 0.3, 0.24, 0.24), _GOLD),
    ),
    "mushroom": (
        (_box(0, -0.5, 0.26, 0.5), _PALE),
        (_oval(0, 0, 1, 0.95, 0, 180), 1),
        *((_oval(x, y, 0.14, 0.12), _PALE) for x, y in ((-0.5, 0.3), (0.05, 0.6), (0.45, 0.25))),
    ),
    "umbrella": (
        (_box(0, -0.3, 0.05, 0.65), _BROWN),
        ([*_oval(0, 0, 1, 0.95, 0, 180), (0.5, 0.12), (0, 0), (-0.5, 0.12)], 1),
        (_oval(0, 0, 0.45, 0.95, 0, 180), 1.15),
    ),
    "moon": ((_oval(0, 0, 0.95, 0.95, 60, 300) + _oval(0.5, 0, 0.82, 0.82, 270, 90)[1:-1], 1),),
}

# Radius of an object by its size, in sides of the picture; in half a picture, big ones shrink to fit.
_RADIUS = {"small": 0.09, "medium": 0.18, "big": 0.36}
_LEANS = {"house": 3, "tree": 4, "car": 4, "boat": 5, "flower": 8}  # degrees at most; the others turn by up to 14


def paint(scene: Scene, size: int, rng: Random) -> Image.Image:
    """Paints `scene` as an RGB picture of size x size pixels. `rng` decides what the scene leaves open."""
    side = 2 * size
    image = _backdrop(scene.background, side, rng)
    draw = ImageDraw.Draw(image)
    for group, places in _layout(scene, rng):
        colour = _jitter(COLOURS[group.colour], 12, rng)
        for x, y, radius in places:
            _draw(draw, group.kind, (x * side, y * side), radius * side, colour, rng)
    return _noisy(image.reduce(2), rng)


def _jitter(colour: Colour, most: int, rng: Random) -> Colour:
    red, green, blue = (min(255, max(0, part + rng.randint(-most, most))) for part in colour)
    return red, green, blue


def _gradient(image: Image.Image, top: int, bottom: int, colours: tuple[Colour, Colour], rng: Random) -> None:
    far, near = (_jitter(colour, 10, rng) for colour in colours)
    strip = Image.new("RGB", (1, 2))
    strip.putdata([far, near])
    image.paste(strip.resize((image.width, bottom - top), Image.Resampling.BILINEAR), (0, top))


def _backdrop(name: str, side: int, rng: Random) -> Image.Image:
    background = BACKGROUNDS[name]
    image = Image.new("RGB", (side, side))
    horizon = round(side * rng.uniform(0.18, 0.32)) if background.ground else side
    _gradient(image, 0, horizon, background.sky, rng)
    if background.ground:
        _gradient(image, horizon, side, background.ground, rng)
    draw = ImageDraw.Draw(image)
    count, wide, high, colour = background.specks
    for _ in range(count):
        x, y, scale = rng.uniform(0, side), rng.uniform(horizon % side, side), side * rng.uniform(0.5, 1.3)
        box = (x - scale * wide, y - scale * high, x + scale * wide, y + scale * high)
        draw.ellipse(box, fill=_jitter(colour, 8, rng))
    return image


def _layout(scene: Scene, rng: Random) -> list[tuple[Group, list[tuple[float, float, float]]]]:
    """Places of every object as (x, y, radius) in sides of the picture, the hindmost group first; y runs downwards."""
    if scene.relation is None:
        return [(scene.groups[0], _places(scene.groups[0], (0.04, 0.08, 0.96, 0.96), rng))]
    first, second = scene.groups
    if scene.relation == "behind":  # the second overlaps the first one's foot
        x, y = rng.uniform(0.42, 0.58), rng.uniform(0.40, 0.46)
        back, front = (x, y, _RADIUS[first.size]), (x + rng.uniform(-0.15, 0.15), y + 0.3, 1.3 * _RADIUS[second.size])
        return [(first, [back]), (second, [front])]
    middle = 0.6  # the first group gets more of the picture: it is what one sees first
    near, far = (0.02, middle), (middle, 0.98)
    if scene.relation in ("right", "below"):
        near, far = (1 - middle, 0.98), (0.02, 1 - middle)
    if scene.relation in ("left", "right"):
        boxes = (near[0], 0.1, near[1], 0.96), (far[0], 0.1, far[1], 0.96)
    else:
        boxes = (0.05, near[0], 0.95, near[1]), (0.05, far[0], 0.95, far[1])
    return [(second, _places(second, boxes[1], rng)), (first, _places(first, boxes[0], rng))]


def _places(group: Group, box: tuple[float, float, float, float], rng: Random) -> list[tuple[float, float, float]]:
    """Cuts the box into cells along its longer side and puts one object into each, somewhere where it fits."""
    left, top, right, bottom = box
    along_x = right - left >= bottom - top
    wide = (right - left) / (group.count if along_x else 1)
    high = (bottom - top) / (1 if along_x else group.count)
    radius = min(_RADIUS[group.size] * rng.uniform(0.92, 1.08), wide / 2, high / 2)
    places = []
    for cell in range(group.count):
        x0, y0 = left + wide * cell * along_x, top + high * cell * (not along_x)
        slack_x, slack_y = min(wide / 2 - radius, 0.12), min(high / 2 - radius, 0.12)
        x = x0 + wide / 2 + rng.uniform(-slack_x, slack_x)
        y = y0 + high / 2 + rng.uniform(-slack_y, slack_y)
        places.append((x, y, radius))
    return places


def _light(colour: Colour, light: float) -> Colour:
    red, green, blue = (min(255, round(part * light)) for part in colour)
    return red, green, blue


def _draw(draw: ImageDraw.ImageDraw, kind: str, at: Point, radius: float, colour: Colour, rng: Random) -> None:
    lean = math.radians(rng.uniform(-1, 1) * _LEANS.get(kind, 14))
    stretch, flip = rng.uniform(0.92, 1.08), rng.choice((-1, 1))
    cos, sin = radius * math.cos(lean), radius * math.sin(lean)
    for polygon, tone in SHAPES[kind]:
        fill = tone if isinstance(tone, tuple) else _light(colour, tone)
        points = [
            (at[0] + x * flip * stretch * cos - y / stretch * sin, at[1] - x * flip * stretch * sin - y / stretch * cos)
            for x, y in polygon
        ]
        draw.polygon(points, fill=fill, outline=_light(fill, 0.55), width=max(1, round(radius * 0.04)))


def _noisy(image: Image.Image, rng: Random) -> Image.Image:
    """Adds one grey value to every pixel, up to 9 either way, as a film's grain does."""
    grain = Image.frombytes("L", image.size, rng.randbytes(image.width * image.height))
    grain = grain.point([value * 19 // 256 for value in range(256)])
    return ImageChops.add(image, Image.merge("RGB", (grain, grain, grain)), 1, -9)
