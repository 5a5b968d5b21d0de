"""The live page's API, as `caption --serve` starts it: captions, limits, strangers, broken requests, its end.

Authorities: the captioner itself for captions, Pillow for what is no picture, openapi-spec-validator for the OpenAPI
document, prometheus_client's parser for the metrics.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import http.client
import io
import json
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Iterator, MutableMapping
from concurrent.futures import CancelledError
from concurrent.futures import wait as wait_for
from functools import partialmethod
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from captioners import coarse_pictures, save_captioner
from mlflow import MlflowClient
from openapi_spec_validator import validate
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import save_file
from stores import fresh, serving
from trained import Trained, stage

from stages import tracking
from stages.evaluate.captioner import Captioner
from stages.fetch.pictures import PictureError, decode
from stages.fetch.sent import MAX_SCANS, decode_sent
from stages.live import app
from stages.live.desk import Desk, Wish
from stages.live.guard import Guard
from stages.live.models import Shelf, around, beside, fetched, named
from stages.register.registry import Registry
from stages.train.decoders import pack_words

REPOSITORY = Path(__file__).resolve().parent.parent
CAPTION = str(Path(sys.executable).with_name("caption"))
PATH = "/api/caption"


def file(picture: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, kind, **how)
    return data.getvalue()


PICTURES = coarse_pictures(24)
PNG = file(PICTURES[0])
JPEG = file(PICTURES[1].resize((700, 500)), "JPEG")


class Server:
    """A running `caption --serve` and the captioner that it serves."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address, folder
        self.netloc = urlsplit(address).netloc
        self.captioner = Captioner.load(folder / "models/attending/captioner.safetensors", device="cpu")

    def ask(
        self, path: str, body: bytes | None = None, method: str = "POST", **headers: str
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Status, answer (JSON where it is JSON) and headers; `content_type="image/png"` is a header."""
        connection = http.client.HTTPConnection(self.netloc, timeout=60)
        try:
            connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
            answer = connection.getresponse()
            text = answer.read().decode()
            is_json = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(text) if is_json else text, answer.headers
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> tuple[int, Any, http.client.HTTPMessage]:
        return self.ask(path, None, "GET", **headers)

    def raw(self, data: bytes) -> int:
        """The status that bytes on the wire are answered with."""
        host, port = self.netloc.split(":")
        with socket.create_connection((host, int(port)), timeout=60) as wire:
            wire.sendall(data)
            first = wire.makefile("rb").readline()
        return int(first.split()[1]) if first else 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("live")
    save_captioner(folder / "models/attending/captioner.safetensors", decoder="attend")
    save_captioner(folder / "plain.safetensors", seed=1, resize="crop")
    (folder / "plain.md").write_text("# plain\n\nHas <script>alert(1)</script> in its *card*.\n\n| a |\n|---|\n| b |\n")
    models = ("--model", "models/attending/captioner.safetensors", "--model", "plain.safetensors")
    command = (CAPTION, "--serve", "--port", "PORT", "--name", "captions.example", *models)
    with serving(folder, *command, ready="/health", OMP_NUM_THREADS="1") as address:
        yield Server(address, folder)


# --- captions ---------------------------------------------------------------------------------------------------------


def said(answer: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(each["caption"], each["score"]) for each in answer["captions"]]


def expected(captioner: Captioner, data: bytes, beam: int | None = None, n: int = 1) -> list[tuple[str, Any]]:
    (best,) = captioner.caption([decode(data, at_least=64)], beam=beam, n=n)
    return [(caption.text, pytest.approx(caption.score, abs=2e-4)) for caption in best]


def form(data: bytes, name: str = "picture", filename: str = "photo.png", kind: str = "image/png") -> bytes:
    head = (
        f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\nContent-Type: {kind}\r\n\r\n'
    )
    return head.encode() + data + b"\r\n--b--\r\n"


FORM = "multipart/form-data; boundary=b"


def test_every_way_to_send_a_picture_gets_the_captioners_captions(server: Server) -> None:
    text = base64.b64encode(JPEG).decode()
    ways: list[tuple[str, str, bytes]] = [
        (f"{PATH}?n=2", "image/jpeg", JPEG),
        (f"{PATH}?n=2", "application/octet-stream", JPEG),
        (f"{PATH}?n=2", FORM, form(JPEG, filename="../../etc/passwd")),
        (PATH, "application/json", json.dumps({"picture": text, "n": 2}).encode()),
        (f"{PATH}?n=5", "application/json", json.dumps({"picture": f"data:image/jpeg;base64,{text}", "n": 2}).encode()),
    ]
    for path, kind, body in ways:
        status, answer, _ = server.ask(path, body, content_type=kind)
        assert status == 200, answer
        assert said(answer) == expected(server.captioner, JPEG, n=2)
        assert answer["caption"] == answer["captions"][0]["caption"]
        assert answer["weights_sha256"] == server.captioner.artifacts[0].weights_sha256


@pytest.mark.parametrize(("beam", "n"), [(1, 1), (5, 2), (2, 4)])
def test_beam_and_n(server: Server, beam: int, n: int) -> None:
    status, answer, _ = server.ask(f"{PATH}?beam={beam}&n={n}", PNG, content_type="image/png")
    assert status == 200
    assert said(answer) == expected(server.captioner, PNG, max(beam, n), n)
    assert answer["beam"] == max(beam, n)


def test_captions_are_drawn_by_seed_in_whatever_batch(server: Server) -> None:
    drawn = {}
    for seed in (1, 1, 2):
        path = f"{PATH}?n=3&top_p=0.9&temperature=2&seed={seed}"
        status, answer, _ = server.ask(path, PNG, content_type="image/png")
        assert status == 200
        options = {"top_p": 0.9, "temperature": 2.0, "seed": seed}
        (best,) = server.captioner.caption([decode(PNG, at_least=64)], n=3, **options)
        assert said(answer) == [(caption.text, pytest.approx(caption.score, abs=2e-4)) for caption in best]
        assert drawn.setdefault(seed, said(answer)) == said(answer)
    assert drawn[1] != drawn[2]


def test_attention_is_what_the_decoder_itself_says_one_caption_at_a_time(server: Server) -> None:
    status, answer, _ = server.ask(f"{PATH}?n=3&attention=true", PNG, content_type="image/png")
    assert status == 200
    captioner, decoder = server.captioner, server.captioner.decoders[0]
    with torch.inference_mode():
        grid = captioner.encoders[0](captioner.preprocessings[0](PICTURES[0])[None]).half().float()
        context = decoder.context(grid.mean(1), grid)
        for each in answer["captions"]:
            words = pack_words([captioner.vocabulary.encode(each["caption"])], [0])
            alone = decoder.attention(context, words)
            assert alone is not None
            assert np.array(each["attention"]) == pytest.approx(alone[:-1].numpy(), abs=2e-3)
            assert len(each["attention"]) == len(each["caption"].split())
            assert answer["grid"] ** 2 == len(each["attention"][0])


def test_a_model_is_chosen_by_its_name_and_says_what_it_sees(server: Server) -> None:
    _, offers, _ = server.get("/api/models")
    assert [(each["name"], each["attention"]) for each in offers["models"]] == [("attending", True), ("plain", False)]
    wide = file(Image.effect_noise((400, 200), 50).convert("RGB"))
    status, answer, _ = server.ask(f"{PATH}?model=plain&attention=true", wide, content_type="image/png")
    assert status == 200
    plain = Captioner.load(server.folder / "plain.safetensors", device="cpu")
    assert said(answer) == expected(plain, wide)
    assert (answer["grid"], answer["captions"][0]["attention"]) == (None, None)
    assert answer["box"] == [0.25, 0, 0.75, 1], "it crops to the middle"
    _, whole, _ = server.ask(PATH, wide, content_type="image/png")
    assert whole["box"] == [0, 0, 1, 1]


def test_a_card_is_shown_without_what_it_might_hide(server: Server) -> None:
    _, card, _ = server.get("/api/models/plain/card")
    assert "<table>" in card["html"]
    assert "<em>card</em>" in card["html"]
    assert "<script>" not in card["html"]
    assert server.get("/api/models/attending/card")[0] == 404


def test_what_waits_together_gets_the_captions_of_one_picture_at_a_time(server: Server) -> None:
    """Through the desk itself, which is kept busy until all have come, so that batches are sure to be full."""
    captioner, gate, batches = server.captioner, threading.Event(), []

    def load(name: str) -> Captioner:
        gate.wait()
        return captioner

    desk = Desk(load, 8, lambda orders, took, since: batches.append(len(orders)))
    pixels = [captioner.preprocessings[0](picture) for picture in PICTURES]
    wishes = [Wish("a", 3 + number % 2, 2, attention=True) for number in range(len(pixels))]
    answers = [desk.ask(each, wish) for each, wish in zip(pixels, wishes, strict=True)]
    answers[5].cancel()
    gate.set()
    wait_for([each for each in answers if not each.cancelled()], timeout=60)
    for number, (each, wish, answer) in enumerate(zip(pixels, wishes, answers, strict=True)):
        if number == 5:
            continue
        (alone,) = captioner.describe([each[None]], wish.beam, wish.n, attention=True)
        together = answer.result().captions
        assert [caption.text for caption in together] == [caption.text for caption in alone]
        for one, other in zip(together, alone, strict=True):
            assert one.score == pytest.approx(other.score, abs=2e-3)
            assert one.attention == pytest.approx(other.attention, abs=2e-3)
    assert sum(batches) == 23
    assert batches[1:3] == [8, 8] or batches[:2] == [8, 8], batches
    desk.close()
    with pytest.raises(RuntimeError):
        desk.ask(pixels[0], wishes[0])


def test_a_desk_outlives_what_fails_and_ends_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, taken = threading.Event(), threading.Event()

    def load(name: str) -> Captioner:
        taken.set()
        gate.wait()
        raise ValueError(f"no {name}")

    desk = Desk(load)
    first = desk.ask(torch.zeros(3, 8, 8, dtype=torch.uint8), Wish("a", 1, 1))
    gate.set()
    with pytest.raises(ValueError, match="no a"):
        first.result(timeout=60)
    assert desk.alive
    gate.clear()
    taken.clear()
    last = [desk.ask(torch.zeros(3, 8, 8, dtype=torch.uint8), Wish(name, 1, 1)) for name in "bc"]
    assert taken.wait(timeout=60), "the desk works at b"
    end = desk._thread.join
    monkeypatch.setattr(desk._thread, "join", lambda: (gate.set(), end(timeout=60)))  # b goes on when it is closed
    desk.close()
    with pytest.raises(ValueError, match="no b"):
        last[0].result(timeout=60)
    with pytest.raises(CancelledError):
        last[1].result(timeout=60)


# --- for programs -----------------------------------------------------------------------------------------------------


def test_the_openapi_document_is_valid_and_names_what_is_there(server: Server) -> None:
    _, api, _ = server.get("/openapi.json")
    validate(api)
    assert set(api["paths"]) == {"/health", "/metrics", "/api/models", "/api/models/{name}/card", PATH}
    asked = api["paths"][PATH]["post"]
    assert [each["name"] for each in asked["parameters"]] == [
        "model",
        "beam",
        "n",
        "top_p",
        "temperature",
        "seed",
        "attention",
    ]
    assert set(asked["requestBody"]["content"]) == {"image/*", "application/octet-stream", "application/json",
                                                    "multipart/form-data"}  # fmt: skip
    assert {"200", "400", "413", "415", "422", "429", "503"} <= set(asked["responses"])
    dead = api["paths"]["/health"]["get"]["responses"]["503"]
    assert dead["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Refusal"}
    schema = api["components"]["schemas"]["Captions"]
    _, answer, _ = server.ask(PATH, PNG, content_type="image/png")
    assert set(answer) == set(schema["properties"])


def test_metrics_can_be_parsed_and_count(server: Server) -> None:
    def read() -> dict[str, float]:
        _, text, headers = server.get("/metrics")
        assert headers.get_content_type() == "text/plain"
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {f"{sample.name}{sorted(sample.labels.items())}": sample.value for sample in samples}

    before = read()
    assert server.ask(f"{PATH}?model=plain", PNG, content_type="image/png")[0] == 200
    assert server.ask(f"{PATH}?model=plain", b"x", content_type="image/png")[0] == 400
    assert server.get("/nowhere")[0] == 404
    after = read()
    for name in (
        "captioner_pictures_total[('model', 'plain')]",
        f"captioner_requests_total[('path', '{PATH}'), ('status', '200')]",
        f"captioner_requests_total[('path', '{PATH}'), ('status', '400')]",
        "captioner_requests_total[('path', 'other'), ('status', '404')]",
    ):
        assert after[name] == before.get(name, 0) + 1, name
    assert after["process_resident_memory_bytes[]"] > 1e8


def test_health_says_ok(server: Server) -> None:
    assert server.get("/health")[:2] == (200, {"status": "ok", "waiting": 0})


def test_pages_load_nothing_and_run_only_their_own_script(server: Server) -> None:
    for path in ("/", "/docs"):
        status, text, headers = server.get(path)
        assert status == 200
        assert "http://" not in text.replace("http://127.0.0.1:8347", "")
        assert "https://" not in text
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in headers


# --- strangers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "", "[::1", "1.2.3.x"])
def test_another_name_is_refused(server: Server, host: str) -> None:
    assert server.get("/api/models", host=host)[0] == 421
    assert server.ask(PATH, PNG, content_type="image/png", host=host)[0] == 421


def test_its_own_names_are_not(server: Server) -> None:
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8347", "192.168.0.7", "captions.example"):
        assert server.get("/api/models", host=host)[0] == 200, host


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", "file://", "http://[::1"])
def test_a_page_of_another_origin_is_refused(server: Server, origin: str) -> None:
    assert server.ask(PATH, PNG, content_type="image/png", origin=origin)[0] == 403
    assert server.ask(PATH, method="OPTIONS", origin=origin, access_control_request_method="POST")[0] == 403


def test_its_own_page_may_ask(server: Server) -> None:
    assert server.ask(PATH, PNG, content_type="image/png", origin=server.address)[0] == 200


def test_the_guard_lets_the_lifespan_through_and_knows_addresses() -> None:
    guard = Guard(lambda *_: None, ["host.example", "::1"], {}, lambda *_: None)  # type: ignore[arg-type, return-value]
    assert all(guard.ours(host) for host in ("host.example:1", "10.0.0.1", "[fe80::1]:9", "localhost"))
    assert not any(guard.ours(host) for host in ("1.2.3", "host.example.com", "user@", ":80", "a b"))


def test_no_path_and_no_address_is_opened(server: Server) -> None:
    secret = server.folder / "secret.png"
    secret.write_bytes(PNG)
    for text in (str(secret), f"file://{secret}", "http://127.0.0.1/a.png", "secret.png", "data:,secret.png"):
        status, answer, _ = server.ask(PATH, json.dumps({"picture": text}).encode(), content_type="application/json")
        assert status == 400
        assert answer["error"].startswith("the picture is")
    for model in ("plain.safetensors", "../plain", str(server.folder / "plain.safetensors"), "models:/x/1", ""):
        status, answer, _ = server.ask(f"{PATH}?model={model}", PNG, content_type="image/png")
        assert (status, "there is no model" in answer["error"]) == (404, True)


def bomb(side: int) -> bytes:
    """A few kilobytes that unpack to `side` times `side` pixels."""
    return file(Image.new("1", (side, side)))


def scans(count: int) -> bytes:
    """A progressive JPEG with as many scans of nothing at its end."""
    data = file(PICTURES[2], "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + b"\xff\xd9"


def test_limits_are_checked_before_work(server: Server) -> None:
    refused = [
        (PNG + bytes(32 << 20), "image/png", 413, "more than the 33,554,432 bytes allowed"),
        (bomb(9_000), "image/png", 400, "the picture has 9,000 x 9,000 pixels, more than the 64,000,000 allowed"),
        (bomb(20_000), "image/png", 400, "more than the 178,956,970 pixels allowed"),
        (scans(MAX_SCANS + 1), "image/jpeg", 400, "scans, more than the 100 allowed"),
        (form(bytes(33 << 20)), FORM, 413, "bytes allowed"),
        (json.dumps({"picture": "A" * (46 << 20)}).encode(), "application/json", 413, "bytes allowed"),
    ]
    for body, kind, status, reason in refused:
        began = time.monotonic()
        found, answer, _ = server.ask(PATH, body, content_type=kind)
        assert (found, reason in answer["error"]) == (status, True), answer
        assert time.monotonic() - began < 20
    with pytest.raises(PictureError, match="scans"):
        decode_sent(scans(MAX_SCANS + 1), 64)
    assert decode_sent(scans(3), 64).size == PICTURES[2].size


def test_netpbm_which_python_itself_decodes_is_not_taken() -> None:
    data = b"P6 2 2 254\n" + bytes(12)
    assert decode(data).size == (2, 2)
    with pytest.raises(PictureError, match=r"is in none of the formats JPEG, PNG, WEBP, GIF, BMP, TIFF$"):
        decode_sent(data, 64)


def test_too_many_at_once_are_told_when_to_come_back(server: Server) -> None:
    """Requests that send half a picture are inside until they go; the one beyond the limit is refused."""
    host, port = server.netloc.split(":")
    head = f"POST {PATH} HTTP/1.1\r\nHost: {server.netloc}\r\nContent-Type: image/png\r\n"
    head += f"Content-Length: {len(PNG)}\r\n\r\n"
    wires = [socket.create_connection((host, int(port)), timeout=60) for _ in range(64)]
    for wire in wires:
        wire.sendall(head.encode() + PNG[:40])
    for _ in range(100):
        status, answer, headers = server.ask(PATH, PNG, content_type="image/png")
        if status == 429:
            break
        time.sleep(0.05)
    assert status == 429, "64 requests are inside"
    assert int(headers["Retry-After"]) >= 1
    assert "requests wait: try again" in answer["error"]
    assert server.get("/health")[0] == 200, "whoever watches is answered"
    wires[0].sendall(PNG[40:])
    assert b"200 OK" in wires[0].recv(100), "who is inside is answered"
    for wire in wires:
        wire.close()
    for _ in range(100):
        if server.ask(PATH, PNG, content_type="image/png")[0] == 200:
            return
        time.sleep(0.05)
    raise AssertionError("those who have gone still count")


# --- our own mistakes -------------------------------------------------------------------------------------------------


def inside(application: Any, path: str, body: bytes = b"", method: str = "POST") -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of what an application answers, without a server."""
    headers = [(b"host", b"localhost"), (b"content-type", b"image/png")]
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}
    requests, answers = iter([{"type": "http.request", "body": body}]), list[MutableMapping[str, Any]]()

    async def receive() -> dict[str, Any]:
        for request in requests:
            return request
        return await asyncio.get_running_loop().create_future()  # the client stays

    async def send(message: MutableMapping[str, Any]) -> None:
        answers.append(message)

    asyncio.run(application(scope, receive, send))
    start, *rest = answers
    told = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], b"".join(message["body"] for message in rest), told


