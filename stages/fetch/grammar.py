"""How five people would describe a scene: forms of sentence, and words that mean the same.

The captions of a picture differ as human ones do: in syntax (noun phrase, active, existential, locative inversion,
passive, predicate), in words (ball or circle, big or large, over or above), in focus (either group first, one group
left out) and in detail (size, place or relation not mentioned). What they share is what is to be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TypeVar

from stages.fetch.scenes import Group, Scene

_T = TypeVar("_T")

WORDS = range(6, 15)  # words of a caption

# Singular and plural; the first is what most people say.
NOUNS: dict[str, tuple[tuple[str, str], ...]] = {
    "circle": (("ball", "balls"), ("circle", "circles")),
    "square": (("square", "squares"), ("box", "boxes")),
    "triangle": (("triangle", "triangles"),),
    "star": (("star", "stars"),),
    "heart": (("heart", "hearts"),),
    "house": (("house", "houses"), ("cottage", "cottages")),
    "tree": (("tree", "trees"),),
    "car": (("car", "cars"),),
    "boat": (("boat", "boats"), ("ship", "ships")),
    "fish": (("fish", "fish"),),
    "flower": (("flower", "flowers"), ("blossom", "blossoms")),
    "mushroom": (("mushroom", "mushrooms"),),
    "umbrella": (("umbrella", "umbrellas"),),
    "moon": (("moon", "moons"),),
}

SIZES = {"small": ("small", "little"), "medium": (), "big": ("big", "large")}
NUMBERS = {2: "two", 3: "three"}

PLACES = {
    "grass": ("on the green grass", "on the grass", "in a green field"),
    "sand": ("on the sand", "on a sandy beach", "on the beach"),
    "sea": ("on the blue sea", "on the water", "on the sea"),
    "snow": ("in the white snow", "in the snow", "on the snow"),
    "sky": ("in the blue sky", "in the sky", "among the clouds"),
    "night": ("at night", "in the dark", "in the night sky"),
    "sunset": ("at sunset", "in the evening light"),
    "rain": ("in the rain", "on a rainy day"),
    "road": ("on the road", "on a grey road", "in the street"),
    "leaves": ("on the brown leaves", "on the autumn leaves"),
    "wall": ("on a grey wall", "on the wall", "before a grey wall"),
}

_GROUNDED = (("stands", "stand"), ("sits", "sit"))
_AIRBORNE = (("floats", "float"), ("hangs", "hang"))
VERBS = {
    **dict.fromkeys(("grass", "sand", "snow", "road", "leaves"), _GROUNDED),
    **dict.fromkeys(("sky", "night", "sunset", "rain"), _AIRBORNE),
    "sea": (("floats", "float"), ("drifts", "drift")),
    "wall": (("hangs", "hang"), ("is", "are")),
}

RELATIONS = {
    "left": ("to the left of", "beside"),
    "right": ("to the right of", "beside"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "front": ("in front of",),
    "behind": ("behind",),
}
CONVERSE = {"left": "right", "right": "left", "above": "below", "below": "above", "behind": "front"}


def describe(scene: Scene, rng: Random, captions: int = 5) -> tuple[str, ...]:
    """Returns that many different captions of `scene`, each in a form of its own as long as there are forms.

    >>> stars, boat = Group(2, "small", "red", "star"), Group(1, "medium", "white", "boat")
    >>> for caption in describe(Scene("night", (stars, boat), "above"), Random(3)):
    ...     print(caption)
    Above a white boat float two small red stars.
    There are two red stars above a white boat.
    A drawing of two red stars and a white boat.
    A white boat under two small red stars at night.
    Two little red stars can be seen in the dark.
    """
    forms = _PAIR if scene.relation else _ALONE
    said: list[str] = []
    while len(said) < captions:
        for form in rng.sample(forms, len(forms)):
            caption = form(_Speaker(scene, rng))
            if len(caption.split()) in WORDS and caption not in said and len(said) < captions:
                said.append(caption)
    return tuple(caption[0].upper() + caption[1:] + "." for caption in said)


class _Speaker:
    """One person looking at a scene, who has decided on words and on how much detail to give."""

    def __init__(self, scene: Scene, rng: Random) -> None:
        first, second = scene.groups[0], scene.groups[-1]
        self.x, self.y = _phrase(first, rng, 0.7), _phrase(second, rng, 0.2)
        self.place = _mostly_first(PLACES[scene.background], rng)
        verb = _mostly_first(VERBS[scene.background], rng)
        self.does, self.do = verb[first.count > 1], verb[1]
        self.is_, self.y_is = ("are" if group.count > 1 else "is" for group in (first, second))
        if scene.relation:
            self.relation = _mostly_first(RELATIONS[scene.relation], rng)
            self.converse = _mostly_first(RELATIONS[CONVERSE[scene.relation]], rng)
        self.noun = _noun(first, rng)
        self.number = f"{NUMBERS[first.count]} " if first.count > 1 else ""
        self.look = " and ".join((*SIZES[first.size][:1], first.colour))
        self.shows = rng.choice(("the picture shows", "a drawing of", "a picture of"))


def _mostly_first(options: tuple[_T, ...], rng: Random) -> _T:
    return options[0] if rng.random() < 0.6 else rng.choice(options)


def _noun(group: Group, rng: Random) -> str:
    return _mostly_first(NOUNS[group.kind], rng)[group.count > 1]


def _phrase(group: Group, rng: Random, detail: float) -> str:
    """A group as a noun phrase; its size is mentioned with probability `detail`, where it is not medium."""
    size = [_mostly_first(SIZES[group.size], rng)] if SIZES[group.size] and rng.random() < detail else []
    words = [*size, group.colour, _noun(group, rng)]
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([NUMBERS.get(group.count, article), *words])


_Form = Callable[[_Speaker], str]

_ALONE: tuple[_Form, ...] = (
    lambda s: f"{s.x} {s.place}",
    lambda s: f"{s.x} {s.does} {s.place}",
    lambda s: f"there {s.is_} {s.x} {s.place}",
    lambda s: f"{s.place} {s.does} {s.x}",
    lambda s: f"{s.shows} {s.x} {s.place}",
    lambda s: f"{s.x} can be seen {s.place}",
    lambda s: f"the {s.number}{s.noun} {s.place} {s.is_} {s.look}",
)

_PAIR: tuple[_Form, ...] = (
    lambda s: f"{s.x} {s.relation} {s.y}",
    lambda s: f"{s.x} {s.does} {s.relation} {s.y}",
    lambda s: f"there {s.is_} {s.x} {s.relation} {s.y}",
    lambda s: f"{s.relation} {s.y} {s.does} {s.x}",
    lambda s: f"{s.y} {s.converse} {s.x} {s.place}",
    lambda s: f"{s.x} and {s.y} {s.place}",
    lambda s: f"{s.place} {s.do} {s.x} and {s.y}",
    lambda s: f"{s.shows} {s.x} and {s.y}",
    lambda s: f"{s.x} can be seen {s.place}",
)
