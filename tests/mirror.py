"""A small server with COCO's layout and, on demand, with every fault that a download can meet.

    python tests/mirror.py [PORT [FOLDER]]      serves until Ctrl-C and prints the settings with which fetch uses it

What it serves (`build`): 80 photographs of COCO from ../shared/data where that exists, else drawn ones; in archives,
under names and with annotations as COCO has them in both years, Karpathy's split of them, and md5 sums of all that.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import json
import random
import re
import socket
import struct
import sys
import tempfile
import threading
import time
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco"
VAL = 24  # of the 80 pictures; Karpathy's split makes a third each of val, test and restval of them


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one answer.

    cut, reset, stall: after `at` bytes of the body the connection is closed, reset, or silent for a while.
    status: answers with the number `at` (429: and `Retry-After: 3`). trickle: pieces of `at` bytes.
    wrong: the byte at `at` is another.
    whole: answers a Range request with all of the file, as a server without Range does. shifted: with another range.
    length: Content-Length is `at` bytes more than the truth. redirect: to the same file, `at` times in a row.
    """

    kind: Literal["cut", "reset", "stall", "status", "trickle", "wrong", "whole", "shifted", "length", "redirect"]
    at: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked for: the path and the Range header."""

    path: str
    range: str | None


class Mirror(http.server.ThreadingHTTPServer):
    """Serves a folder on a free port while it is entered. `faults[path]` are those of its next answers, in order."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.folder = folder
        self.faults: defaultdict[str, list[Fault | None]] = defaultdict(list)
        self.requests: list[Request] = []
        self.silence = 0.5  # seconds of a stall
        self.guard = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Mirror:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()
        self.server_close()

    def next_fault(self, request: Request) -> Fault | None:
        with self.guard:
            self.requests.append(request)
            waiting = self.faults[request.path]
            return waiting.pop(0) if waiting else None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what these tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for the acknowledgement of its headers
    server: Mirror

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        asked = self.headers["Range"]
        fault = self.server.next_fault(Request(url.path, asked)) or Fault("cut", sys.maxsize)
        hops = int(url.query or 0)
        if fault.kind == "redirect" or hops > 0:
            left = fault.at if fault.kind == "redirect" else hops - 1
            return self._empty(302, Location=f"{url.path}?{left}" if left else url.path)
        if fault.kind == "status":
            return self._empty(fault.at, **({"Retry_After": "3"} if fault.at == 429 else {}))
        file = (self.server.folder / url.path.lstrip("/")).resolve()
        if not file.is_file() or not file.is_relative_to(self.server.folder.resolve()):
            return self._empty(404)
        size = file.stat().st_size
        start, stop = 0, size
        if asked and fault.kind != "whole":
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", asked).groups()  # type: ignore[union-attr]
            start, stop = int(first), min(int(last) + 1, size) if last else size
            if start >= size:
                return self._empty(416, Content_Range=f"bytes */{size}")
            shift = min(start, 7) if fault.kind == "shifted" else 0
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start - shift}-{stop - 1}/{size}")
        else:
            self.send_response(200)
        lie = fault.at if fault.kind == "length" else 0
        self.send_header("Content-Length", str(max(0, stop - start + lie)))
        self.end_headers()
        self._body(file, start, stop, fault)
        return None

    def _empty(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _body(self, file: Path, start: int, stop: int, fault: Fault) -> None:
        with file.open("rb") as opened:
            if fault.kind in ("cut", "reset", "stall") and fault.at < stop - start:
                self.connection.sendfile(opened, start, fault.at) if fault.at else None
                if fault.kind == "stall":
                    time.sleep(self.server.silence)
                if fault.kind == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                self.close_connection = True
            elif fault.kind in ("trickle", "wrong", "length"):
                opened.seek(start)
                data = bytearray(opened.read(stop - start))
                if fault.kind == "wrong" and data:
                    data[fault.at % len(data)] ^= 1
                step = max(1, fault.at, len(data) // 50) if fault.kind == "trickle" else max(1, len(data))
                for at in range(0, len(data), step):
                    self.wfile.write(data[at : at + step])
                    time.sleep(0.001 if fault.kind == "trickle" else 0)
                self.close_connection = fault.kind == "length"
            else:
                self.connection.sendfile(opened, start, stop - start)


# --- what it serves ---


def build(folder: Path, shared: Path = SHARED, years: tuple[int, ...] = (2014, 2017)) -> Path:
    """Writes COCO's layout in small into `folder`, MD5SUMS included, and returns it. The same input, the same bytes."""
    pictures, captions = _real(shared) if shared.is_dir() else drawn()
    ids = sorted(pictures)
    places = {picture: "val" if picture in ids[:: len(ids) // VAL][:VAL] else "train" for picture in ids}
    for year in years:
        names = {i: _name(places[i], year, i) for i in ids}
        for place in ("train", "val"):
            chosen = {names[i]: pictures[i] for i in ids if places[i] == place}
            pack(folder / f"zips/{place}{year}.zip", {f"{place}{year}/": b"", **chosen})
        documents = {
            f"annotations/captions_{place}{year}.json": annotations(
                {i: captions[i] for i in ids if places[i] == place},
                {i: Path(names[i]).name for i in ids},
            )
            for place in ("train", "val")
        }
        pack(folder / f"annotations/annotations_trainval{year}.zip", {**documents, "annotations/instances.json": b"{}"})
    pack(folder / "caption_datasets.zip", {"dataset_coco.json": karpathy(places), "dataset_flickr8k.json": b"{}"})
    sums(folder)
    return folder


def sums(folder: Path) -> None:
    """Writes MD5SUMS of everything below `folder`, as `md5sum` does."""
    files = sorted(path for path in folder.rglob("*.zip"))
    lines = (f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files)
    (folder / "MD5SUMS").write_text("".join(lines))


def pack(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    """Writes a zip of `members` without a date; annotations are deflated, as COCO's are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            packed = zipfile.ZIP_DEFLATED if name.endswith(".json") else method
            archive.writestr(zipfile.ZipInfo(name), data, packed)


def _name(place: str, year: int, picture: int) -> str:
    """A picture's member name as COCO gives it."""
    prefix = f"COCO_{place}2014_" if year == 2014 else ""
    return f"{place}{year}/{prefix}{picture:012d}.jpg"


def annotations(captions: dict[int, list[str]], names: dict[int, str]) -> bytes:
    """A captions file in COCO's format; entries in no particular order, as in the original."""
    images = [{"license": 3, "file_name": names[i], "height": 48, "width": 64, "id": i} for i in captions]
    entries = [
        {"image_id": i, "id": i * 10 + number, "caption": text}
        for number in range(max(map(len, captions.values())))
        for i, texts in captions.items()
        for text in texts[number : number + 1]
    ]
    random.Random(1).shuffle(images)
    return json.dumps({"info": {"year": 0}, "licenses": [], "images": images, "annotations": entries}).encode()


def karpathy(places: dict[int, str]) -> bytes:
    """dataset_coco.json: every picture of val goes to val, test or restval in turn."""
    turn = iter(["val", "test", "restval"] * len(places))
    images = [
        {
            "filepath": f"{place}2014",
            "filename": Path(_name(place, 2014, i)).name,
            "imgid": number,
            "split": "train" if place == "train" else next(turn),
            "sentences": [],
            "cocoid": i,
        }
        for number, (i, place) in enumerate(places.items())
    ]
    return json.dumps({"images": images, "dataset": "coco"}).encode()


def _real(shared: Path) -> tuple[dict[int, bytes], dict[int, list[str]]]:
    """Photographs and captions by picture id, from the development data."""
    document = json.loads((shared / "captions_train2017_80images.json").read_text())
    with zipfile.ZipFile(shared / "train2017_80images.zip") as archive:
        pictures = {i["id"]: archive.read(f"train2017/{i['file_name']}") for i in document["images"]}
    captions: dict[int, list[str]] = {i: [] for i in pictures}
    for entry in document["annotations"]:
        captions[entry["image_id"]].append(entry["caption"])
    return pictures, captions


def drawn(count: int = 80) -> tuple[dict[int, bytes], dict[int, list[str]]]:
    """A stand-in of the same form: patches of colour, five captions each."""
    from PIL import Image

    chance = random.Random(2014)
    colours = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "white": (240, 240, 240)}
    forms = (
        "A {c} patch fills the picture.",
        "there is only {c} here",
        "A plain {c} surface.",
        "{c} all over",
        "It is {c}",
    )
    pictures, captions = {}, {}
    for i in sorted(chance.sample(range(1, 600_000), count)):
        colour = chance.choice(sorted(colours))
        image = Image.new("RGB", (64, 48), colours[colour])
        image.putpixel((chance.randrange(64), chance.randrange(48)), (0, 0, 0))
        file = io.BytesIO()
        image.save(file, "JPEG")
        pictures[i], captions[i] = file.getvalue(), [form.format(c=colour) for form in forms]
    return pictures, captions


def main() -> None:
    """Serves until Ctrl-C."""
    given = dict(enumerate(sys.argv))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(given[2]) if 2 in given else build(Path(made))
        with Mirror(folder, int(given.get(1, "0"))) as mirror:
            wait(mirror)


def wait(mirror: Mirror) -> None:
    print(f"base_url: {mirror.url}\nkarpathy: {mirror.url}/caption_datasets.zip\nexpect: own", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


if __name__ == "__main__":
    main()
