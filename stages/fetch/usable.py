"""Every picture of a list looked at in several processes; first of all whether it can be used: decoded once, whole,
before anything is built on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, TypeVar

from tqdm import tqdm

from stages.fetch.pictures import PictureError, Pictures, decode

FEW = 200  # pictures; that many are decoded sooner than a process starts
T = TypeVar("T")


def decodable(
    pictures: Pictures, names: Sequence[str], allow_missing: int, missing: Mapping[str, str] | None = None
) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Decodes every named picture but those of which `missing` says why they are not there.

    Returns the upright (width, height) of those that can be used and, for at most `allow_missing` others, why not.
    Raises PictureError where there are more.
    """
    missing = missing or {}
    there = [name for name in names if name not in missing]
    results = list(zip(there, over(pictures, there, _size, "checking"), strict=True))
    unusable = {**missing} | {name: why for name, why in results if isinstance(why, str)}
    refuse(unusable, allow_missing)
    return {name: size for name, size in results if not isinstance(size, str)}, unusable


def over(pictures: Pictures, names: Sequence[str], work: Callable[[Pictures, str], T], title: str) -> list[T]:
    """`work(pictures, name)` of every name, in their order, in two processes. `work` is a function of a module, or a
    `partial` of one, so that it can be sent to a process."""
    bar = partial(tqdm, total=len(names), desc=title, unit=" pictures", disable=None)
    if len(names) <= FEW:
        return list(bar(map(partial(work, pictures), names)))
    with ProcessPoolExecutor(2, initializer=_start, initargs=(pictures, work)) as pool:
        return list(bar(pool.map(_work_here, names, chunksize=64)))


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


def counted(names: Iterable[str]) -> dict[str, Any]:
    """Pictures as fetch reports them: how many, and which."""
    listed = sorted(names)
    return {"count": len(listed), "names": listed}


def _size(pictures: Pictures, name: str) -> tuple[int, int] | str:
    """A picture's size, or why it has none."""
    if name not in pictures:
        return "is not there"
    try:
        return decode(pictures.read(name)).size
    except PictureError as error:
        return str(error)


_pictures: Pictures  # of a worker process, which gets the index once and not with every name
_work: Callable[[Pictures, str], Any]


def _start(pictures: Pictures, work: Callable[[Pictures, str], Any]) -> None:
    global _pictures, _work
    _pictures, _work = pictures, work


def _work_here(name: str) -> Any:
    return _work(_pictures, name)