@pytest.mark.parametrize("where", ["decoding", "captioning"])
def test_a_mistake_of_ours_is_answered_like_any_refusal(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("a mistake")

    if where == "decoding":
        monkeypatch.setattr(app, "prepare", fail)
    else:
        monkeypatch.setattr(Shelf, "load", fail)
    application = app.make_app(Shelf([beside(save_captioner(tmp_path / "a.safetensors"))], device="cpu"))
    status, body, headers = inside(application, PATH, PNG)
    assert (status, "log says" in json.loads(body)["error"]) == (500, True)
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]
    counts = inside(application, "/metrics", method="GET")[1].decode()
    assert f'captioner_requests_total{{path="{PATH}",status="500"}} 1.0' in counts
    assert capsys.readouterr().err.count("Traceback") == 1


def test_a_pictures_file_is_let_go_when_it_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each of the requests that wait for the captioner would hold up to 32 MB."""
    files: list[weakref.ref[Any]] = []

    class File(bytearray):
        """Bytes that can be watched."""

    async def read(request: Any, options: app.Options) -> tuple[bytearray, app.Options]:
        file = File(PNG)
        files.append(weakref.ref(file))
        return file, options

    async def granted(*_: Any) -> None:
        until = time.monotonic() + 10  # the decoder's thread lets go a moment after it has answered
        while files[0]() is not None and time.monotonic() < until:
            await asyncio.sleep(0.01)
        assert files[0]() is None
        raise app.HTTPException(503, "it is gone")

    monkeypatch.setattr(app, "read", read)
    monkeypatch.setattr(app, "granted", granted)
    application = app.make_app(Shelf([beside(save_captioner(tmp_path / "a.safetensors"))], device="cpu"))
    assert inside(application, PATH)[:2] == (503, b'{"error":"it is gone"}')


# --- a flood of broken requests ---------------------------------------------------------------------------------------


def is_picture(data: bytes) -> bool:
    """What Pillow says."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Exception:
        return False
    return True


