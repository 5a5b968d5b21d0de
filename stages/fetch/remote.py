"""Bytes of a file that lies elsewhere: any part of it, from http(s) or whatever fsspec reaches, with patience.

What passes in time (5xx, time-outs, resets, a connection cut in the middle) is tried again, from the byte after the
last one that arrived; what does not pass (404, a bad certificate, a missing package) is a RemoteError at once.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from queue import Queue
from typing import NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

import fsspec  # type: ignore[import-untyped]
import requests
import urllib3
from requests.adapters import HTTPAdapter
from tqdm import tqdm

from stages.files import shown

PIECE = 1 << 20  # bytes handed on at once, at most
SEGMENT = 8 << 20  # bytes asked for at once, where several connections share a file: a second's worth for each of them
SLOWEST = 1 << 10  # bytes a second; below that a connection counts as dead and a new one is made
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})  # answers that another try may change (RFC 9110, 15.5 and 15.6)
LONGEST = 30.0  # seconds between two tries

T = TypeVar("T")


class RemoteError(ValueError):
    """A file elsewhere cannot be had; the message names its address and what happened."""


class _Trouble(Exception):
    """Something that may be over at the next try. `wait`: seconds that the server asks for."""

    def __init__(self, message: str, wait: float = 0) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to bear with a server."""

    tries: int = 8  # in a row, none of which brought a whole PIECE
    pause: float = 0.5  # seconds before the second try; doubles with each
    timeout: float = 30.0  # seconds without a byte


class _Answer(NamedTuple):
    start: int  # byte of the file at which `pieces` begin
    size: int | None  # bytes of the whole file; None where the server does not say
    ranged: bool  # whether it is the part that was asked for; else the whole file, from byte 0
    pieces: Generator[bytes, None, None]


class _Transport(Protocol):
    def open(self, start: int, stop: int | None) -> _Answer:
        """Begins to read a file at `start`, up to `stop` where one is given. Raises _Trouble or RemoteError."""


class Remote:
    """A file elsewhere. Making one asks for its size, and raises RemoteError where there is no such file.

    One object serves any number of threads.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        self.name = shown(url)
        self._patience = patience or Patience()
        http = urlsplit(url).scheme in ("http", "https")
        self._transport: _Transport = _Http(url, self._patience.timeout) if http else _Fsspec(url)
        self.size: int | None = None  # bytes; None where the server does not say
        self.ranged = False  # whether parts can be asked for
        failures = 0
        while True:
            try:
                answer = self._transport.open(0, 1)
                break
            except _Trouble as trouble:
                failures += 1
                self._wait(trouble, failures, 0)
        answer.pieces.close()
        self.size, self.ranged = answer.size, answer.ranged

    def stream(self, start: int = 0, stop: int | None = None) -> Generator[bytes, None, None]:
        """Yields the bytes from `start` up to `stop` (the end), each once and in order. Raises RemoteError."""
        at, stop = start, self.size if stop is None else stop
        safe, failures = at, 0
        while stop is None or at < stop:
            try:
                for piece in self._pieces(at, stop):
                    at += len(piece)
                    yield piece
                if stop is None:
                    return
                if at < stop:
                    raise _Trouble(f"ended {stop - at:,} bytes early")
            except _Trouble as trouble:
                if at - safe >= PIECE:
                    safe, failures = at, 0
                failures += 1
                self._wait(trouble, failures, at)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` up to `stop`. Raises RemoteError."""
        return b"".join(self.stream(start, stop))

    def _pieces(self, start: int, stop: int | None) -> Iterator[bytes]:
        """What one connection brings of start to stop. Raises _Trouble or RemoteError."""
        answer = self._transport.open(start, stop)
        try:
            if None not in (answer.size, self.size) and answer.size != self.size:
                raise _Trouble(f"has {answer.size:,} bytes now and had {self.size:,} before")
            if self.ranged and not answer.ranged and start > 0:
                raise _Trouble("sent the whole file instead of a part")
            at, got, since = answer.start, 0, time.monotonic()
            for piece in answer.pieces:
                wanted = piece[max(0, start - at) : None if stop is None else max(0, stop - at)]
                at += len(piece)
                got += len(piece)
                if wanted:
                    yield wanted
                if stop is not None and at >= stop:
                    return
                if (passed := time.monotonic() - since) > self._patience.timeout:
                    if got < SLOWEST * passed:
                        raise _Trouble(f"sends less than {SLOWEST:,} bytes a second")
                    got, since = 0, time.monotonic()
        finally:
            answer.pieces.close()

    def _wait(self, trouble: _Trouble, failures: int, at: int) -> None:
        """Waits for the next try, or raises RemoteError where there were enough."""
        if failures >= self._patience.tries:
            size = f" of {self.size:,}" if self.size is not None else ""
            raise RemoteError(f"{self.name}: {trouble}, at byte {at:,}{size}, {failures} times in a row") from trouble
        pause = min(max(self._patience.pause * 2 ** (failures - 1), trouble.wait), LONGEST)
        if pause > 1:
            tqdm.write(f"{self.name}: {trouble}; trying again in {pause:.0f} s", file=sys.stderr)
        time.sleep(pause)


