"""Features on disk: one memory-mapped array per split and kind, and an index that says what they are.

    data/P/features/index.json              encoder, hash of its weights, preprocessing, ids of every row
    data/P/features/train_pooled.npy        (N, C) fp16      mean over the regions
    data/P/features/train_grid.npy          (N, R, C) fp16   one vector per region, if asked for
    data/P/features/train_pooled_mirrored.npy ...            the same pictures mirrored, if asked for

Shapes: N pictures of a split, P of them asked for, R regions, C channels

While it is being made, all this lies in `features.partial` with a journal of each process that writes into it; it gets
its final name when it is whole.
What it was made from stands beside the folder, not in it: edited code that makes the same features retrains nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from stages.files import read_json, sha256, whole, write_json

Array = NDArray[np.float16]
Mapped = np.memmap[Any, np.dtype[np.float16]]

PIECE = 1 << 20  # bytes


def array_name(split: str, kind: str, mirrored: bool = False) -> str:
    """`train`, `grid`, mirrored -> `train_grid_mirrored.npy`."""
    return f"{split}_{kind}{'_mirrored' if mirrored else ''}.npy"


class Features:
    """The finished features of a profile, opened for reading."""

    def __init__(self, folder: str | Path) -> None:
        """Reads the index; raises ValueError when the folder holds no whole features."""
        self.folder = Path(folder)
        if not (self.folder / "index.json").is_file():
            raise ValueError(f"{self.folder} holds no whole features: run `dvc repro features`")
        self.index: dict[str, Any] = read_json(self.folder / "index.json")
        self._opened: dict[str, tuple[BinaryIO, Mapped]] = {}

    def array(self, split: str, kind: str, mirrored: bool = False) -> Mapped:
        """The memory-mapped array: `pooled` (N, C) or `grid` (N, R, C), fp16, read only."""
        path = self.folder / array_name(split, kind, mirrored)
        if not path.is_file():
            raise ValueError(
                f"{path} is not there: set features.{'mirror' if mirrored else 'grid'} to true and run `dvc repro`"
            )
        mapped: Mapped = np.load(path, mmap_mode="r")
        return mapped

    def read(self, split: str, kind: str, rows: Sequence[int], mirrored: Sequence[bool] | None = None) -> Array:
        """Some rows of an array in the order asked for, (P, C) or (P, R, C); `mirrored` says which are to be mirrored.

        They are read by position, not through the memory map: its pages come in one by one, which takes many times as
        long where the order is random, and count as memory of this process. Raises ValueError where the file is cut.
        """
        flips = list(mirrored or [False] * len(rows))
        views = {flip: self._open(split, kind, flip) for flip in {False, *flips}}
        values = np.empty((len(rows), *views[False][1].shape[1:]), np.float16)
        for value, row, flip in zip(values, rows, flips, strict=True):
            file, array = views[flip]
            if os.preadv(file.fileno(), [value], array.offset + row * value.nbytes) < value.nbytes:
                raise ValueError(
                    f"{file.name} ends before row {row}: delete {self.folder} and run `dvc repro features`"
                )
        return values

    def _open(self, split: str, kind: str, mirrored: bool) -> tuple[BinaryIO, Mapped]:
        """An array's file, kept open, and its map, which knows where the rows begin."""
        name = array_name(split, kind, mirrored)
        if name not in self._opened:
            array = self.array(split, kind, mirrored)
            self._opened[name] = ((self.folder / name).open("rb", buffering=0), array)
        return self._opened[name]

    def rows(self, split: str) -> dict[int, int]:
        """Picture id -> row of its arrays. Pictures that did not decode have no row here."""
        unreadable = {failure["id"] for failure in self.index["unreadable"]}
        return {key: row for row, key in enumerate(self.index["splits"][split]) if key not in unreadable}

    def damage(self) -> str | None:
        """None when every array has the bytes that the index promises, else a sentence about one that has not."""
        if not self.index["sha256"]:
            return f"{self.folder} holds no array"
        for name, promised in self.index["sha256"].items():
            path = self.folder / name
            if not path.is_file():
                return f"{path} is missing"
            if sha256(path) != promised:
                return f"{path} has other bytes than its index says"
        return None


def made_from_file(folder: Path) -> Path:
    """Where the fingerprint of what the features in `folder` were made from is written."""
    return folder.with_name(f"{folder.name}.made_from")


def reuse(folder: Path, original: Path, made_from: str) -> Path | None:
    """Where the same features already lie whole: in `folder`, or in the repository that this one is a copy of.

    Features are no part of DVC's cache, where they would take their place twice and go to every remote; so a queued
    experiment, which runs in a copy, links those of the repository instead of computing them again.
    """
    if any(journal["fingerprint"] == made_from for journal in journals(folder)):
        settle(folder, made_from)
    for place in (folder, original):
        note = made_from_file(place)
        if not note.is_file() or note.read_text() != made_from or not (place / "index.json").is_file():
            continue
        if damage := Features(place).damage():
            print(f"features are computed again: {damage}")
            continue
        if place.resolve() != folder.resolve():
            partial = folder.with_name(f"{folder.name}.partial")
            wipe(partial)  # a killed process may have linked or copied a part
            draft = Draft(partial, made_from)
            for source in sorted(place.iterdir()):
                try:
                    os.link(source, draft.folder / source.name)
                except OSError:  # another file system
                    shutil.copyfile(source, draft.folder / source.name)
            draft.rename(folder)
        return place
    return None