def broken_pictures(count: int, seed: int) -> Iterator[bytes]:
    """Real files of four formats with bytes changed, cut, doubled, swapped: those that Pillow cannot read."""
    generator = random.Random(seed)
    noise = Image.effect_noise((60, 50), 80).convert("RGB")
    whole = [file(noise, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")] + [file(noise.convert("L"), "PNG"), JPEG]
    while count:
        data = bytearray(generator.choice(whole))
        for _ in range(generator.choice((1, 2, 8, 40))):
            at, how = generator.randrange(max(1, len(data))), generator.randrange(5)
            if how == 0 and data:
                data[at] ^= 1 << generator.randrange(8)
            elif how == 1:
                data[at : at + 4] = struct.pack(">I", generator.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF)))
            elif how == 2:
                del data[at:]
            elif how == 3:
                data[at:at] = data[at : at + generator.randrange(64)]
            else:
                data[at : at + generator.randrange(1, 32)] = generator.randbytes(16)
        if not is_picture(bytes(data)):
            count -= 1
            yield bytes(data)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def hostile_pictures() -> Iterator[bytes]:
    """What is made to be trouble."""
    signature, end = b"\x89PNG\r\n\x1a\n", chunk(b"IEND", b"")
    for width, height in ((0, 0), (0, 5), (2**31 - 1, 1), (2**31, 2**31), (65_500, 65_500), (20_000, 20_000)):
        yield signature + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + end
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80 << 20), 9))  # 80 MB of comment in 80 kB
    yield PNG[:33] + text + PNG[33:60]
    yield b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\x80\0\0" + bytes(20)
    yield b"RIFF" + struct.pack("<I", 2**32 - 1) + b"WEBPVP8X" + bytes(30)
    yield b"BM" + struct.pack("<IHHIIiiHHII", 100, 0, 0, 54, 40, 60_000, -60_000, 1, 24, 0, 0) + bytes(24)
    yield b"P6 100000 100000 255\n" + bytes(10)
    yield b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 65_535) + bytes(40)
    yield b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) run\n"
    yield b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield b"PK\3\4" + bytes(100)
    yield b"#!/bin/sh\ntrue\n"
    yield scans(300)
    yield b""


