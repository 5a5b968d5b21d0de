"""Whole files or none: what a stage writes appears under its final name only when it is complete and on disk.

Also here, because every stage needs them: one process at a time for what two would spoil; and, to name what was read,
hashes of files, where a path from params.yaml lies, and addresses as they may be printed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` if the block ends well, removes it if it does not.

    The data is flushed to disk before the rename, so that a power cut leaves the old file or the new one, never half.
    Raises OSError that names `path` where its folder is read-only or the disk is full; what was there before stays.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.errno in FULL:
            cure = "free some space"
        elif error.errno in CLOSED and Path(str(error.filename)) in {partial, *partial.parents}:
            cure = f"make {path.parent} writable"
        else:
            raise  # about another file, or about none
        raise OSError(error.errno, f"{error.strerror}: {cure} and run again; not written", str(path)) from error
    finally:
        with suppress(OSError):  # nothing was made where nothing can be made
            partial.unlink(missing_ok=True)


class BusyError(ValueError):
    """Another process does the same at this moment; the message names it and the cure."""


@contextmanager
def alone(path: Path, work: str) -> Iterator[None]:
    """One process at a time is inside for the lock file `path`; one that is killed lets go, whoever it had started.

    Raises BusyError that says who does the `work` already.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            # Of this process alone. zc.lockfile and filelock take flock's, which forked workers keep for a while.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            file.seek(0)
            owner = file.read() or "another process"
            raise BusyError(f"{work} by {owner}: wait until it is through, or end it, then run again") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as readable JSON, keys in the order given. Refuses NaN and infinity: readers disagree on them."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Reads a JSON file; a cut or damaged one is a ValueError that says which file, where it breaks and what to do."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is not whole JSON: {error}. Delete it and make or fetch it again."
        ) from error


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits; reads it once, in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """One hash over everything that a result depends on: JSON-able values, and Paths, which count by their bytes."""
    digest = hashlib.sha256()
    for part in parts:
        value = sha256(part) if isinstance(part, Path) else json.dumps(part, sort_keys=True, ensure_ascii=False)
        digest.update(value.encode() + b"\n")
    return digest.hexdigest()


def repository() -> Path:
    """The repository that the user works in. DVC runs `exp run --temp` and queued experiments in a copy of it and says
    in DVC_ROOT where the original is; there lie the run store and everything outside git that params.yaml names."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def named(path: str) -> Path:
    """A path as params.yaml names it: absolute, `~`, or relative to the repository, not to an experiment's copy."""
    return repository() / Path(os.path.expanduser(path))  # noqa: PTH111 - Path's raises for an unknown user


def shown(url: str) -> str:
    """An address as it may be printed: without user, password and query, where keys are kept."""
    try:
        parts = urlsplit(url)
    except ValueError:  # no address at all
        return url.rpartition("@")[2]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
