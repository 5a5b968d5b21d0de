"""A download ends with the right bytes or a clear error, whatever the server and the machine do meanwhile."""

from __future__ import annotations

import errno
import hashlib
import os
import pty
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from mirror import Fault, Mirror, pack

from stages.fetch import download as module
from stages.fetch import remote as remote_module
from stages.fetch.download import DownloadError, check, download, memory, partial_path
from stages.fetch.remote import Patience, Remote, RemoteError, in_order
from stages.fetch.remote_zip import RemoteZip
from stages.files import BusyError

HASTY = Patience(tries=4, pause=0, timeout=0.3)
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    with Mirror(tmp_path / "served") as mirror:
        mirror.folder.mkdir()
        yield mirror


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several segments and pieces in a file of some hundred kilobytes; no connection is fast enough to stay alone."""
    monkeypatch.setattr(module, "TRIAL", 10 << 10)
    monkeypatch.setattr(module, "FAST", 1 << 60)
    monkeypatch.setattr(module, "SEGMENT", 48 << 10)
    monkeypatch.setattr(remote_module, "SEGMENT", 48 << 10)
    monkeypatch.setattr(remote_module, "PIECE", 8 << 10)


def serve(mirror: Mirror, size: int = 300_000, name: str = "file.zip") -> tuple[bytes, str]:
    data = random.Random(size).randbytes(size)
    (mirror.folder / name).write_bytes(data)
    return data, md5_of(data)


def md5_of(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def starts(mirror: Mirror) -> list[int]:
    """First bytes of the ranges asked for, without the probe of one byte."""
    ranges = [request.range for request in mirror.requests if request.range]
    return [int(asked[6:].split("-")[0]) for asked in ranges if asked != "bytes=0-0"]


# --- faults ---

KINDS = ("cut", "reset", "status", "trickle", "wrong", "whole", "shifted", "length", "redirect")


def schedule(chance: random.Random, size: int) -> list[Fault | None]:
    """Faults of the next answers; a stall is rare, since waiting for it takes the time-out."""
    faults: list[Fault | None] = []
    for _ in range(chance.choice((0, 1, 2, 3, 5, 8, 13, 21))):
        kind: Any = chance.choice(KINDS) if chance.random() < 0.97 else "stall"
        at = {
            "status": chance.choice((500, 502, 503, 503, 503, 404)),
            "length": chance.choice((-size, -1000, -1, 1, 1000)),
            "redirect": chance.choice((0, 1, 2, 9)),
            "trickle": 1000,
        }.get(kind, chance.randrange(size + 1))
        faults.append(None if chance.random() < 0.3 else Fault(kind, at))
    return faults


@pytest.mark.usefixtures("small_segments")
def test_of_240_random_schedules_each_ends_with_the_right_bytes_or_a_clear_error(
    mirror: Mirror, tmp_path: Path
) -> None:
    ends = {"right": 0, "error": 0}
    for seed in range(240):
        chance = random.Random(seed)
        data, md5 = serve(mirror, chance.choice((1, 1000, 60_000, 250_000)) + chance.randrange(1000), f"{seed}.zip")
        path, url = tmp_path / f"{seed}.zip", f"{mirror.url}/{seed}.zip"
        faults = schedule(chance, len(data))
        mirror.faults[f"/{seed}.zip"] = list(faults)
        options: Any = {"connections": chance.randint(1, 4), "patience": HASTY}
        options |= {"size": len(data)} if chance.random() < 0.5 else {}
        try:
            assert download(url, path, md5, **options) == md5
            ends["right"] += 1
        except (DownloadError, RemoteError) as error:
            ends["error"] += 1
            assert str(error).startswith(url), f"schedule {seed}: {error}"  # noqa: PT017
            assert not path.exists(), f"schedule {seed}: {faults}"
            mirror.faults.clear()
            download(url, path, md5, **options)  # goes on with what is there
        assert path.read_bytes() == data, f"schedule {seed}: {faults}"
        assert not list(tmp_path.glob("*.partial")), f"schedule {seed}: {faults}"
    assert ends["right"] > 100, ends
    assert ends["error"] > 20, ends


@pytest.mark.usefixtures("small_segments")
def test_a_slow_connection_gets_company_and_a_fast_one_does_not(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, md5 = serve(mirror)
    download(f"{mirror.url}/file.zip", tmp_path / "1.zip", md5, connections=3)
    assert len(starts(mirror)) > 5
    monkeypatch.setattr(module, "FAST", 0)
    mirror.requests.clear()
    download(f"{mirror.url}/file.zip", tmp_path / "2.zip", md5, connections=3)
    assert starts(mirror) == [0]
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes() == data


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize(
    "fault",
    [
        Fault("cut", 1000),
        Fault("cut", 0),
        Fault("reset", 20_000),
        Fault("stall", 10_000),
        Fault("status", 503),
        Fault("trickle", 5000),
        Fault("wrong", 100),
        Fault("shifted"),
        Fault("length", 500),
        Fault("length", -500),
        Fault("redirect", 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("connections", [1, 3])
def test_one_fault_costs_no_byte(mirror: Mirror, tmp_path: Path, fault: Fault, connections: int) -> None:
    data, md5 = serve(mirror)
    mirror.faults["/file.zip"] = [None, *[None] * (connections > 1), fault]  # the first tells the size
    download(f"{mirror.url}/file.zip", tmp_path / "file.zip", md5, connections=connections, patience=HASTY)
    assert (tmp_path / "file.zip").read_bytes() == data
    assert not mirror.faults["/file.zip"], "the fault was not met"


def test_a_server_without_range_is_read_in_one_go(mirror: Mirror, tmp_path: Path) -> None:
    data, md5 = serve(mirror)
    mirror.faults["/file.zip"] = [Fault("whole")] * 9
    download(f"{mirror.url}/file.zip", tmp_path / "file.zip", md5, patience=HASTY)
    assert (tmp_path / "file.zip").read_bytes() == data
    assert len(mirror.requests) == 2


def test_wrong_bytes_twice_are_an_error_that_names_both_sums(mirror: Mirror, tmp_path: Path) -> None:
    _, md5 = serve(mirror)
    with pytest.raises(DownloadError, match=rf"came with md5 {md5}, expected {'0' * 32}, twice"):
        download(f"{mirror.url}/file.zip", tmp_path / "file.zip", "0" * 32)
    assert sorted(path.name for path in tmp_path.glob("*file*")) == [".file.zip.lock"]


def test_another_size_is_an_error_before_the_first_byte(mirror: Mirror, tmp_path: Path) -> None:
    _, md5 = serve(mirror)
    with pytest.raises(DownloadError, match=r"has 300,000 bytes, expected 815,585,330: it is another file"):
        download(f"{mirror.url}/file.zip", tmp_path / "file.zip", md5, 815_585_330)
    assert starts(mirror) == []


def test_what_no_patience_helps_against_ends_at_once(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match=r"/file.zip answered 404 Not Found"):
        download(f"{mirror.url}/file.zip", tmp_path / "file.zip")
    assert len(mirror.requests) == 1
    serve(mirror)
    mirror.faults["/file.zip"] = [Fault("redirect", 99)]
    with pytest.raises(RemoteError, match="TooManyRedirects"):
        download(f"{mirror.url}/file.zip", tmp_path / "file.zip")
    with pytest.raises(RemoteError, match=r"nosuch://x/y: Protocol not known: nosuch"):
        download("nosuch://x/y", tmp_path / "y")
    with pytest.raises(RemoteError, match=r"/nowhere.zip: FileNotFoundError"):
        download(str(tmp_path / "nowhere.zip"), tmp_path / "y")


def test_no_server_is_one_sentence_that_keeps_keys_to_itself(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RemoteError) as caught:
        download(f"http://me:secret@127.0.0.1:{port}/a.zip?key=secret", tmp_path / "a.zip", patience=HASTY)
    reason = "ConnectionRefusedError: [Errno 111] Connection refused, at byte 0, 4 times in a row"
    assert str(caught.value) == f"http://127.0.0.1:{port}/a.zip: {reason}"


def test_pauses_double_and_follow_the_servers_wish(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(remote_module.time, "sleep", pauses.append)
    serve(mirror)
    mirror.faults["/file.zip"] = [Fault("status", 503)] * 8
    with pytest.raises(RemoteError, match="answered 503 Service Unavailable, at byte 0, 8 times in a row"):
        Remote(f"{mirror.url}/file.zip")
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30]
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"{mirror.url}/file.zip: answered 503 Service Unavailable; trying again in 30 s"
    pauses.clear()
    mirror.faults["/file.zip"] = [Fault("status", 429)]  # the mirror says Retry-After: 3 with it
    Remote(f"{mirror.url}/file.zip")
    assert pauses == [3]


def test_a_dripping_connection_counts_as_dead(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = serve(mirror)
    monkeypatch.setattr(remote_module, "SLOWEST", 1 << 30)
    mirror.faults["/file.zip"] = [None, *[Fault("trickle", 1000)] * 4]
    with pytest.raises(RemoteError, match="sends less than 1,073,741,824 bytes a second"):
        Remote(f"{mirror.url}/file.zip", Patience(tries=2, pause=0, timeout=0.01)).read(0, len(data))


# --- what is there already ---


def test_a_partial_file_is_completed_and_a_wrong_one_thrown_away(mirror: Mirror, tmp_path: Path) -> None:
    data, md5 = serve(mirror)
    path, url = tmp_path / "file.zip", f"{mirror.url}/file.zip"
    partial_path(path, url, md5).write_bytes(data[:200_000])
    download(url, path, md5, connections=1)
    assert path.read_bytes() == data
    assert starts(mirror) == [200_000]
    for wrong in (b"x" * 1000, data + b"too long", b"x" * len(data)):
        path.unlink()
        partial_path(path, url, md5).write_bytes(wrong)
        download(url, path, md5)
        assert path.read_bytes() == data


def test_a_file_that_is_there_is_read_once_to_be_trusted(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, md5 = serve(mirror)
    path = tmp_path / "file.zip"
    path.write_bytes(data)
    assert download("http://no.server.is.asked/", path, md5, len(data)) == md5
    with monkeypatch.context() as patched:
        patched.setattr(module, "_hash", None)  # reading it again would be an error
        assert download("http://no.server.is.asked/", path, md5, len(data)) == md5
    path.write_bytes(data[:-1] + b"?")
    with pytest.raises(
        DownloadError, match=rf"file.zip has md5 \w+, expected {md5}: delete it and run `dvc repro fetch`"
    ):
        download("http://no.server.is.asked/", path, md5)
    path.write_bytes(data[:4096])
    with pytest.raises(DownloadError, match=r"has 4,096 bytes, expected 815,585,330: delete it and run"):
        check(path, memory(path), md5, 815_585_330)


def test_a_full_disk_is_told_before_the_first_byte(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, md5 = serve(mirror)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 12_345, 12_345))  # type: ignore[attr-defined]
    with pytest.raises(DownloadError, match=r"has 12,345 bytes free and file.zip needs 300,000 more"):
        download(f"{mirror.url}/file.zip", tmp_path / "file.zip", md5)
    assert starts(mirror) == []


def test_a_disk_that_fills_up_meanwhile_is_told_and_what_is_there_is_kept(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, md5 = serve(mirror)
    path, url = tmp_path / "file.zip", f"{mirror.url}/file.zip"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(module, "FLUSH", 1000)
        patched.setattr(os, "fsync", full)
        with pytest.raises(DownloadError, match=r"file.zip.\w+.partial: the disk is full at [\d,]+ bytes: make room"):
            download(url, path, md5)
    there = partial_path(path, url, md5).stat().st_size
    download(url, path, md5)
    assert there in (*starts(mirror)[-1:], len(data))
    assert path.read_bytes() == data


def test_two_processes_do_not_write_the_same_file(mirror: Mirror, tmp_path: Path) -> None:
    data, md5 = serve(mirror)
    path = tmp_path / "file.zip"
    mirror.faults["/file.zip"] = [None, *[Fault("trickle", 100)] * 99]
    first = start(f"{mirror.url}/file.zip", path, md5)
    wait_for(lambda: starts(mirror) != [], first)
    with pytest.raises(BusyError, match=rf"is being downloaded by process {first.pid} on {socket.gethostname()}"):
        download(f"{mirror.url}/file.zip", path, md5)
    assert first.wait() == 0
    assert path.read_bytes() == data


def start(url: str, path: Path, md5: str, **options: Any) -> subprocess.Popen[bytes]:
    code = "import sys, pathlib; from stages.fetch.download import download as d; u, p, m = sys.argv[1:]"
    command = [sys.executable, "-c", f"{code}; d(u, pathlib.Path(p), m, connections=1)", url, str(path), md5]
    return subprocess.Popen(command, cwd=REPOSITORY, **options)


def wait_for(happened: Any, process: subprocess.Popen[bytes]) -> None:
    while not happened():
        assert process.poll() is None, "it was through too early"
        time.sleep(0.002)


def test_killed_it_goes_on_at_the_byte_where_it_stopped(mirror: Mirror, tmp_path: Path) -> None:
    data, md5 = serve(mirror, 3_000_000)
    path, url = tmp_path / "file.zip", f"{mirror.url}/file.zip"
    partial = partial_path(path, url, md5)
    reached = 0
    for more in (100_000, 1_000_000):
        mirror.faults["/file.zip"] = [None, Fault("trickle", 20_000)]
        process = start(url, path, md5)
        wait_for(lambda: partial.exists() and partial.stat().st_size > reached + more, process)  # noqa: B023
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert starts(mirror)[-1] == reached
        reached = partial.stat().st_size
        assert not path.exists()
    mirror.faults.clear()
    download(url, path, md5, connections=1)
    assert starts(mirror)[-1] == reached
    assert path.read_bytes() == data


def test_progress_goes_to_a_terminal_and_nowhere_else(mirror: Mirror, tmp_path: Path) -> None:
    _, md5 = serve(mirror)
    quiet = start(f"{mirror.url}/file.zip", tmp_path / "1.zip", md5, stderr=subprocess.PIPE)
    assert quiet.communicate()[1] == b""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    shown = start(f"{mirror.url}/file.zip", tmp_path / "2.zip", md5, stderr=theirs)
    assert shown.wait() == 0
    os.close(theirs)
    assert b"2.zip: 100%" in (bar := os.read(ours, 10_000))
    assert re.search(rb"300k/300k \[\d\d:\d\d<\d\d:\d\d, +[\d.]+[kMG]?B/s\]", bar), (
        "time spent, time left, bytes a second"
    )
    os.close(ours)


def test_other_file_systems_come_through_fsspec(tmp_path: Path) -> None:
    data = random.Random(0).randbytes(100_000)
    (tmp_path / "served.zip").write_bytes(data)
    fsspec.filesystem("memory").pipe("/served.zip", data)
    for number, url in enumerate(
        [f"file://{tmp_path}/served.zip", str(tmp_path / "served.zip"), "memory://served.zip"]
    ):
        assert Remote(url).read(500, 600) == data[500:600]
        assert download(url, tmp_path / f"{number}.zip", md5_of(data)) == md5_of(data)
        assert (tmp_path / f"{number}.zip").read_bytes() == data


def test_jobs_run_side_by_side_and_answer_in_order() -> None:
    running: set[int] = set()
    most = 0

    def job(number: int) -> Iterator[int]:
        nonlocal most
        running.add(number)
        most = max(most, len(running))
        time.sleep(0.001 * (number % 3))
        yield number
        running.remove(number)

    def failing() -> Iterator[int]:
        yield 100
        raise OSError("was there")

    jobs = [lambda number=number: job(number) for number in range(40)]
    assert list(in_order(jobs, 4)) == list(range(40))
    assert 1 < most <= 4
    arrived: list[int] = []
    with pytest.raises(OSError, match="was there"):
        arrived.extend(in_order([*jobs[:3], failing, *jobs], 2))
    assert arrived == [0, 1, 2, 100]


# --- archives that stay where they are ---


def test_members_come_without_the_rest(mirror: Mirror) -> None:
    members = {f"train2014/{n}.jpg": random.Random(n).randbytes(20_000) for n in range(200)}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        pack(mirror.folder / "a.zip", {"train2014/": b"", **members}, method)
        mirror.requests.clear()
        archive = RemoteZip(Remote(f"{mirror.url}/a.zip"))
        names = ["train2014/7.jpg", "train2014/3.jpg", "train2014/199.jpg"]
        archive.check(names)
        assert list(archive.read(names, 2)) == [members[name] for name in names]
        asked = [request.range[6:].split("-") for request in mirror.requests if request.range]
        assert sum(int(last) + 1 - int(first) for first, last in asked) < 3 * 21_000 + 2 * (64 << 10)


def test_zip64_is_read(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as tiny:  # the format's large form, without four gigabytes or 65,536 members
        tiny.setattr(zipfile, "ZIP64_LIMIT", 1000)
        tiny.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
        pack(mirror.folder / "a.zip", {f"{n}.jpg": bytes([n]) * 5000 for n in range(5)})
    assert b"PK\6\6" in (mirror.folder / "a.zip").read_bytes(), "no zip64 end of directory"
    archive = RemoteZip(Remote(f"{mirror.url}/a.zip"))
    archive.check(["4.jpg"])
    assert list(archive.read(["4.jpg"], 1)) == [b"\4" * 5000]


def test_archives_that_deceive_are_refused(mirror: Mirror) -> None:
    path = mirror.folder / "a.zip"

    def opened(names: tuple[str, ...] = ("0.jpg", "1.jpg")) -> list[bytes]:
        archive = RemoteZip(Remote(f"{mirror.url}/a.zip"))
        archive.check(names)
        return list(archive.read(names, 2))

    def directory_entry(data: bytearray, number: int) -> int:
        at = 0
        for _ in range(number + 1):
            at = data.index(b"PK\1\2", at + 1)
        return at

    pack(path, {"0.jpg": bytes(50_000), "1.jpg": bytes(9)}, zipfile.ZIP_DEFLATED)
    good = path.read_bytes()
    assert opened() == [bytes(50_000), bytes(9)]

    bomb = bytearray(good)  # declares 100 bytes (APPNOTE 4.3.12: the size is at 24), unpacks to 50,000
    at = directory_entry(bomb, 0) + 24
    bomb[at : at + 4] = (100).to_bytes(4, "little")
    path.write_bytes(bomb)
    with pytest.raises(RemoteError, match=r"0.jpg has other bytes than the directory declares"):
        opened()

    bomb[at : at + 4] = (1 << 31).to_bytes(4, "little")
    path.write_bytes(bomb)
    with pytest.raises(RemoteError, match=r"0.jpg declares 2,147,483,648 bytes, more than the"):
        opened()

    nested = bytearray(good)  # both entries are made of the same bytes (the offset is at 42)
    first, second = directory_entry(nested, 0), directory_entry(nested, 1)
    nested[second + 20 : second + 28] = nested[first + 20 : first + 28]
    nested[second + 42 : second + 46] = (5).to_bytes(4, "little")
    path.write_bytes(nested)
    with pytest.raises(RemoteError, match=r"[01].jpg reaches into the next one"):
        opened()

    damaged = bytearray(good)
    damaged[50] ^= 255
    path.write_bytes(damaged)
    with pytest.raises(RemoteError, match=r"0.jpg (does not unpack|has other bytes)"):
        opened()

    path.write_bytes(good[:-30])
    with pytest.raises(RemoteError, match=r"a.zip \([\d,]+ bytes\) is not a whole zip"):
        opened()

    path.write_bytes(good)
    with pytest.raises(RemoteError, match=r"lacks 1 of 2 pictures, 2.jpg for one; it holds 0.jpg: is it cut, or of"):
        opened(("0.jpg", "2.jpg"))

    pack(path, {"0.jpg": b"a", "1.jpg": b"b"})
    path.write_bytes(path.read_bytes().replace(b"1.jpg", b"0.jpg"))
    with pytest.raises(RemoteError, match="holds a name twice"):
        opened()

    path.write_bytes(good)
    mirror.faults["/a.zip"] = [Fault("whole")]
    with pytest.raises(RemoteError, match="does not send parts of files, which `limit` needs"):
        opened()
