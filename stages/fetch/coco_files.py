"""COCO's files: fetched and verified, or found where the user has them; whole, or a few pictures out of them."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from stages.fetch.archives import pack
from stages.fetch.captions import Picture, check_name, read_captions
from stages.fetch.download import check, download, make_sure_of_room, memory, partial_path
from stages.fetch.remote import Remote, RemoteError
from stages.fetch.remote_zip import RemoteZip
from stages.fetch.settings import Coco
from stages.files import alone, fingerprint, named, shown, whole

# Bytes (None: COCO does not say) and md5 of the files below base_url.
OFFICIAL: dict[str, tuple[int | None, str]] = {
    "zips/train2014.zip": (None, "0da8cfa0e090c266b78f30e2d2874f1a"),
    "zips/val2014.zip": (None, "a3d79f5ed8d289b7a7554ce06a5782b3"),
    "annotations/annotations_trainval2014.zip": (None, "0a379cfc70b0e71301e0f377548639bd"),
    "zips/train2017.zip": (19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2"),
    "zips/val2017.zip": (815_585_330, "442b8da7639aecaf257c1dceb8ba8c80"),
    "annotations/annotations_trainval2017.zip": (252_907_541, "f4bbac642086de4f52a3fdda2de5fa2c"),
}

_Member = tuple[int, int | None]  # bytes and CRC-32 of a picture; None where it is a file of its own

PARTS = ("train", "val")  # COCO's own: an archive of pictures and a captions file each
MAX_JSON = 1 << 30  # bytes of an annotations file; ten times COCO's largest


class CocoError(ValueError):
    """What was fetched or given is not the COCO expected; the message names the file, the rule and the cure."""


class CocoFiles:
    """COCO's files by what they hold. What is fetched whole is kept in `downloads`.

    `used` holds for the report what was used so far by name (or path, where it is the user's): bytes and md5.
    Every method raises CocoError, DownloadError or RemoteError, whose messages say what to do.
    """

    def __init__(self, settings: Coco, downloads: Path) -> None:
        self._settings = settings
        self._downloads = downloads
        self._base = _address(settings.base_url).rstrip("/")
        self.used: dict[str, dict[str, Any]] = {}

    # --- annotations and splits: small files, read whole

    def captions(self, part: str) -> list[Picture]:
        """All pictures of one of COCO's parts with their captions; names are those of members of its archive."""
        folder = f"{part}{self._settings.year}"
        path = self._annotations(f"captions_{folder}.json")
        return [replace(p, file_name=check_name(f"{folder}/{p.file_name}")) for p in read_captions(path)]

    def karpathy(self) -> Path:
        """Karpathy's dataset_coco.json, taken out of its zip where it is in one."""
        address = _address(self._settings.karpathy)
        path = Path(address)
        if "://" in address:
            path = self._downloads / Path(urlsplit(address).path).name
            try:
                md5 = download(address, path, connections=self._settings.connections)
            except RemoteError as error:
                raise CocoError(f"{error}. Set `karpathy` to a mirror, or to a file that you have") from error
        elif not path.is_file():
            raise CocoError(
                f"{path} is not there: `karpathy` must be an address, caption_datasets.zip or dataset_coco.json"
            )
        else:
            md5 = check(path, self._memory(path))
        self._use(path.name, path, md5)
        return path if path.suffix == ".json" else self._member(path, "dataset_coco.json")

    def _annotations(self, name: str) -> Path:
        own = self._settings.annotations
        if own is None or not named(own).is_dir():
            return self._member(self._annotations_zip, name)
        path = named(own) / name
        if not path.is_file():
            raise CocoError(f"{path} is not there: `annotations` must name a folder that holds it, or COCO's zip")
        self._use(f"{own}/{name}", path, check(path, self._memory(path)))
        return path

    @cached_property
    def _annotations_zip(self) -> Path:
        name = f"annotations/annotations_trainval{self._settings.year}.zip"
        if self._settings.annotations is None:
            return self._fetch(name)
        return self._own(self._settings.annotations, name)

    def _member(self, archive: Path, name: str) -> Path:
        """Takes one JSON file out of a zip, and puts it beside the downloads."""
        try:
            with zipfile.ZipFile(archive) as opened:
                found = [info for info in opened.infolist() if Path(info.filename).name == name]
                if len(found) != 1:
                    there = ", ".join(opened.namelist()[:5]) or "nothing"
                    raise CocoError(f"{archive} does not hold {name}, but {there}: is it of another year?")
                if found[0].file_size > MAX_JSON:
                    raise CocoError(f"{archive}: {name} declares {found[0].file_size:,} bytes, over {MAX_JSON:,}")
                data = opened.read(found[0])  # never more than declared, and checked against its CRC-32
        except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
            raise CocoError(f"{archive} ({archive.stat().st_size:,} bytes) is damaged: {error}. Delete it") from error
        path = self._downloads / archive.stem / name
        with whole(path) as partial:
            partial.write_bytes(data)
        return path

    # --- pictures, whole archives

    def archives(self, names: dict[str, list[str]]) -> list[Path]:
        """An archive (or folder) of each part, with all pictures named for it in it."""
        if self._settings.images is not None:
            return [self._own_pictures(part, names[part]) for part in PARTS]
        missing = {}
        for part in PARTS:
            url, path, md5, size = self._expected(f"zips/{part}{self._settings.year}.zip")
            if not path.exists():
                partial = partial_path(path, url, md5)
                with _ways_out():
                    size = size or Remote(url).size or 0
                missing[path.name] = size - (partial.stat().st_size if partial.exists() else 0)
        make_sure_of_room(self._downloads, missing)
        return [self._fetch(f"zips/{part}{self._settings.year}.zip") for part in PARTS]

    def _own_pictures(self, part: str, names: list[str]) -> Path:
        """The user's archive or folder of a part, checked against the names, then against COCO's md5."""
        settings = self._settings
        folder = f"{part}{settings.year}"
        own = named(str(settings.images))
        if (own / f"{folder}.zip").is_file():
            RemoteZip(Remote(str(own / f"{folder}.zip"))).check(names)
            return self._own(f"{settings.images}/{folder}.zip", f"zips/{folder}.zip")
        if not (own / folder).is_dir():
            raise CocoError(
                f"{own} holds neither {folder}.zip nor the folder {folder}: `images` must name where they are"
            )
        there = {f"{folder}/{path.name}" for path in (own / folder).iterdir()}
        if missing := [name for name in names if name not in there]:
            raise CocoError(
                f"{own} lacks {len(missing):,} of {len(names):,} pictures of {folder}, {missing[0]} for one"
            )
        self.used[f"{settings.images}/{folder}"] = {"pictures": len(names)}
        return own / folder

    # --- pictures, a few of each archive

    def pick(self, names: dict[str, list[str]], path: Path) -> None:
        """Packs the pictures named into one archive: out of archives that are here, else by Range requests.

        What a killed run had fetched already is kept in downloads and used again.
        """
        sources = {part: self._source(part, names[part]) for part in PARTS}
        members = {name: crc for part in PARTS for name, crc in sources[part].members(names[part]).items()}
        if path.exists() and _members(path) == members:
            return
        sizes = {name: size for name, (size, _) in members.items()}
        lot = fingerprint(members)[:8]  # of these pictures and no others
        kept = {part: self._downloads / f"{path.name}.{lot}.{part}.partial" for part in PARTS}
        bar = tqdm(desc=path.name, total=sum(sizes.values()), unit="B", unit_scale=True, disable=None)

        def pictures() -> Iterator[tuple[str, bytes]]:
            for part, source in sources.items():
                for name, data in source.read(names[part], kept[part], self._settings.connections):
                    bar.update(len(data))
                    yield name, data

        self._downloads.mkdir(parents=True, exist_ok=True)
        make_sure_of_room(self._downloads, {path.name: 2 * sum(sizes.values())})
        with alone(self._downloads / f".{path.name}.lock", f"{path} is being downloaded"), bar:
            pack(path, pictures())
        for partial in kept.values():
            partial.unlink(missing_ok=True)

    def _source(self, part: str, names: list[str]) -> _Folder | _Archive:
        """Where pictures of a part can be picked: the user's folder or archive, a whole download, or the server."""
        folder = f"{part}{self._settings.year}"
        if self._settings.images is not None:
            own = self._own_pictures(part, names)
            return _Folder(own.parent) if own.is_dir() else _Archive(RemoteZip(Remote(str(own))))
        url, path, md5, size = self._expected(f"zips/{folder}.zip")
        if path.exists():
            check(path, memory(path), md5, size)
        with _ways_out():
            archive = RemoteZip(Remote(str(path) if path.exists() else url))
        archive.check(names)
        self.used[f"zips/{folder}.zip"] = {"pictures": len(names)}
        return _Archive(archive)

    # --- verifying

    @cached_property
    def _sums(self) -> dict[str, tuple[int | None, str]]:
        """Size and md5 by path below base_url."""
        if self._settings.expect == "official":
            return OFFICIAL
        try:
            lines = b"".join(Remote(f"{self._base}/MD5SUMS").stream()).decode(errors="replace").splitlines()
        except RemoteError as error:
            raise CocoError(f"{error}. With `expect: own`, base_url must hold MD5SUMS, as md5sum writes it") from error
        found = (re.fullmatch(r"([0-9a-f]{32}) [ *](?:\./)?(.+)", line) for line in lines)
        return {match[2]: (None, match[1]) for match in found if match}

    def _expected(self, name: str) -> tuple[str, Path, str, int | None]:
        """Address, place in downloads, md5 and size of a file below base_url."""
        if name not in self._sums:
            raise CocoError(f"{shown(self._base)}/MD5SUMS does not list {name}")
        size, md5 = self._sums[name]
        return f"{self._base}/{name}", self._downloads / Path(name).name, md5, size

    def _fetch(self, name: str) -> Path:
        url, path, md5, size = self._expected(name)
        with _ways_out():
            self._use(name, path, download(url, path, md5, size, self._settings.connections))
        return path

    def _own(self, own: str, name: str) -> Path:
        """An archive that the user has; it must be COCO's to the byte where COCO's own is expected."""
        path = named(own)
        size, md5 = OFFICIAL[name] if self._settings.expect == "official" else (None, None)
        if not path.is_file():
            raise CocoError(f"{path} is not there: give the place of {Path(name).name}, or null to download it")
        self._use(own, path, check(path, self._memory(path), md5, size))
        return path

    def _memory(self, path: Path) -> Path:
        self._downloads.mkdir(parents=True, exist_ok=True)
        return self._downloads / f".{path.name}.own.checked"

    def _use(self, name: str, path: Path, md5: str) -> None:
        self.used[name] = {"bytes": path.stat().st_size, "md5": md5}


@dataclass(frozen=True, slots=True)
class _Folder:
    """Unpacked pictures below a folder."""

    path: Path

    def members(self, names: list[str]) -> dict[str, _Member]:
        return {name: ((self.path / name).stat().st_size, None) for name in names}

    def read(self, names: list[str], kept: Path, connections: int) -> Iterator[tuple[str, bytes]]:
        for name in names:
            yield name, (self.path / name).read_bytes()


@dataclass(frozen=True, slots=True)
class _Archive:
    """Pictures in an archive, here or elsewhere."""

    archive: RemoteZip

    def members(self, names: list[str]) -> dict[str, _Member]:
        return {name: (member.file_size, member.CRC) for name in names for member in [self.archive.members[name]]}

    def read(self, names: list[str], kept: Path, connections: int) -> Iterator[tuple[str, bytes]]:
        """Yields names and bytes: first those that lie one after another in `kept`, then, adding to it, the others."""
        with kept.open("a+b") as file:
            file.seek(0)
            done = 0
            for name in names:
                at, member = file.tell(), self.archive.members[name]
                data = file.read(member.file_size)
                if len(data) < member.file_size or zlib.crc32(data) != member.CRC:
                    file.truncate(at)
                    break
                yield name, data
                done += 1
            for name, data in zip(names[done:], self.archive.read(names[done:], connections), strict=True):
                file.write(data)
                file.flush()
                yield name, data


@contextmanager
def _ways_out() -> Iterator[None]:
    try:
        yield
    except RemoteError as error:
        ways = "`base_url` can name a mirror, `images` and `annotations` files that you have"
        raise CocoError(f"{error}. {ways}") from error


def _members(path: Path) -> dict[str, _Member]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: (info.file_size, info.CRC) for info in archive.infolist()}


def _address(text: str) -> str:
    """An address as it is, or a path as params.yaml names it."""
    return text if "://" in text else str(named(text))
