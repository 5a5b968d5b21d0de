"""The registered model as anybody uses it: loaded by MLflow in Python, and behind `mlflow models serve` over HTTP.

The authority is the captioner that was registered: whatever way a picture is given, it gets that one's captions.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow.pyfunc
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image, ImageDraw
from stores import fresh, serving
from trained import Trained, stage

from stages import tracking
from stages.evaluate.captioner import Captioner
from stages.fetch.pictures import decode

MODEL = "models:/captioner-flickr8k@champion"


def file(picture: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, kind, **how)
    return data.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def scene(colour: str = "red", size: tuple[int, int] = (300, 200)) -> Image.Image:
    picture = Image.new("RGB", size, "skyblue")
    ImageDraw.Draw(picture).ellipse((40, 60, 140, 160), fill=colour)
    return picture


PNG = file(scene())
JPEG = file(scene("blue", (700, 500)), "JPEG")


@dataclass
class Registered:
    folder: Path
    captioner: Captioner


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Registered]:
    folder = tmp_path_factory.mktemp("registered")
    with fresh(folder, template):
        trained = Trained(folder)
        trained.commit()
        trained.train(1)
        trained.measure(0.5)
        stage("stages.register")
        yield Registered(folder, Captioner.load(trained.models / "captioner.safetensors"))


@pytest.fixture(scope="module")
def loaded(registered: Registered) -> Any:
    mlflow.set_tracking_uri(tracking.uri())
    try:
        return mlflow.pyfunc.load_model(MODEL)
    finally:
        mlflow.set_tracking_uri(None)


def expected(registered: Registered, data: bytes, beam: int | None = None, n: int | None = None) -> dict[str, Any]:
    """What the captioner itself says."""
    picture = decode(data, at_least=224)
    (best,) = registered.captioner.caption([picture], beam=beam, n=n or beam or registered.captioner.decoding.beam)
    captions = [{"caption": caption.text, "score": pytest.approx(caption.score, abs=1e-5)} for caption in best]
    return {**captions[0], "n_best": captions}


# --- in Python --------------------------------------------------------------------------------------------------------


def test_every_way_to_give_a_picture_gets_the_captioners_captions(
    registered: Registered, loaded: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a picture.jpg"
    path.write_bytes(JPEG)
    bare = tmp_path / "picture"
    bare.write_bytes(JPEG)
    url = f"data:image/jpeg;base64,{text(JPEG)}"
    for given in (JPEG, text(JPEG), url, path, str(path), bare, str(bare)):
        assert loaded.predict([given]) == [expected(registered, JPEG)]
    assert loaded.predict([Image.open(io.BytesIO(PNG))]) == [expected(registered, PNG)]
    mixed = loaded.predict([PNG, path, text(PNG), Image.open(io.BytesIO(PNG)), url])
    wanted = [expected(registered, data)["caption"] for data in (PNG, JPEG, PNG, PNG, JPEG)]
    assert [answer["caption"] for answer in mixed] == wanted


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_pictures_of_every_mode_are_seen_as_from_their_file(registered: Registered, loaded: Any, mode: str) -> None:
    picture = scene().convert("L").convert("I;16") if mode == "I;16" else scene().convert(mode)
    assert loaded.predict([picture]) == [expected(registered, file(picture, "TIFF"))]


def test_a_turned_photograph_is_turned_upright(registered: Registered, loaded: Any) -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = file(scene(), "JPEG", exif=exif)
    assert loaded.predict([Image.open(io.BytesIO(data))]) == [expected(registered, file(decode(data)))]
    assert loaded.predict([data]) == [expected(registered, data)]


@pytest.mark.parametrize(("beam", "n"), [(1, 0), (4, 2), (2, 4), (0, 1), (0, 0)])
def test_beam_and_n_are_params(registered: Registered, loaded: Any, beam: int, n: int) -> None:
    (answer,) = loaded.predict([PNG], params={"beam": beam, "n": n})
    wide = max(n, beam or registered.captioner.decoding.beam)
    assert answer == expected(registered, PNG, wide, n or wide)
    assert len(answer["n_best"]) == (n or wide)


def test_the_version_says_what_it_takes(loaded: Any) -> None:
    signature = loaded.metadata.signature
    assert [param.name for param in signature.params.params] == ["beam", "n"]
    assert loaded.metadata.saved_input_example_info is not None
    assert not list(Path(loaded._model_impl.context.artifacts["captioner"]).parent.rglob("*.pkl"))


def test_a_missing_file_is_named(loaded: Any) -> None:
    with pytest.raises(MlflowException, match=r"picture 2 \(none\.jpg\): No such file"):
        loaded.predict([PNG, "none.jpg"])


# --- over HTTP --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(registered: Registered) -> Iterator[str]:
    command = (str(Path(sys.executable).parent / "mlflow"), "models", "serve", "-m", MODEL, "--env-manager", "local",
               "--host", "127.0.0.1", "--port", "PORT")  # fmt: skip
    uri = f"sqlite:///{registered.folder}/mlflow.db"
    with serving(registered.folder, *command, ready="/ping", MLFLOW_TRACKING_URI=uri, OMP_NUM_THREADS="1") as address:
        yield address


def post(address: str, body: Any, kind: str | None = "application/json") -> tuple[int, Any]:
    """Status and answer; a body that is not bytes is sent as JSON."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=120)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", "/invocations", data, {"Content-Type": kind} if kind else {})
    answer = connection.getresponse()
    said = answer.read().decode()
    connection.close()
    return answer.status, json.loads(said) if said.startswith("{") else said