def broken_requests(seed: int) -> Iterator[tuple[str, str, dict[str, str], bytes]]:
    """Method, path, headers and body of requests that nobody should get captions for."""
    generator = random.Random(seed)
    for data in (*broken_pictures(400, seed), *hostile_pictures()):
        kind = generator.choice(("image/png", "image/jpeg", "image/../../x", "application/octet-stream", FORM, "json"))
        if kind == "json":
            yield (
                "POST",
                PATH,
                {"Content-Type": "application/json"},
                json.dumps({"picture": base64.b64encode(data).decode()}).encode(),
            )
        else:
            yield "POST", PATH, {"Content-Type": kind}, form(data) if kind == FORM else data
    for kind in ("text/plain", "text/html", "application/x-www-form-urlencoded", "video/mp4", "x", "",
                 "multipart/mixed", "image", "application/jsonx", "application/xml", "\u00e9/\u00e9",
                  "a" * 8000):  # fmt: skip
        yield "POST", PATH, {"Content-Type": kind}, PNG
    for query in ("beam=0", "beam=21", "beam=-1", "beam=1e9", "beam=many", "n=0", "n=21", "n=", "n=1.5",
                  "attention=maybe", "model=../../x", "model=%00", "model=" + "x" * 300, "top_p=2",
                  "temperature=0", "seed=-1",
                  "wide=1", "path=/etc/passwd",
                  "picture=a", "n=9" * 30, "beam=%F0%9F%90%95", "%FF=%FE", "beam=" + "9" * 5000):  # fmt: skip
        yield "POST", f"{PATH}?{query}", {"Content-Type": "image/png"}, PNG
    good = base64.b64encode(PNG).decode()
    values: tuple[Any, ...] = (
        None,
        1,
        True,
        [],
        {},
        [good],
        {"picture": good},
        "",
        " ",
        "not base64!",
        "\ud800",
        "é" * 9,
    )
    for value in values:
        yield "POST", PATH, {"Content-Type": "application/json"}, json.dumps({"picture": value}).encode()
    for more in ({"beam": "3"}, {"beam": 3.5}, {"beam": 99}, {"n": True}, {"n": None}, {"path": "/etc/passwd"},
                 {"model": 5}, {"model": "none"}, {"attention": "yes"}, {"url": "http://127.0.0.1"}):  # fmt: skip
        yield "POST", PATH, {"Content-Type": "application/json"}, json.dumps({"picture": good, **more}).encode()
    for body in (b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"picture":', b"[" * 100_000, b'{"a":' * 50_000, b"NaN",
                 b"1e999", b'"' + b"a" * 1000, b"\0" * 64, b'{"picture": "' + good.encode()[:50],
                  b"{}" * 3):  # fmt: skip
        yield "POST", PATH, {"Content-Type": "application/json"}, body
    whole = form(PNG)
    forms: list[tuple[str, bytes]] = [
        ("multipart/form-data", whole),
        ("multipart/form-data; boundary=", whole),
        ("multipart/form-data; boundary=other", whole),
        (f"multipart/form-data; boundary={'b' * 5000}", whole),
        (FORM, b""),
        (FORM, b"--b--\r\n"),
        (FORM, form(PNG, name="other")),
        (FORM, form(PNG, name="")),
        (FORM, form(PNG)[:-7] + form(PNG)),  # two pictures
        (FORM, whole.replace(b'; filename="photo.png"', b"")),
        (FORM, whole.replace(b"Content-Disposition", b"X")),
        (FORM, whole.replace(b"\r\n", b"\n")),
        (FORM, b"--b\r\n" + b"A: " + b"a" * 100_000 + b"\r\n\r\n"),
        (FORM, b"--b\r\n\r\n" * 2000),
        (FORM, b'--b\r\nContent-Disposition: form-data; name="picture"; filename="\xff\xfe\x00"\r\n\r\nx\r\n--b--\r\n'),
    ]
    for name in (
        "../../../etc/passwd",
        "C:\\con",
        "\u202egpj.exe",
        "\U0001f415.png",
        "a" * 4000,
        "x\0y",
        "'; drop table",
    ):
        forms.append((FORM, form(b"no picture", filename=name)))
        forms.append((FORM, form(PNG[:50], filename=name)))
    forms += [(FORM, whole[: generator.randrange(len(whole) - 4)]) for _ in range(20)]
    for kind, body in forms:
        yield "POST", PATH, {"Content-Type": kind}, body
    for method, path in (("GET", PATH), ("PUT", PATH), ("DELETE", "/"), ("PATCH", "/health"),
                         ("GET", "/../../etc/passwd"), ("GET", "/api/models/%2e%2e%2fsecret/card"),
                         ("GET", "/static/../app.py"), ("GET", "/%00"),
                         ("POST", "/metrics"), ("TRACE", "/"), ("GET", "/page.html"), ("GET", "//evil")):  # fmt: skip
        yield method, path, {}, b""
    yield "POST", PATH, {"Content-Type": "image/png", "X-Long": "a" * 600_000}, PNG
    yield "POST", PATH, {f"X-{number}": "a" * 100 for number in range(90)} | {"Content-Type": "x" * 30_000}, PNG


def wire_requests(host: str) -> Iterator[bytes]:
    """Bytes that are hardly HTTP."""
    head = f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/png\r\n".encode()
    yield b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60)  # TLS
    yield b"hello\r\n\r\n"
    yield b"POST\r\n\r\n"
    yield b"GET / HTTP/9.9\r\n\r\n"
    yield b"GET / HTTP/1.1\r\n\r\n"  # no Host
    yield head + b"Content-Length: -1\r\n\r\n"
    yield head + b"Content-Length: many\r\n\r\n"
    yield head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"
    yield head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n"
    yield head + b"Transfer-Encoding: gzip\r\n\r\nhello"
    yield head + b"Bad Header: \x00\r\n\r\n"
    yield head + b"Content-Length: 0\r\n\r\n"
    yield head + b"Content-Length: 3\r\n\r\nabc"
    yield head + b"X: " + b"a" * 60_000  # and no end