def journals(folder: Path) -> list[dict[str, Any]]:
    """What each rank, of this start or an earlier one, has written of the features that it makes in `folder`."""
    return [read_json(path) for path in sorted(folder.glob("journal_*.json"))]


def wipe(folder: Path) -> None:
    """Removes a draft. Its journals go first: killed meanwhile, it holds none that speaks of arrays that are gone."""
    for path in folder.glob("journal_*.json"):
        path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def settle(folder: Path, made_from: str) -> None:
    """Notes what features that have just got their name were made from; only then can their journals go."""
    with whole(made_from_file(folder)) as partial:
        partial.write_text(made_from)
    # What killed processes left goes first: a journal says that there is something to be settled.
    for path in [*folder.glob(".*.partial"), *folder.glob("journal_*.json")]:
        path.unlink()


def reserve(path: Path) -> None:
    """Gives a sparse file its place on the disk: a memory map that finds the disk full ends the process by a signal,
    not by an error. Raises OSError."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        for start in range(0, size, PIECE):  # macOS cannot be asked for it: what is read as zeros is written as such
            os.pwrite(file.fileno(), os.pread(file.fileno(), PIECE, start), start)


class Draft:
    """Features in the making: arrays that fill batch by batch, and journals from which a killed run goes on.

    Several processes (ranks) write into the same arrays, each its own batches and a journal of its own. What any
    journal says is done stays done, however many ranks go on.
    """

    def __init__(self, folder: Path, fingerprint: str, rank: int = 0) -> None:
        """Opens `folder` again when it was begun with the same fingerprint, else begins it anew; rank 0 comes first."""
        self.folder = folder
        self.journal = folder / f"journal_{rank}.json"
        self.fingerprint = fingerprint
        self.arrays: dict[str, Mapped] = {}
        if any(journal["fingerprint"] == fingerprint for journal in journals(folder)):
            begun = read_json(self.journal) if self.journal.is_file() else {}
        else:
            wipe(folder)
            folder.mkdir(parents=True)
            begun = {}
        self.done: dict[str, list[int]] = begun.get("done", {})  # numbers of finished batches, by split
        self.unreadable: list[dict[str, Any]] = begun.get("unreadable", [])
        self.save()

    def all_done(self, split: str) -> set[int]:
        """The batches of a split that need not be done again."""
        return {number for journal in journals(self.folder) for number in journal["done"].get(split, [])}

    def open(self, name: str, shape: tuple[int, ...]) -> None:
        """Opens the array `name`, and makes it where it is not there yet; rank 0 comes first."""
        path = self.folder / name
        if not path.is_file():
            free, needed = shutil.disk_usage(self.folder).free, 2 * int(np.prod(shape))
            if needed > free:
                raise OSError(
                    f"{path} needs {needed:,} bytes and the disk has {free:,} free: make room, or set features.grid off"
                )
            with whole(path) as partial:
                open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
                reserve(partial)
        self.arrays[name] = open_memmap(path, mode="r+")

    def save(self) -> None:
        """Puts what is written so far on disk, then says in the journal what that is."""
        for array in self.arrays.values():
            array.flush()
        write_json(self.journal, {"fingerprint": self.fingerprint, "done": self.done, "unreadable": self.unreadable})

    def close_arrays(self) -> None:
        """Lets go of the arrays of a finished split."""
        self.arrays.clear()

    def all_unreadable(self, splits: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
        """What every rank could not read, in the order of the `splits`' picture ids."""
        order = {(split, key): place for split, ids in splits.items() for place, key in enumerate(ids)}
        found = [failure for journal in journals(self.folder) for failure in journal["unreadable"]]
        return sorted(found, key=lambda each: (list(splits).index(each["split"]), order[each["split"], each["id"]]))

    def finish(self, folder: Path, index: Mapping[str, Any]) -> None:
        """Writes the index with the arrays' hashes, and gives the folder its final name in one step."""
        unreadable = self.all_unreadable(index["splits"])
        hashes = {path.name: sha256(path) for path in sorted(self.folder.glob("*.npy"))}
        write_json(self.folder / "index.json", {**index, "unreadable": unreadable, "sha256": hashes})
        self.rename(folder)

    def rename(self, folder: Path) -> None:
        """Replaces `folder` by the draft, and notes what it was made from.

        Killed before the draft has its new name, it is a draft that is whole; after that, `reuse` settles the rest.
        """
        made_from_file(folder).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        self.folder.rename(folder)
        settle(folder, self.fingerprint)