@pytest.mark.slow
def test_a_picture_gets_its_caption_over_http(served: str, registered: Registered) -> None:
    status, answer = post(served, {"inputs": [text(PNG), text(JPEG)]})
    assert (status, answer["predictions"]) == (200, [expected(registered, PNG), expected(registered, JPEG)])
    status, answer = post(served, {"inputs": [text(JPEG)], "params": {"beam": 4, "n": 2}})
    assert (status, answer["predictions"]) == (200, [expected(registered, JPEG, 4, 2)])


def bomb(side: int, mode: str = "1") -> str:
    """A few kilobytes that unpack to `side` times `side` pixels."""
    return text(file(Image.new(mode, (side, side))))


@pytest.mark.slow
def test_what_cannot_be_answered_gets_4xx_and_a_reason_while_the_server_goes_on(
    served: str, registered: Registered, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(PNG)
    (tmp_path / "bare").write_bytes(PNG)
    refused: list[tuple[Any, str]] = [
        ({"inputs": []}, "there is no picture in the request"),
        ({"inputs": [""]}, "picture 1 is empty"),
        ({"inputs": ["aGVsbG8gd29ybGQ="]}, "picture 1 is in none of the formats JPEG"),
        ({"inputs": [text(PNG), text(JPEG)[:2000]]}, "picture 2 cannot be decoded"),
        ({"inputs": ["not base64!"]}, "picture 1 is not base64"),
        ({"inputs": ["\u00e9\u00e9\u00e9\u00e9"]}, "picture 1 is not base64"),
        ({"inputs": [str(secret)]}, "picture 1 is not base64"),
        ({"inputs": [str(tmp_path / "bare")]}, "picture 1 is not base64"),
        ({"inputs": [f"file://{secret}"]}, "picture 1 is not base64"),
        ({"inputs": ["http://127.0.0.1/picture.png"]}, "picture 1 is not base64"),
        ({"inputs": [17]}, "picture 1 is int: send a picture's file as base64"),
        ({"inputs": [None]}, "picture 1 is NoneType"),
        ({"inputs": [[text(PNG)]]}, "picture 1 is list"),
        ({"inputs": [{"picture": text(PNG)}]}, "picture 1 is dict"),
        ({"inputs": [bomb(20_000)]}, "more than the 178,956,970 pixels allowed"),
        ({"inputs": [bomb(9_000)]}, "picture 1 has 9,000 x 9,000 pixels, more than the 64,000,000 allowed"),
        ({"inputs": ["A" * 45_000_000]}, "picture 1 has 33,750,000 bytes, more than the 33,554,432 allowed"),
        ({"inputs": [text(PNG)] * 65}, "65 pictures in one request, at most 64 are allowed"),
        ({"inputs": [text(PNG)], "params": {"beam": 1000}}, "beam = 1000 must be between 1 and 20"),
        ({"inputs": [text(PNG)], "params": {"n": -1}}, "n = -1 must be between 1 and 20"),
        ({"inputs": [text(PNG)], "params": {"beam": "wide"}}, "Invalid parameters found"),
        ({"inputs": text(PNG)}, "Expected list, but got str"),
        ({"picture": text(PNG)}, "must be a dictionary with 'inputs' key"),
        ({}, "must be a dictionary with 'inputs' key"),
        (b"", "valid JSON"),
        (b"\xff\xd8\xff\xe0", "valid JSON"),
        (b"[1, 2]", "Received a list"),
    ]
    for body, reason in refused:
        status, answer = post(served, body)
        assert 400 <= status < 500, (body, answer)
        assert reason in answer["message"]
    assert post(served, PNG, "image/png")[0] == 415
    assert post(served, {"inputs": [text(PNG)]})[1]["predictions"] == [expected(registered, PNG)]


@pytest.mark.slow
def test_a_refusal_does_not_send_the_request_back(served: str) -> None:
    _, answer = post(served, {"inputs": ["A" * 1_000_000]})
    assert len(json.dumps(answer)) < 1000
    assert "stack_trace" not in answer
