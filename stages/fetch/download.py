"""One file from elsewhere, whole and right, or not there at all.

    train2017.zip                     only when size and md5 are right
    train2017.zip.cced6f7f.partial    what has arrived, without a gap from the first byte on; named after its md5
    .train2017.zip.checked            size and time of the file whose md5 was taken, so that it is not read again
    .train2017.zip.lock               which process is at work on it
    .caption_datasets.zip.from        where a file without an md5 came from: a hash of its address

One connection begins. Where it is slow, several fetch a segment each; segments are hashed and written in their order,
so that a partial file needs no list of what it holds. Killed, it goes on at the partial file's end, after reading that
file once for the hash; what other connections had in hand beyond it (at most connections + 2 segments) comes again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial as bound
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

from stages.fetch.remote import PIECE, SEGMENT, Patience, Remote, in_order
from stages.files import alone, read_json, whole, write_json

TRIAL = 32 << 20  # bytes that one connection brings first
FAST = 200 << 20  # bytes a second; a connection that brings so many is left alone: hashing is hardly faster
FLUSH = 64 << 20  # bytes after which what was written is sent on to the disk, while more comes in

T = TypeVar("T")


class DownloadError(ValueError):
    """A file is not, or did not become, the one expected; the message names both and the cure."""


def download(
    url: str,
    path: Path,
    md5: str | None = None,
    size: int | None = None,
    connections: int = 4,
    patience: Patience | None = None,
) -> str:
    """Has the file at `url` lie at `path`, whole and right, and returns its md5. One that is there is only checked.

    Without `md5`, the size that the server names is all there is to compare with, and one from another address is
    another file, which stays until this one has come. Raises DownloadError, or RemoteError where the server does not
    deliver, what has arrived by then being kept for the next call; BusyError where another process downloads it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    origin, expected = path.with_name(f".{path.name}.from"), _expected(url, md5)
    with alone(path.with_name(f".{path.name}.lock"), f"{path} is being downloaded"):
        if path.exists() and md5 is None and not origin.exists():  # nobody knows: as if it came from here
            _note(origin, expected)
        if path.exists() and (md5 is not None or origin.read_text() == expected):
            return check(path, memory(path), md5, size)
        remote = Remote(url, patience)
        if size is not None and remote.size not in (None, size):
            raise DownloadError(f"{remote.name} has {remote.size:,} bytes, expected {size:,}: it is another file")
        remote.size = remote.size or size  # where the server does not say
        partial = partial_path(path, url, md5)
        for last in (False, True):
            found = _fetch(remote, partial, path.name, connections)
            if md5 in (None, found):
                if md5 is None:
                    path.unlink(missing_ok=True)  # first: whenever this is killed, no file is noted as another
                    _note(origin, expected)
                partial.replace(path)
                _remember(path, memory(path), found)
                return found
            partial.unlink()  # more bytes would not make it right
            if not last:
                print(f"{path.name} came with md5 {found}, expected {md5}: once more from its start", file=sys.stderr)
        raise DownloadError(
            f"{remote.name} came with md5 {found}, expected {md5}, twice: the server has another file, or something "
            "on the way changes it"
        )


def check(path: Path, memory: Path, md5: str | None = None, size: int | None = None) -> str:
    """Returns a file's md5, or raises DownloadError where it or the size is not the one expected.

    `memory` is a small file that remembers the md5 for as long as the file keeps its place, size and time.
    """
    there = path.stat().st_size
    if size is not None and there != size:
        raise DownloadError(f"{path} has {there:,} bytes, expected {size:,}: delete it and run `dvc repro fetch`")
    found = _remembered(path, memory)
    if found is None:
        found = _hash(path)
        _remember(path, memory, found)
    if md5 not in (None, found):
        raise DownloadError(f"{path} has md5 {found}, expected {md5}: delete it and run `dvc repro fetch`")
    return found


def memory(path: Path) -> Path:
    """Where a downloaded file's md5 is remembered."""
    return path.with_name(f".{path.name}.checked")


def partial_path(path: Path, url: str, md5: str | None) -> Path:
    """What has arrived of a file that will be `path`. Another md5 (without one, another url) is another file."""
    return path.with_name(f"{path.name}.{_expected(url, md5)[:8]}.partial")


