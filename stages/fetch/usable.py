"""Which pictures can be used: every one is decoded once, whole, before anything is built on it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import repeat

from tqdm import tqdm

from stages.fetch.pictures import PictureError, Pictures, decode

FEW = 200  # pictures; that many are decoded sooner than a process starts


def decodable(
    pictures: Pictures, names: Sequence[str], allow_missing: int
) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Decodes every named picture, in two processes.

    Returns the upright (width, height) of those that can be used and, for at most `allow_missing` others, why not.
    Raises PictureError where there are more.
    """
    bar = partial(tqdm, total=len(names), desc="checking", unit=" pictures", disable=None)
    if len(names) <= FEW:
        found = list(bar(map(_size, repeat(pictures), names)))
    else:
        with ProcessPoolExecutor(2, initializer=_start, initargs=(pictures,)) as pool:
            found = list(bar(pool.map(_size_here, names, chunksize=64)))
    results = list(zip(names, found, strict=True))
    unusable = {name: why for name, why in results if isinstance(why, str)}
    refuse(unusable, allow_missing)
    return {name: size for name, size in results if not isinstance(size, str)}, unusable


def refuse(unusable: dict[str, str], allow_missing: int) -> None:
    """Raises PictureError where more pictures than `allow_missing` cannot be used; names the first ten, and why."""
    if len(unusable) > allow_missing:
        named = [f"  {name} {why}" for name, why in list(unusable.items())[:10]]
        more = [f"  and {len(unusable) - 10:,} more"] if len(unusable) > 10 else []
        count = "1 picture is" if len(unusable) == 1 else f"{len(unusable):,} pictures are"
        raise PictureError(
            f"{count} missing or damaged, and fetch.allow_missing is {allow_missing:,}: put right what is named here, "
            f"or set it to {len(unusable)} to leave that out\n" + "\n".join(named + more)
        )


def _size(pictures: Pictures, name: str) -> tuple[int, int] | str:
    """A picture's size, or why it has none."""
    if name not in pictures:
        return "is not there"
    try:
        return decode(pictures.read(name)).size
    except PictureError as error:
        return str(error)


_pictures: Pictures  # of a worker process, which gets the index once and not with every name


def _start(pictures: Pictures) -> None:
    global _pictures
    _pictures = pictures


def _size_here(name: str) -> tuple[int, int] | str:
    return _size(_pictures, name)
