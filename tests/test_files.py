"""stages/files.py: a file is whole or not there, whatever happens to the process, the folder or the disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stages.files import fingerprint, named, read_json, sha256, whole, write_json

REPOSITORY = Path(__file__).resolve().parent.parent


def left_over(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "made" / "for" / "it.txt"
    with whole(path) as partial:
        partial.write_text("new")
        assert partial.parent == path.parent  # a rename across file systems is a copy, and a copy can be cut
        assert not path.exists()
    assert path.read_text() == "new"
    assert left_over(path.parent) == ["it.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "it.txt"
    path.write_text("old")
    with pytest.raises(error), whole(path) as partial:  # noqa: PT012
        partial.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert left_over(tmp_path) == ["it.txt"]


def test_a_link_into_the_cache_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    """DVC may link outputs to its cache: writing through the link would change what the cache holds under a hash."""
    cached, path = tmp_path / "cached", tmp_path / "it.txt"
    cached.write_text("old")
    path.symlink_to(cached)
    with whole(path) as partial:
        partial.write_text("new")
    assert (cached.read_text(), path.read_text(), path.is_symlink()) == ("old", "new", False)


WRITER = """
import sys
from stages.files import whole
for i in range(10**9):
    with whole(sys.argv[1]) as partial:
        with partial.open("wb") as file:
            for _ in range(64):
                file.write(bytes([65 + i % 26]) * 16384)
    print(i, flush=True)
"""


def test_kill_9_leaves_a_whole_file(tmp_path: Path) -> None:
    """Killed at seeded moments while it writes a megabyte of one letter over a megabyte of another."""
    path, moments = tmp_path / "it.bin", random.Random(9)
    for _ in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "0\n"
        time.sleep(moments.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        data = path.read_bytes()
        assert len(data) == 1 << 20
        assert data == data[:1] * len(data)
    others = [name for name in left_over(tmp_path) if name != "it.bin"]
    assert all(name.endswith(".partial") for name in others)  # what .gitignore and .dvcignore pass over


def test_kill_9_in_the_middle_of_a_block(tmp_path: Path) -> None:
    path = tmp_path / "it.txt"
    path.write_text("old")
    script = "import sys, os, signal\nfrom stages.files import whole\n"
    script += "with whole(sys.argv[1]) as p:\n    p.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=REPOSITORY, check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write everywhere: where the tests run as root, the block runs as the user `nobody`."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", ["it.txt", "folder/it.txt"])
def test_a_read_only_folder_is_named(name: str) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "it.txt").write_text("old")
        folder.chmod(0o555)
        with as_nobody(), pytest.raises(PermissionError) as told, whole(folder / name) as partial:
            partial.write_text("new")
        folder.chmod(0o755)
        assert str(told.value) == (
            f"[Errno 13] Permission denied: make {(folder / name).parent} writable and run again; not written: "
            f"'{folder / name}'"
        )
        assert (folder / "it.txt").read_text() == "old"
        assert left_over(folder) == ["it.txt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full, a device that is always full, is not here")
def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "it.txt"
    path.write_text("old")
    said = "No space left on device: free some space and run again"
    with pytest.raises(OSError, match=said) as told, whole(path) as partial:  # noqa: PT012
        partial.symlink_to("/dev/full")
        partial.write_text("new")
    assert (told.value.errno, told.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_text() == "old"
    assert left_over(tmp_path) == ["it.txt"]


def test_a_limit_on_file_sizes_is_named_and_the_old_file_stays(tmp_path: Path) -> None:
    """The same where the disk fills up halfway: the operating system takes 4,096 bytes and no more."""
    path = tmp_path / "it.json"
    write_json(path, "old")
    script = "import resource, sys\nfrom stages.files import write_json\n"
    script += "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); write_json(sys.argv[1], 'new' * 4096)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"File too large: free some space and run again; not written: '{path}'" in done.stderr
    assert read_json(path) == "old"
    assert left_over(tmp_path) == ["it.json"]


def test_an_error_about_another_file_is_not_disguised(tmp_path: Path) -> None:
    with pytest.raises(PermissionError) as told, whole(tmp_path / "it.txt"):
        raise PermissionError(errno.EACCES, "Permission denied", "/some/other/file")
    assert told.value.filename == "/some/other/file"


def test_json_is_readable_and_comes_back(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True], "a": "Ein Hund läuft über die Straße 🐕"}
    write_json(tmp_path / "it.json", value)
    text = (tmp_path / "it.json").read_text(encoding="utf-8")
    assert json.loads(text) == read_json(tmp_path / "it.json") == value
    assert text.index('"b"') < text.index('"a"')
    assert "über" in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": {1, 2}}])
def test_what_json_cannot_say_is_refused_and_the_old_file_stays(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "it.json", "old")
    with pytest.raises((ValueError, TypeError), match="JSON"):
        write_json(tmp_path / "it.json", value)
    assert read_json(tmp_path / "it.json") == "old"


@pytest.mark.parametrize("data", [b'{"a": [1, 2', b"", b"\xff\xfe{}", b"{} {}"])
def test_damaged_json_says_which_file_and_what_to_do(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "it.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is not whole JSON") as told:
        read_json(path)
    assert str(told.value).startswith(f"{path} ({len(data)} bytes) ")
    assert str(told.value).endswith("Delete it and make or fetch it again.")


def test_sha256_is_that_of_the_standard(tmp_path: Path) -> None:
    """FIPS 180-4's example "abc", the empty file, and a file larger than any buffer."""
    path = tmp_path / "it"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"")
    assert sha256(path) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    path.write_bytes(bytes(range(256)) * 20_000)
    assert sha256(path) == hashlib.sha256(bytes(range(256)) * 20_000).hexdigest()


def test_a_fingerprint_changes_with_everything_that_it_covers(tmp_path: Path) -> None:
    file, same = tmp_path / "a", tmp_path / "b"
    file.write_text("x")
    same.write_text("x")
    prints = [
        fingerprint({"beam": 3, "words": 20}, file),
        fingerprint({"beam": 4, "words": 20}, file),
        fingerprint({"beam": 3, "words": 20}, sha256(file)),
        fingerprint({"beam": 3, "words": 20}),
        fingerprint(file, {"beam": 3, "words": 20}),
        fingerprint("ab", "c"),
        fingerprint("a", "bc"),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint({"words": 20, "beam": 3}, same) == prints[0]  # neither order of keys nor name of file counts
    file.write_text("y")
    assert fingerprint({"beam": 3, "words": 20}, file) not in prints


def test_paths_of_params_are_meant_from_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert named("data/x") == tmp_path / "data/x"
    assert named("/data/x") == Path("/data/x")
    assert named("~/x") == Path("/home/someone/x")
    monkeypatch.setenv("DVC_ROOT", "/original")  # a stage of `dvc exp run --temp` stands in a copy
    assert named("../shared") == Path("/original/../shared")
    assert named("~nobody-of-that-name/x") == Path("/original/~nobody-of-that-name/x")