@pytest.mark.slow
def test_six_hundred_broken_requests_are_refused_and_the_server_goes_on(server: Server) -> None:
    statuses, wrong = [], []
    for method, path, headers, body in broken_requests(seed=6):
        connection = http.client.HTTPConnection(server.netloc, timeout=60)
        connection.putrequest(method, path)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            connection.putheader(name, value.encode())
        # uvicorn itself refuses a head that is far too long, and closes while the client may still be sending.
        too_long = sum(map(len, headers.values())) > 64 << 10
        try:
            connection.endheaders(body)
            statuses.append(connection.getresponse().status)
        except ConnectionError:
            assert too_long, (method, path, str(headers)[:200])
            continue
        finally:
            connection.close()
        if not 400 <= statuses[-1] < 500:
            wrong.append((statuses[-1], method, path, str(headers)[:200], body[:200]))
    for data in wire_requests(server.netloc):
        statuses.append(server.raw(data))
        if not 400 <= statuses[-1] < 500:
            wrong.append((statuses[-1], data[:200]))
    assert not wrong, [(status, str(rest)[:150]) for status, *rest in wrong]
    assert len(statuses) >= 500
    status, answer, _ = server.ask(PATH, JPEG, content_type="image/jpeg")
    assert status == 200
    assert said(answer) == expected(server.captioner, JPEG)
    assert "Traceback" not in "".join(log.read_text() for log in server.folder.glob("server-*.log"))


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        (f"{PATH}?beam=0", "Content-Type: image/png", 422),
        (PATH, "Content-Type: text/plain", 415),
        ("/nowhere", "Content-Type: image/png", 404),
        ("/metrics", "Content-Type: image/png", 405),
        (PATH, "Origin: http://evil.example", 403),
    ],
)
def test_who_still_sends_hears_why_it_is_refused(server: Server, path: str, header: str, status: int) -> None:
    """A server that answers and closes before the body has come breaks the connection that the answer is on."""
    host, port = server.netloc.split(":")
    body = bytes(3 << 20)
    head = f"POST {path} HTTP/1.1\r\nHost: {server.netloc}\r\n{header}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as wire:
        wire.sendall(head.encode())
        for first in range(0, len(body), 1 << 20):
            time.sleep(0.1)  # the refusal needs no body, and is ready long before it
            wire.sendall(body[first : first + (1 << 20)])
        assert wire.makefile("rb").readline().split()[1] == str(status).encode()


