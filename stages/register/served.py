"""The captioner as MLflow serves it: this file is the model's code (models from code, nothing is pickled).

A picture is given as base64 text (with or without `data:image/...;base64,`). In Python, where mlflow.pyfunc.load_model
gave the model to whoever owns the machine, also as bytes, a PIL picture or a path; a scoring server never opens a path.

    {"inputs": ["<base64>", ...], "params": {"beam": 4, "n": 2}}
    -> [{"caption": "a dog runs", "score": -0.61, "n_best": [{"caption": "a dog runs", "score": -0.61}, ...]}, ...]

What is wrong with a request is answered with status 400 and one sentence; the server goes on.
"""

from __future__ import annotations

import io
import json
import os
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel
from PIL import Image, ImageOps

from stages.evaluate.captioner import Captioner
from stages.fetch.pictures import PictureError, decode
from stages.fetch.sent import check_bytes, decode_sent, from_base64

MAX_PICTURES = 64  # of one request
MAX_BEAM = 20  # captions kept while decoding
TOGETHER = 4  # pictures decoded and captioned at once: what bounds a request's memory


class Refused(MlflowException):
    """A request that cannot be answered, and why. The scoring server would send the whole request back with it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, INVALID_PARAMETER_VALUE)
        self.reason = reason

    def serialize_as_json(self) -> str:
        return json.dumps({"error_code": self.error_code, "message": self.reason})


with warnings.catch_warnings():
    # MLflow warns, past every filter, that it does not check inputs hinted as Any: predict does it, with better words.
    warnings.showwarning = lambda *_, **__: None

    class ServedCaptioner(PythonModel):
        """Captions pictures; one request at a time, since torch already uses every core for it."""

        def load_context(self, context: Any) -> None:
            self.captioner = Captioner.load(context.artifacts["captioner"])
            self.turn = threading.Lock()

        def predict(
            self, context: Any, model_input: list[Any], params: dict[str, Any] | None = None
        ) -> list[dict[str, Any]]:
            """Captions for every picture. params: `beam` captions are kept while decoding (0: as the captioner
            says), of which the `n` best are returned (0: all)."""
            beam, n = _count("beam", params), _count("n", params)
            if not model_input:
                raise Refused('there is no picture in the request: {"inputs": ["<base64>"]}')
            if len(model_input) > MAX_PICTURES:
                raise Refused(f"{len(model_input)} pictures in one request, at most {MAX_PICTURES} are allowed")
            beam = max(n, beam or self.captioner.decoding.beam)
            answers = []
            for start in range(0, len(model_input), TOGETHER):
                some = model_input[start : start + TOGETHER]
                with self.turn:
                    pictures = [self._picture(each, start + i + 1) for i, each in enumerate(some)]
                    answers += [_answer(best) for best in self.captioner.caption(pictures, beam=beam, n=n or beam)]
            return answers

        def _picture(self, given: Any, number: int) -> Image.Image:
            try:
                return _open(given, self.captioner.at_least)
            except OSError as error:
                raise Refused(f"picture {number} ({given}): {error.strerror or error}") from error
            except PictureError as error:
                raise Refused(f"picture {number} {error}") from error


def _count(name: str, params: dict[str, Any] | None) -> int:
    value = int((params or {}).get(name) or 0)
    if not 0 <= value <= MAX_BEAM:
        raise Refused(f"{name} = {value} must be between 1 and {MAX_BEAM}")
    return value


def _open(given: Any, size: int) -> Image.Image:
    """What a request holds for one picture, as RGB. Raises PictureError or OSError."""
    serving = os.environ.get("_MLFLOW_IS_IN_SERVING_ENVIRONMENT")  # set by mlflow's scoring server
    if isinstance(given, Image.Image):
        if given.mode == "RGB":
            return ImageOps.exif_transpose(given)
        file = io.BytesIO()
        given.save(file, "TIFF", exif=given.getexif())  # which knows every mode, so that decode treats it like a file
        return decode(file.getvalue(), at_least=size)
    if isinstance(given, bytes):
        return decode_sent(given, size)
    if isinstance(given, Path) or (isinstance(given, str) and not serving and _is_path(given)):
        path = Path(given)
        check_bytes(path.stat().st_size)
        return decode_sent(path.read_bytes(), size)
    if isinstance(given, str):
        return decode_sent(from_base64(given), size)
    raise PictureError(f"is {type(given).__name__}: send a picture's file as base64 text")


def _is_path(text: str) -> bool:
    """A file's name has a dot before its ending, or is found; base64 has no dot."""
    return not text.startswith("data:") and ("." in text or os.path.isfile(text))  # noqa: PTH113 - Path raises if long


def _answer(best: Sequence[Any]) -> dict[str, Any]:
    captions = [{"caption": each.text, "score": float(each.score)} for each in best]
    return {**captions[0], "n_best": captions}


set_model(ServedCaptioner())
