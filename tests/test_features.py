"""Features: what the stage writes is what the encoder says of each picture, through kill -9 and damage."""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL
import pytest
import torch
import yaml
from numpy.lib.format import write_array_header_1_0
from PIL import Image

from stages.features.encoders import EfficientNetLite0
from stages.features.preprocessing import Preprocessing
from stages.features.store import Draft, Features, made_from_file, reuse
from stages.fetch import pictures
from stages.fetch.captions import Picture, write_captions
from stages.fetch.pictures import Pictures, decode
from stages.files import fingerprint, sha256

REPOSITORY = Path(__file__).resolve().parent.parent
SIZE = 64  # pixels a side: enough to be right, small enough to be quick


def make_project(root: Path, count: int = 24, **changes: Any) -> Path:
    """A profile `tiny` of noisy pictures in odd formats, ready for `python -m stages.features`."""
    block = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["sample"]
    small = {"size": SIZE, "batch": 4, "workers": 1, "precision": "float32", "grid": True, "mirror": True}
    block["features"] |= small | changes
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump({"profile": "tiny", "tiny": block}))
    data = root / "data" / "tiny"
    (data / "pictures").mkdir(parents=True)
    generator = np.random.default_rng(5)
    pictures = []
    with zipfile.ZipFile(data / "pictures" / "all.zip", "w") as archive:
        for number in range(count):
            noise = generator.integers(0, 256, (70 + number, 90, 3), dtype=np.uint8)
            picture = Image.fromarray(noise).resize((140, 70 + number))
            mode, kind = (("RGB", "JPEG"), ("L", "PNG"), ("P", "PNG"), ("CMYK", "JPEG"))[number % 4]
            packed = io.BytesIO()
            picture.convert(mode).save(packed, kind)
            archive.writestr(f"{number}.{kind.lower()}", packed.getvalue())
            pictures.append(Picture(100 + number, f"{number}.{kind.lower()}", 0, 0, ("a picture",)))
    cut = {"train": pictures[: count // 2], "val": pictures[count // 2 : -3], "test": pictures[-3:]}
    for split, some in cut.items():
        write_captions(data / f"captions_{split}.json", some, {})
    return root


def environment(root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "DVC_ROOT": str(root), "OMP_NUM_THREADS": "1"}


def run(root: Path, repository: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stages.features"]
    where = environment(repository or root)
    return subprocess.run(command, cwd=root, env=where, capture_output=True, text=True, timeout=120, check=False)


def hashes(root: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted((root / "data/tiny/features").iterdir())}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_project(tmp_path_factory.mktemp("made"))
    done = run(root)
    assert done.returncode == 0, done.stderr
    return root


def test_arrays_hold_what_the_encoder_says_of_each_picture_alone(made: Path) -> None:
    torch.set_num_threads(1)
    features = Features(made / "data/tiny/features")
    encoder, see = EfficientNetLite0("package"), Preprocessing(SIZE, "squash")
    archive = Pictures(made / "data/tiny/pictures")
    assert features.index["weights_sha256"] == encoder.weights_sha256
    for split in ("train", "val", "test"):
        pooled, grid = features.array(split, "pooled"), features.array(split, "grid")
        assert pooled.dtype == grid.dtype == np.float16
        assert grid.shape == (len(features.rows(split)), 4, 1280)
        for number, row in features.rows(split).items():
            name = next(name for name in archive if name.split(".")[0] == str(number - 100))
            alone = encoder(see(decode(archive.read(name)))[None])[0].numpy()
            np.testing.assert_allclose(grid[row], alone, atol=5e-3)
            np.testing.assert_allclose(pooled[row], alone.mean(0), atol=5e-3)


def test_the_mirrored_view_is_of_the_mirrored_picture(made: Path) -> None:
    features = Features(made / "data/tiny/features")
    archive = Pictures(made / "data/tiny/pictures")
    picture = decode(archive.read("0.jpeg")).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    wanted = EfficientNetLite0("package")(Preprocessing(SIZE, "squash")(picture)[None])[0].mean(0).numpy()
    found = features.array("train", "pooled", mirrored=True)[features.rows("train")[100]]
    np.testing.assert_allclose(found, wanted, atol=2e-2)
    assert not np.allclose(found, features.array("train", "pooled")[0], atol=2e-2)
    with pytest.raises(ValueError, match=r"val_pooled_mirrored.npy is not there: set features.mirror to true"):
        features.array("val", "pooled", mirrored=True)


def test_rows_are_those_of_the_arrays_in_any_order(made: Path) -> None:
    """Against numpy's own indexing of the memory map."""
    features = Features(made / "data/tiny/features")
    rows, flips = [7, 0, 11, 7, 3], [False, True, True, False, False]
    for kind in ("pooled", "grid"):
        plain, mirrored = features.array("train", kind), features.array("train", kind, mirrored=True)
        assert np.array_equal(features.read("train", kind, rows), plain[rows])
        wanted = np.where(np.reshape(flips, (-1, *[1] * (plain.ndim - 1))), mirrored[rows], plain[rows])
        assert np.array_equal(features.read("train", kind, rows, flips), wanted)
        assert not np.array_equal(wanted, plain[rows])
    with pytest.raises(ValueError, match=r"train_grid.npy ends before row 12: delete .* run `dvc repro features`"):
        features.read("train", "grid", [12])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux how much memory a process has")
def test_at_cocos_size_no_row_that_was_read_counts_as_memory(tmp_path: Path) -> None:
    """118,287 pictures of 49 x 2048 in a sparse file, 23.7 GB: right rows, and no resident pages of the file."""
    shape = (118_287, 49, 2048)
    with (tmp_path / "train_grid.npy").open("wb") as file:
        write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
        begin, row = file.tell(), 2 * 49 * 2048
        file.truncate(begin + shape[0] * row)
        marked = {number: np.full(shape[1:], number % 1000, np.float16) for number in (0, 60_000, 118_286)}
        for number, value in marked.items():
            file.seek(begin + number * row)
            file.write(value.tobytes())
    (tmp_path / "index.json").write_text("{}")
    features = Features(tmp_path)

    def resident() -> int:
        return int(re.search(r"RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]

    before = resident()
    rows = np.random.default_rng(0).permutation(shape[0])[:300].tolist() + list(marked)
    values = features.read("train", "grid", rows)
    assert not values[:300][[number not in marked for number in rows[:300]]].any()
    for value, wanted in zip(values[300:], marked.values(), strict=True):
        assert np.array_equal(value, wanted)
    assert resident() - before < 30 * row, "a memory map would hold all 303 rows"


def test_killed_halfway_it_goes_on_and_ends_with_the_same_bytes(made: Path, tmp_path: Path) -> None:
    root = make_project(tmp_path / "killed")
    journal = root / "data/tiny/features.partial/journal_0.json"
    for split in ("train", "val"):
        process = subprocess.Popen([sys.executable, "-m", "stages.features"], cwd=root, env=environment(root))
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if journal.exists() and f'"{split}"' in journal.read_text():
                break
            time.sleep(0.002)
        process.kill()
        process.wait()
        assert not (root / "data/tiny/features").exists(), "nothing half-done under the final name"
    assert run(root).returncode == 0
    assert hashes(root) == hashes(made)


def test_whole_features_are_kept_and_damaged_ones_made_again(made: Path, tmp_path: Path) -> None:
    before = hashes(made)
    done = run(made)
    assert "are whole" in done.stdout
    assert "kept" in done.stdout
    array = made / "data/tiny/features/val_pooled.npy"
    damaged = bytearray(array.read_bytes())
    damaged[-1] ^= 1
    array.write_bytes(damaged)
    done = run(made)
    assert "computed again: data/tiny/features/val_pooled.npy has other bytes than its index says" in done.stdout
    assert hashes(made) == before


def test_a_second_process_does_not_work_on_the_same_features(made: Path) -> None:
    """As where `dvc` alone was killed: its stage works on. The one that has the lock is named; killed, it lets go."""
    code = """
import os, pathlib
from stages.files import alone
with alone(pathlib.Path(".dvc/tmp/tiny-features.lock"), ""):
    os.fork() or os.execlp("sleep", "sleep", "20")
    print("there", flush=True)
    input()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, cwd=made, env=environment(made), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"there\n"
        done = run(made)
        assert done.returncode == 1
        assert f"stage features of profile tiny is being run by process {first.pid} on " in done.stderr
        assert "wait until it is through, or end it, then run again" in done.stderr
        first.kill()
    assert "are whole" in run(made).stdout
    shutil.rmtree(made / ".dvc")


def test_features_without_an_array_are_made_again(made: Path, tmp_path: Path) -> None:
    root = tmp_path / "empty"
    shutil.copytree(made, root)
    index = root / "data/tiny/features/index.json"
    for array in index.parent.glob("*.npy"):
        array.unlink()
    index.write_text(json.dumps(json.loads(index.read_text()) | {"sha256": {}}))
    assert "computed again: data/tiny/features holds no array" in run(root).stdout
    assert hashes(root) == hashes(made)


def test_a_copy_made_for_an_experiment_links_those_of_the_repository(made: Path, tmp_path: Path) -> None:
    copy = make_project(tmp_path / "copy")
    done = run(copy, repository=made)
    assert f"whole in {made}" in done.stdout
    assert hashes(copy) == hashes(made)
    here, there = (root / "data/tiny/features/train_grid.npy" for root in (copy, made))
    assert here.stat().st_ino == there.stat().st_ino, "linked, not copied"


def test_a_picture_that_cannot_be_read_is_counted_never_dropped(tmp_path: Path) -> None:
    root = make_project(tmp_path / "damaged", count=12, mirror=False, grid=False)
    path = root / "data/tiny/pictures/all.zip"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["2.png"] = members["2.png"][:100]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    done = run(root)
    assert done.returncode == 1
    assert "unreadable: train picture 102, 2.png: cannot be decoded" in done.stdout
    assert "1 pictures cannot be read, features.allow_unreadable = 0 allows fewer; the first is 2.png" in done.stderr
    params = (root / "params.yaml").read_text().replace("allow_unreadable: 0", "allow_unreadable: 1")
    (root / "params.yaml").write_text(params)
    assert run(root).returncode == 0
    features = Features(root / "data/tiny/features")
    assert 102 not in features.rows("train")
    assert len(features.rows("train")) == 5
    assert [failure["id"] for failure in features.index["unreadable"]] == [102]
    assert not features.array("train", "pooled")[2].any()


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = Draft(tmp_path / "draft", "x")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore[attr-defined]
    with pytest.raises(OSError, match=r"needs 2,560,000 bytes and the disk has 0 free: make room"):
        draft.open("train_pooled.npy", (1000, 1280))
    assert not (tmp_path / "draft" / "train_pooled.npy").exists()


@pytest.mark.parametrize("asked", [True, False])
def test_an_array_has_its_place_on_the_disk_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    """Where the system can be asked for it, and where it cannot, as on macOS."""
    if not asked:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    draft = Draft(tmp_path / "draft", "x")
    draft.open("train_pooled.npy", (1000, 1280))
    state = (tmp_path / "draft" / "train_pooled.npy").stat()
    assert 512 * state.st_blocks >= state.st_size > 2_560_000
    assert draft.arrays["train_pooled.npy"].shape == (1000, 1280)
    assert not draft.arrays["train_pooled.npy"].any()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot be asked for room on the disk")
def test_a_disk_that_fills_up_meanwhile_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    draft = Draft(tmp_path / "draft", "x")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device: free some space and run again.*train_pooled.npy"):
        draft.open("train_pooled.npy", (1000, 1280))
    assert [path.name for path in (tmp_path / "draft").iterdir()] == ["journal_0.json"]


@pytest.mark.parametrize("package", [PIL, torch])
def test_other_code_or_packages_make_features_again(package: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    rim = importlib.import_module("stages.features.__main__")
    assert {Path(pictures.__file__), Path(rim.__file__)} < {part for part in rim.made_by() if isinstance(part, Path)}
    before = fingerprint(*rim.made_by())
    monkeypatch.setattr(package, "__version__", "another")
    assert fingerprint(*rim.made_by()) != before


# --- killed where files get their names -------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for kill -9: nothing is done after it."""


def dying(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Lets `steps` more files and folders be renamed, linked or removed, and no more."""
    left = iter(range(steps))

    def step(work: Callable[..., None], *arguments: Any, **more: Any) -> None:
        if next(left, None) is None:
            raise Killed
        work(*arguments, **more)

    for name in ("unlink", "rmdir", "rename", "replace", "link"):
        monkeypatch.setattr(os, name, partial(step, getattr(os, name)))


def begun(folder: Path, made_from: str, value: int) -> Draft:
    """A draft in which all is computed, by two ranks."""
    draft, other = (Draft(folder.with_name("features.partial"), made_from, rank) for rank in (0, 1))
    draft.open("train_pooled.npy", (2, 4))
    draft.arrays["train_pooled.npy"][:] = value
    for number, each in enumerate((draft, other)):
        each.done["train"] = [number]
        each.save()
    draft.close_arrays()
    (draft.folder / ".journal_0.json.99.partial").touch()  # of a killed process
    return draft


def finished(folder: Path, value: int) -> bool:
    """Whether `folder` holds whole features of that value, and nothing else."""
    names = sorted(path.name for path in folder.iterdir())
    same = bool((Features(folder).array("train", "pooled") == value).all())
    return names == ["index.json", "train_pooled.npy"] and same and Features(folder).damage() is None


INDEX = {"splits": {"train": [7, 8]}}


def test_killed_at_any_step_of_the_end_nothing_computed_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, steps, whole = tmp_path / "features", 0, False
    while not whole:
        begun(folder, "old", 1).finish(folder, INDEX)
        draft = begun(folder, "new", 2)
        with monkeypatch.context() as patched:
            dying(patched, steps)
            try:
                draft.finish(folder, INDEX)
                whole = True
            except Killed:
                steps += 1
        assert reuse(folder, folder, "old") is None or finished(folder, 1), "features under another's name"
        if not reuse(folder, folder, "new"):
            again = Draft(draft.folder, "new")
            assert again.all_done("train") == {0, 1}
            again.finish(folder, INDEX)
        assert finished(folder, 2)
        assert made_from_file(folder).read_text() == "new"
        assert not draft.folder.exists()
    assert steps > 8


def test_killed_while_it_links_those_of_the_repository_it_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, folder, steps, place = tmp_path / "original/features", tmp_path / "copy/features", 0, None
    begun(original, "x", 1).finish(original, INDEX)
    while place is None:
        shutil.rmtree(folder.parent, ignore_errors=True)
        with monkeypatch.context() as patched:
            dying(patched, steps)
            try:
                place = reuse(folder, original, "x")
            except Killed:
                steps += 1
        assert reuse(folder, original, "x")
        assert finished(folder, 1)
    assert steps > 4


def test_killed_while_a_draft_is_removed_no_journal_speaks_of_arrays_that_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun with one setting, removed for another, and gone on with the first."""
    folder, steps, removed = tmp_path / "features", 0, False
    while not removed:
        draft = begun(folder, "one", 1)
        with monkeypatch.context() as patched:
            dying(patched, steps)
            try:
                Draft(draft.folder, "another")
                removed = True
            except Killed:
                steps += 1
        again = Draft(draft.folder, "one")
        again.open("train_pooled.npy", (2, 4))
        assert all(again.arrays["train_pooled.npy"][number].any() for number in again.all_done("train"))
    assert steps > 3