class _Http:
    """requests: its proxies, certificates and ~/.netrc are what a user has set up already."""

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        self._session = requests.Session()
        self._session.max_redirects = 5
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=64))

    def open(self, start: int, stop: int | None) -> _Answer:
        # `identity`: a packed answer would have other bytes than the file, and no Range.
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{'' if stop is None else stop - 1}"}
        try:
            response = self._session.get(self._url, headers=headers, stream=True, timeout=self._timeout)
        except requests.exceptions.SSLError as error:
            raise RemoteError(f"{shown(self._url)}: no trusted connection: {_reason(error)}") from error
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            raise _Trouble(_reason(error)) from error
        except requests.RequestException as error:  # too many redirects, an address that is none
            raise RemoteError(f"{shown(self._url)}: {_reason(error)}") from error
        try:
            return self._answer(response, start)
        except BaseException:
            response.close()
            raise

    def _answer(self, response: requests.Response, start: int) -> _Answer:
        said = f"answered {response.status_code} {response.reason}"
        if response.status_code == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != start:
                raise _Trouble(f"{said} with another part than asked for ({response.headers.get('Content-Range')})")
            return _Answer(start, None if match[2] == "*" else int(match[2]), True, _body(response))
        if response.status_code == 200:
            length = response.headers.get("Content-Length", "")
            return _Answer(0, int(length) if length.isdecimal() else None, False, _body(response))
        if response.status_code in AGAIN:
            wait = response.headers.get("Retry-After", "")
            raise _Trouble(said, float(wait) if wait.isdecimal() else 0)
        raise RemoteError(f"{shown(self._url)} {said}")


def _body(response: requests.Response) -> Generator[bytes, None, None]:
    """What the connection brings, as it comes: what has arrived is on disk early, and a kill loses little."""
    try:
        while piece := response.raw.read1(PIECE, decode_content=False):
            yield piece
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _Trouble(_reason(error)) from error
    finally:
        response.close()


class _Fsspec:
    """file:, s3:, gs:, ... through fsspec, which takes options and keys from its own configuration and environment."""

    def __init__(self, url: str) -> None:
        self._url = url
        try:
            self._files, self._path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:  # a package to install, or a scheme that nobody knows
            raise RemoteError(f"{shown(url)}: {error}") from error

    def open(self, start: int, stop: int | None) -> _Answer:
        size = self._try(partial(self._files.size, self._path))
        return _Answer(start, size, True, self._read(start, size if stop is None else stop))

    def _read(self, start: int, stop: int) -> Generator[bytes, None, None]:
        while start < stop:
            # By name: what stands second after the path differs between file systems.
            piece = self._try(partial(self._files.cat_file, self._path, start=start, end=min(start + SEGMENT, stop)))
            if not piece:
                raise _Trouble("ended early")
            yield piece
            start += len(piece)

    def _try(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except (FileNotFoundError, IsADirectoryError, PermissionError, ImportError, ValueError) as error:
            raise RemoteError(f"{shown(self._url)}: {_reason(error)}") from error
        except Exception as error:  # every file system of fsspec has errors of its own
            raise _Trouble(_reason(error)) from error


def in_order(jobs: Iterable[Callable[[], Iterable[T]]], threads: int) -> Iterator[T]:
    """Runs so many jobs at a time, each in a thread, and yields what they yield, in the order of the jobs.

    At most two more jobs than threads are begun before the first of them is through, which bounds the memory. An error
    of a job is raised when its turn comes. Threads do not hold up the end of the program (Ctrl-C).
    """
    left = threading.Event()
    slots = threading.Semaphore(threads)
    waiting: deque[Queue[T | _End]] = deque()

    def work(job: Callable[[], Iterable[T]], results: Queue[T | _End]) -> None:
        with slots:
            try:
                for result in () if left.is_set() else job():
                    results.put(result)
                    if left.is_set():
                        return
                results.put(_End(None))
            except BaseException as error:  # handed over to the thread that waits for it
                results.put(_End(error))

    def taken(results: Queue[T | _End]) -> Iterator[T]:
        while not isinstance(result := results.get(), _End):
            yield result
        if result.error is not None:
            raise result.error

    try:
        for job in jobs:
            waiting.append(Queue())
            threading.Thread(target=work, args=(job, waiting[-1]), daemon=True).start()
            if len(waiting) == threads + 2:
                yield from taken(waiting.popleft())
        while waiting:
            yield from taken(waiting.popleft())
    finally:
        left.set()


class _End(NamedTuple):
    error: BaseException | None


def _reason(error: BaseException) -> str:
    """The innermost cause in a sentence: requests wraps urllib3 wraps http.client wraps the system's own error."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