# --- models to choose from --------------------------------------------------------------------------------------------


def test_a_file_that_changed_under_the_server_is_not_used(tmp_path: Path) -> None:
    path = save_captioner(tmp_path / "a.safetensors")
    shelf = Shelf([beside(path), beside(path)], device="cpu")
    assert list(shelf.choices) == ["a", "a-2"]
    save_captioner(path, seed=5)
    with pytest.raises(ValueError, match="has changed since the server started"):
        shelf.load("a")
    with pytest.raises(ValueError, match="no model below models"):
        Shelf([])


def test_a_file_that_is_no_captioner_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = save_captioner(tmp_path / "whole.safetensors")
    odd = []
    for place, text in enumerate(("[]", "hello", '{"format": 1}', '{"format": 1, "encoder": []}')):
        odd.append(tmp_path / f"odd{place}.safetensors")
        save_file({"a": torch.zeros(1)}, odd[-1], {"captioner": text})
    (found,) = around([*odd, whole], tmp_path)
    assert found.name == "whole"
    assert capsys.readouterr().err.count("left out: ") == len(odd)


def test_where_no_store_is_none_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(
        ValueError, match=r"models:/captioner@champion: there is no store at sqlite:.*: run in the repos"
    ):
        named(["models:/captioner@champion"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_champion_that_is_no_captioner_hides_no_other(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a registry of pages of one, at an address with options."""
    for name in ("search_registered_models", "search_model_versions"):
        monkeypatch.setattr(MlflowClient, name, partialmethod(getattr(MlflowClient, name), max_results=1))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db?timeout=30")
    path = save_captioner(repository / "captioner.safetensors")
    client = tracking.store()
    with tracking.start("sample", {}, "cpu") as run:
        run.artifact(path, "model/artifacts")
    for model in ("another", "captioner", "odd@name"):
        client.create_registered_model(model)
        for weights in ("first", "second"):
            source, run_id = (str(repository), run.id) if model == "captioner" else ("nowhere", None)
            client.create_model_version(model, source, run_id, {"file_sha256": weights})
        client.set_registered_model_alias(model, "champion", "2")
    (found,) = around([], tmp_path)
    assert found.name == "captioner@champion"
    told = capsys.readouterr().err
    assert "models:/another@champion is left out: The MLflow store" in told
    assert "models:/odd@name@champion is left out" in told
    version = Registry("captioner").find("first")
    assert version is not None
    assert version.number == 1, "found on the second page"


@pytest.mark.slow
def test_the_champion_of_the_registry_is_offered_with_its_card(
    tmp_path: Path, template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "registry"
    folder.mkdir()
    with fresh(folder, template):
        trained = Trained(folder)
        trained.commit()
        trained.train(1)
        trained.measure(0.5)
        stage("stages.register")
        (tmp_path / "cut.safetensors").write_bytes(b"cut")
        found = around([trained.models / "captioner.safetensors", tmp_path / "cut.safetensors"], tmp_path)
        assert "left out:" in capsys.readouterr().err
        assert [choice.name for choice in found] == ["flickr8k", "captioner-flickr8k@champion"]
        champion = found[1]
        assert champion.metadata == found[0].metadata
        assert champion.version == "version 1 of captioner-flickr8k"
        assert "# captioner-flickr8k" in champion.card
        assert named(["models:/captioner-flickr8k/1"], tmp_path)[0].name == "captioner-flickr8k/1"
        with pytest.raises(ValueError, match=r"the registry in .* knows champion of captioner-flickr8k: name one"):
            fetched("models:/captioner-flickr8k@best", tmp_path)


# --- the command ------------------------------------------------------------------------------------------------------


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [CAPTION, "--serve", "--port", "0", "--model", "models/attending/captioner.safetensors", *more],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_ctrl_c_answers_who_waits_and_ends_without_a_word(server: Server) -> None:
    process = start(server.folder)
    assert process.stdout is not None
    line = process.stdout.readline()
    netloc = urlsplit(line.split()[0]).netloc
    assert netloc.startswith("127.0.0.1:"), line
    connection = http.client.HTTPConnection(netloc, timeout=60)
    connection.putrequest("POST", PATH)
    connection.putheader("Content-Type", "image/png")
    connection.putheader("Content-Length", str(len(PNG)))
    connection.putheader("Expect", "100-continue")
    connection.endheaders()
    assert connection.sock.recv(100).startswith(b"HTTP/1.1 100"), "the application waits for the picture"
    process.send_signal(signal.SIGINT)
    host, port = netloc.split(":")
    for _ in range(800):  # until nobody else is let in
        with socket.socket() as other:
            if refused := other.connect_ex((host, int(port))) == errno.ECONNREFUSED:
                break
        time.sleep(0.01)
    assert refused
    connection.send(PNG)
    assert connection.getresponse().status == 200
    connection.close()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_what_is_installed_has_its_pages(tmp_path: Path) -> None:
    """As setuptools builds it: every file of the sources that is no cache."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copytree(REPOSITORY / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    built = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build_py", "--build-lib", "built"]
    subprocess.run(built, cwd=tmp_path, check=True, capture_output=True)
    here, there = (
        {path.relative_to(root) for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "stages", tmp_path / "built" / "stages")
    )
    assert there == here


def test_mistakes_are_told(server: Server) -> None:
    taken = server.netloc.split(":")[1]
    for more, reason in (
        (("--port", taken), f"127.0.0.1:{taken}: Address already in use: choose another --port or --host"),
        (("--port", "99999"), "--port 99999 must be between 0 and 65535"),
        (("photo.jpg",), "--serve takes pictures from its page, not 'photo.jpg'"),
        (("--model", "gone.safetensors"), "gone.safetensors is not there"),
    ):
        process = start(server.folder, *more)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
        assert reason in errors
        assert "Traceback" not in errors
