"""Members of a zip archive that stays where it is: its directory and the members wanted come by Range requests.

COCO's train2014.zip has 13 GB and its directory 9 MB; a thousand pictures are then 160 MB.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import partial as bound
from typing import TYPE_CHECKING

from stages.fetch.pictures import MAX_BYTES
from stages.fetch.remote import Remote, RemoteError, in_order

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_HEADER = 30  # bytes of a local header before name and extra field (APPNOTE 4.3.7), which have 65,535 each at most


class RemoteZip:
    """The index of a remote zip (zip64 too) by member name, and its members' bytes.

    Raises RemoteError where the server does not answer Range requests, or what it serves is not a whole zip.
    """

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        if remote.size is None or not remote.ranged:
            raise RemoteError(f"{remote.name}: the server does not send parts of files, which `limit` needs")
        try:
            with io.BufferedReader(_Seekable(remote, remote.size), 1 << 16) as file, zipfile.ZipFile(file) as archive:
                members = [info for info in archive.infolist() if not info.is_dir()]
                ends = [*(info.header_offset for info in archive.infolist()), archive.start_dir, remote.size]
        except (zipfile.BadZipFile, EOFError, struct.error) as error:
            raise RemoteError(f"{remote.name} ({remote.size:,} bytes) is not a whole zip: {error}") from error
        self._ends = sorted(ends)
        self.members = {info.filename: info for info in members}
        if len(self.members) != len(members):
            raise RemoteError(f"{remote.name} holds a name twice: it is damaged or made to deceive")

    def check(self, names: Sequence[str]) -> None:
        """Raises RemoteError unless these members are there, none larger than a picture can be, none in another."""
        if missing := [name for name in names if name not in self.members]:
            holds = next(iter(self.members), "nothing")
            raise RemoteError(
                f"{self._remote.name} lacks {len(missing):,} of {len(names):,} pictures, {missing[0]} for one; "
                f"it holds {holds}: is it cut, or of another year?"
            )
        for member in map(self.members.__getitem__, names):
            if max(member.file_size, member.compress_size) > MAX_BYTES:
                raise self._damaged(member, f"declares {member.file_size:,} bytes, more than the {MAX_BYTES:,} allowed")
            if member.header_offset + _HEADER + member.compress_size > self._end(member):
                raise self._damaged(member, "reaches into the next one: the archive is damaged or made to deceive")

    def read(self, names: Sequence[str], connections: int) -> Iterator[bytes]:
        """Yields the bytes of members that were checked, in the order of `names`; each must have its CRC-32.

        Raises RemoteError where one is damaged, or unpacks to more than the directory declares.
        """
        return in_order((bound(self._read, self.members[name]) for name in names), connections)

    def _read(self, member: zipfile.ZipInfo) -> Iterator[bytes]:
        """One member. It is asked for up to where the next one begins: its local header's length is not known."""
        start = member.header_offset
        data = self._remote.read(start, min(self._end(member), start + _HEADER + 2 * 65535 + member.compress_size))
        if data[:4] != b"PK\3\4" or len(data) < _HEADER:
            raise self._damaged(member, "has no header where the directory says")
        begin = _HEADER + sum(struct.unpack_from("<HH", data, 26))
        data = data[begin : begin + member.compress_size]
        if member.compress_type == zipfile.ZIP_DEFLATED:
            try:  # one byte more than declared, at most: a zip bomb ends there
                data = zlib.decompressobj(-15).decompress(data, member.file_size + 1)
            except zlib.error as error:
                raise self._damaged(member, f"does not unpack: {error}") from error
        elif member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise self._damaged(member, "is encrypted or not packed by deflate")
        if len(data) != member.file_size or zlib.crc32(data) != member.CRC:
            raise self._damaged(member, "has other bytes than the directory declares")
        yield data

    def _end(self, member: zipfile.ZipInfo) -> int:
        return self._ends[min(bisect_right(self._ends, member.header_offset), len(self._ends) - 1)]

    def _damaged(self, member: zipfile.ZipInfo, what: str) -> RemoteError:
        return RemoteError(f"{self._remote.name}: {member.filename} {what}")


class _Seekable(io.RawIOBase):
    """A remote file as zipfile wants it."""

    def __init__(self, remote: Remote, size: int) -> None:
        self._remote = remote
        self._size = size
        self._at = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._remote.read(self._at, max(self._at, min(self._at + len(view), self._size)))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