def _expected(url: str, md5: str | None) -> str:
    """What names the file wanted: its md5, or where nobody knows that, the md5 of its address."""
    return md5 or hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()


def _note(origin: Path, expected: str) -> None:
    with whole(origin) as partial:
        partial.write_text(expected)


def make_sure_of_room(folder: Path, missing: dict[str, int]) -> None:
    """Raises DownloadError unless the disk of `folder` has room for all that is missing (bytes by name)."""
    free, needed = shutil.disk_usage(folder).free, sum(missing.values())
    if needed > free:
        raise DownloadError(
            f"{folder} has {free:,} bytes free and {', '.join(missing)} needs {needed:,} more: make room there"
        )


def _fetch(remote: Remote, partial: Path, name: str, connections: int) -> str:
    """Adds to the partial file what is missing, and returns the md5 of all of it."""
    done = partial.stat().st_size if partial.exists() else 0
    if remote.size is None or done > remote.size:
        partial.unlink(missing_ok=True)
        done = 0
    make_sure_of_room(partial.parent, {name: (remote.size or 0) - done})
    digest = hashlib.md5(usedforsecurity=False)
    bar = tqdm(desc=name, total=remote.size, initial=done, unit="B", unit_scale=True, disable=None)
    try:
        # Hashing is slower than receiving and writing together, and disks are slow: each has a thread of its own.
        with bar, partial.open("a+b") as file, _Aside(16) as hashing, _Aside(1) as flushing:
            file.seek(0)
            while piece := file.read(PIECE):
                hashing.call(digest.update, piece)
            flushed = done
            for piece in _pieces(remote, done, connections):
                file.write(piece)
                file.flush()  # out of the process, so that a kill does not take it along
                hashing.call(digest.update, piece)
                bar.update(len(piece))
                if file.tell() - flushed >= FLUSH:
                    flushing.call(os.fsync, file.fileno())
                    flushed = file.tell()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno == errno.ENOSPC:
            there = partial.stat().st_size
            raise DownloadError(f"{partial}: the disk is full at {there:,} bytes: make room there") from error
        raise
    return digest.hexdigest()


def _pieces(remote: Remote, start: int, connections: int) -> Iterator[bytes]:
    """Bytes from `start` to the end, in order: over one connection, or, where that is slow, the rest over several."""
    at, began = start, time.monotonic()
    on_trial = connections > 1 and remote.size is not None and remote.ranged
    first = remote.stream(start)
    for piece in first:
        yield piece
        at += len(piece)
        if on_trial and at - start >= TRIAL:
            on_trial = False
            if at - start < FAST * (time.monotonic() - began):
                first.close()
                break
    else:
        return
    assert remote.size is not None
    jobs = (bound(remote.stream, i, min(i + SEGMENT, remote.size)) for i in range(at, remote.size, SEGMENT))
    yield from in_order(jobs, connections)


class _Aside:
    """A thread that makes calls in their order; at most so many wait. Errors come out at a later call, or at exit."""

    def __init__(self, waiting: int) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._waiting = waiting
        self._calls: deque[Future[object]] = deque()

    def call(self, function: Callable[[T], object], argument: T) -> None:
        if len(self._calls) == self._waiting:
            self._calls.popleft().result()
        self._calls.append(self._thread.submit(function, argument))

    def __enter__(self) -> _Aside:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=error is not None)
        if error is None:
            for call in self._calls:
                call.result()


def _hash(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    bar = tqdm(desc=f"md5 of {path.name}", total=path.stat().st_size, unit="B", unit_scale=True, disable=None)
    with bar, path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            bar.update(len(piece))
    return digest.hexdigest()


def _identity(path: Path) -> dict[str, str | int]:
    state = path.stat()
    return {"path": str(path.resolve()), "bytes": state.st_size, "mtime_ns": state.st_mtime_ns}


def _remember(path: Path, memory: Path, md5: str) -> None:
    write_json(memory, {**_identity(path), "md5": md5})


def _remembered(path: Path, memory: Path) -> str | None:
    if not memory.exists():
        return None
    known = read_json(memory)
    return str(known.pop("md5")) if {**known, "md5": None} == {**_identity(path), "md5": None} else None
