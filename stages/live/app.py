"""The live page and its API as a FastAPI application, made from a shelf of captioners.

    GET  /                       the page          GET /docs, /openapi.json     the API, for people and for programs
    POST /api/caption            a picture in, its captions out
    GET  /api/models             what may be chosen; /api/models/{name}/card    what is known of one
    GET  /health, /metrics       for whoever watches over it (Prometheus)

Safe by default: a client sends a picture's bytes and names a model of the list; nothing else of the machine can be
reached. Bytes, pixels and scans are checked before decoding (fetch/sent.py); two pictures are decoded at a time; so
many requests are let in, the others get 429; each is answered within `patience`. Pages of other origins cannot ask, nor
can names that only pretend to be this machine (guard.py).

Why FastAPI with one small page and not Gradio, which ML people know better: FastAPI and uvicorn are here already,
through MLflow, where Gradio brings three times as many packages, eighteen times the bytes, starts eight times later,
and names gradio.app and GitHub in its page (tests/benchmarks/bench_frameworks.py); bounds on bytes, pixels and the
queue, and batches, would have to be put into its server, which is FastAPI.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
import re
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from markdown_it import MarkdownIt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from torch import Tensor

from stages import page
from stages.fetch.pictures import PictureError
from stages.fetch.sent import MAX_BYTES, MAX_PIXELS, decode_sent, from_base64
from stages.live.desk import Answer, Desk, Wish
from stages.live.guard import Guard
from stages.live.metrics import Metrics
from stages.live.models import Choice, Shelf

MAX_BEAM = 20  # captions kept while decoding, and captions of one picture
WORDS = 64 << 10  # bytes of a request beside its picture: JSON's other fields, multipart's headers
HERE = Path(__file__)


# --- what goes in and comes out ---------------------------------------------------------------------------------------


class Options(BaseModel):
    """How to caption."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, max_length=200, description="a name from /api/models; unset: the first of them")
    beam: int | None = Field(None, ge=1, le=MAX_BEAM, description="captions kept while decoding; unset: the model's")
    n: int = Field(1, ge=1, le=MAX_BEAM, description="captions to return, best first")
    top_p: float = Field(0, ge=0, le=1, description="above 0, words are drawn from the likeliest that hold this share")
    temperature: float = Field(1, gt=0, le=100, description="with top_p: above 1 more daring, below less")
    seed: int = Field(1, ge=0, lt=2**32, description="with top_p: another one draws others")
    attention: bool = Field(False, description="also return where the model looked for each word")


class Sent(Options):
    """A picture as JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)

    picture: str = Field(description="the picture's file as base64, with or without `data:image/...;base64,`")


class Said(BaseModel):
    """One caption."""

    caption: str
    score: float = Field(description="log-probability / (words and <end>) ** length_penalty: larger is surer")
    attention: list[list[float]] | None = Field(
        description="for each word of the caption the weight of every region, row by row, of `grid` x `grid`; sums to 1"
    )


class Captions(BaseModel):
    """What is said of a picture."""

    caption: str = Field(description="the best caption")
    captions: list[Said] = Field(description="the n best, best first")
    model: str
    weights_sha256: str = Field(description="of the model: names it wherever it is")
    box: tuple[float, float, float, float] = Field(
        description="what the model sees of it: left, top, right, bottom, as shares of its sides; the grid lies there"
    )
    grid: int | None = Field(description="regions a side; null where there is no attention")
    beam: int
    seconds: float = Field(description="from the whole request to its captions")
    waited: float = Field(description="of these, seconds in the queue")
    together: int = Field(description="pictures that were captioned in one batch with it")


class Offered(BaseModel):
    """A captioner that may be chosen."""

    name: str
    version: str = Field(description="its file, or its version in the registry")
    weights_sha256: str
    encoder: str
    decoder: str
    words: int
    beam: int = Field(description="its own, when none is asked for")
    attention: bool = Field(description="whether it can say where it looked")
    card: bool = Field(description="whether there is a card of it")


class Offers(BaseModel):
    """All captioners, the first being the default, and the server's limits."""

    models: list[Offered]
    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS
    max_beam: int = MAX_BEAM


class Card(BaseModel):
    """What is known of a model."""

    markdown: str
    html: str


class Health(BaseModel):
    """How the server is."""

    status: str
    waiting: int = Field(description="pictures in the queue")


class Refusal(BaseModel):
    """Why there is no answer, in one sentence."""

    error: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "no picture that can be read, or a broken request"},
    403: {"model": Refusal, "description": "asked by a page of another origin"},
    404: {"model": Refusal, "description": "no such model"},
    408: {"model": Refusal, "description": "the request took too long to arrive"},
    413: {"model": Refusal, "description": "too many bytes"},
    415: {"model": Refusal, "description": "neither a picture, JSON nor a form"},
    421: {"model": Refusal, "description": "asked under a name that is not this server's"},
    422: {"model": Refusal, "description": "a parameter is unknown or out of range"},
    429: {
        "model": Refusal,
        "description": "too many requests wait",
        "headers": {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}},
    },
    500: {"model": Refusal, "description": "a mistake of the server's own, which its log tells"},
    503: {"model": Refusal, "description": "no captions in time, or the server is closing"},
}
BINARY = {"schema": {"type": "string", "format": "binary"}}
FORM = {
    "type": "object",
    "required": ["picture"],
    "properties": {"picture": {"type": "string", "format": "binary", "description": "the picture's file"}},
}


# --- the application --------------------------------------------------------------------------------------------------


def make_app(
    shelf: Shelf, *, names: Sequence[str] = (), waiting: int = 64, together: int = 8, patience: float = 30
) -> FastAPI:
    """The application. `names` are host names beside localhost under which it may be asked; `waiting` requests are let
    in at a time, `together` pictures captioned at a time; no request lasts longer than `patience` seconds."""
    metrics = Metrics()
    desk = Desk(shelf.load, together, metrics.batch)
    metrics.watch(lambda: desk.waiting)
    decoders = ThreadPoolExecutor(2, "decoder")  # so few bound the memory: fetch/sent.py says what a picture takes
    inside = 0

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        decoders.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(desk.close)

    app = FastAPI(
        title="Captioner", version=version("captioner"), description=API, docs_url=None, redoc_url=None, lifespan=life
    )
    written = write_page("page.html"), write_page("docs.html")
    app.add_middleware(
        Guard, names=names, policies={"/": policy(written[0]), "/docs": policy(written[1])}, seen=metrics.request
    )

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def live() -> str:
        return written[0]

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> str:
        return written[1]

    @app.get("/health", tags=["watch"], responses={503: {"model": Refusal, "description": "it cannot caption"}})
    async def health() -> Health:
        """Whether the server can caption."""
        if not desk.alive:
            raise HTTPException(503, "the captioner's thread has ended: restart the server")
        return Health(status="ok", waiting=desk.waiting)

    @app.get("/metrics", tags=["watch"], responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
    async def prometheus() -> Response:
        """Counts, times and memory, in Prometheus' text format."""
        return metrics.response()

    @app.get("/api/models", tags=["caption"])
    async def models() -> Offers:
        """The models to choose from."""
        return Offers(models=[offer(name, choice) for name, choice in shelf.choices.items()])

    @app.get("/api/models/{name:path}/card", tags=["caption"], responses={404: REFUSALS[404]})
    async def card(name: str) -> Card:
        """The model's card: what it is, where it comes from, how good it is and what it is not for."""
        if name not in shelf.choices or not (text := shelf.choices[name].card):
            raise HTTPException(404, f"there is no card of {name!r}")
        html = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
        return Card(
            markdown=text, html=re.sub(r' style="text-align:(\w+)"', r' class="\1"', html)
        )  # as the policy asks

    @app.post(
        "/api/caption",
        tags=["caption"],
        responses=REFUSALS,
        openapi_extra={
            "requestBody": {
                "required": True,
                "description": "The picture's file: as it is, as base64 in JSON, or in a form.",
                "content": {
                    "image/*": BINARY,
                    "application/octet-stream": BINARY,
                    "application/json": {"schema": {"$ref": "#/components/schemas/Sent"}},
                    "multipart/form-data": {"schema": FORM},
                },
            }
        },
    )
    async def caption(request: Request, options: Annotated[Options, Query()]) -> Captions:
        """Captions one picture. Parameters stand in the query; in JSON they may also stand beside the picture."""
        nonlocal inside
        if inside >= waiting:
            seconds = math.ceil(1 + desk.waiting * metrics.pace)
            raise HTTPException(429, f"{inside} requests wait: try again in {seconds} s", {"Retry-After": str(seconds)})
        inside += 1
        try:
            async with asyncio.timeout(patience):
                return await answer(request, options)
        except TimeoutError:
            raise HTTPException(503, f"no captions within {patience:g} s: try again", {"Retry-After": "5"}) from None
        finally:
            inside -= 1

    async def answer(request: Request, options: Options) -> Captions:
        try:
            async with asyncio.timeout(patience / 2):
                data, options = await read(request, options)
        except TimeoutError:
            raise HTTPException(408, f"the request took more than {patience / 2:g} s to arrive") from None
        began = asyncio.get_running_loop().time()
        name = shelf.default if options.model is None else options.model
        if name not in shelf.choices:
            raise HTTPException(404, f"there is no model {name!r}: /api/models lists them")
        choice = shelf.choices[name]
        try:
            with metrics.decoding.time():  # a thread that is not waited for any more still counts as one of the two
                found = asyncio.get_running_loop().run_in_executor(decoders, prepare, data, choice)
                pixels, box = await found
        except PictureError as error:
            raise HTTPException(400, f"the picture {error}") from error
        del data  # up to 32 MB in each of the requests that wait
        drawn = options.top_p > 0  # then a beam is captions drawn, one unless more are asked for
        beam = max(options.n, options.beam or (1 if drawn else choice.metadata["decoding"]["beam"]))
        chance: dict[str, Any] = {}
        if drawn:
            chance = {"top_p": options.top_p, "temperature": options.temperature, "seed": options.seed}
        wish = Wish(name, beam, options.n, options.attention and choice.attends, **chance)
        done = await granted(request, desk, pixels, wish)
        seconds = asyncio.get_running_loop().time() - began
        return report(choice, wish, done, seconds, box)

    @app.exception_handler(StarletteHTTPException)
    async def refuse(request: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def explain(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": sentence(error.errors())}, 422)

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            schema = FastAPI.openapi(app)
            parts = Sent.model_json_schema(ref_template="#/components/schemas/{model}")
            schema["components"]["schemas"]["Sent"] = parts
            for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which `explain` replaces
                schema["components"]["schemas"].pop(name, None)
            for operations in schema["paths"].values():
                for operation in operations.values():
                    if "422" in operation["responses"] and "requestBody" not in operation:
                        del operation["responses"]["422"]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


API = """
Captions a picture in one English sentence.

    curl -H 'Content-Type: image/jpeg' --data-binary @photo.jpg 'http://127.0.0.1:8347/api/caption?n=3'
    curl -F picture=@photo.jpg http://127.0.0.1:8347/api/caption
    curl --json '{"picture": "<base64>", "n": 3}' http://127.0.0.1:8347/api/caption

Every refusal is `{"error": "one sentence"}`. Where too many requests wait, the answer is 429 with Retry-After.
"""


# --- from a request to captions ---------------------------------------------------------------------------------------


async def read(request: Request, options: Options) -> tuple[bytes, Options]:
    """The picture's bytes and the options, from whichever of three kinds of request. Raises HTTPException."""
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if kind == "application/json":
        body = await read_body(request, MAX_BYTES * 4 // 3 + WORDS)
        try:
            sent = Sent.model_validate_json(body)
            more = sent.model_dump(exclude={"picture"}, exclude_unset=True)
            return from_base64(sent.picture), options.model_copy(update=more)
        except ValidationError as error:
            raise HTTPException(422, sentence(error.errors(include_input=False, include_url=False))) from error
        except PictureError as error:
            raise HTTPException(400, f"the picture {error}") from error
    if kind == "multipart/form-data":
        return await read_form(request, await read_body(request, MAX_BYTES + WORDS)), options
    if kind.startswith("image/") or kind == "application/octet-stream":
        return await read_body(request, MAX_BYTES), options
    raise HTTPException(415, f"content type {kind[:100]!r}: send the picture's file as image/*, a form, or JSON")


async def read_body(request: Request, limit: int) -> bytes:
    """At most `limit` bytes. Raises HTTPException 413 beyond it."""
    body = bytearray()
    try:
        async for piece in request.stream():
            if len(body) + len(piece) > limit:
                raise HTTPException(413, f"more than the {limit:,} bytes allowed")
            body += piece
    except ClientDisconnect:
        raise HTTPException(400, "the request was cut short") from None
    return bytes(body)


async def read_form(request: Request, body: bytes) -> bytes:
    """The one picture of a form. Its file name is not looked at. Raises HTTPException."""

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    if not body.rstrip().endswith(b"--"):  # the parser would take what came so far
        raise HTTPException(400, "the form is cut: its last boundary is missing")
    parser = MultiPartParser(request.headers, pieces(), max_files=1, max_fields=0)  # type: ignore[arg-type]
    parser.spool_max_size = MAX_BYTES + WORDS  # in memory: it is there already
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, f"the form is broken: {error.message}") from error
    picture = form.get("picture")
    if not isinstance(picture, UploadFile):
        raise HTTPException(422, "the form has no file `picture`")
    data = await picture.read()
    await form.close()
    return data


Box = tuple[float, float, float, float]


def prepare(data: bytes, choice: Choice) -> tuple[Tensor, Box]:
    """A picture's file -> what the model sees of it (3, S, S) uint8, and which part that is. Raises PictureError."""
    picture = decode_sent(data, choice.preprocessing.size)
    return choice.preprocessing(picture), choice.box(*picture.size)


async def granted(request: Request, desk: Desk, pixels: Tensor, wish: Wish) -> Answer:
    """The desk's answer. A client that has gone, or the end of patience, takes the order back."""
    try:
        order = desk.ask(pixels, wish)
    except RuntimeError:
        raise HTTPException(503, "the server is closing") from None
    waiting = asyncio.wrap_future(order)
    gone = asyncio.ensure_future(request.receive())  # after the body nothing comes but http.disconnect
    both: set[asyncio.Future[Any]] = {waiting, gone}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise HTTPException(400, "the client has gone")
        if waiting.cancelled():
            raise HTTPException(503, "the server is closing")
        if error := waiting.exception():
            status = 503 if isinstance(error, ValueError) else 500
            raise HTTPException(status, f"the model {wish.model} cannot be used: the server's log says why") from error
        return waiting.result()
    finally:
        waiting.cancel()
        gone.cancel()


def report(choice: Choice, wish: Wish, done: Answer, seconds: float, box: Box) -> Captions:
    """What the client gets."""
    looked = [each.attention for each in done.captions]
    said = [
        Said(
            caption=each.text,
            score=round(each.score, 4),
            attention=[[round(weight, 4) for weight in row] for row in seen.tolist()] if seen is not None else None,
        )
        for each, seen in zip(done.captions, looked, strict=True)
    ]
    return Captions(
        caption=said[0].caption,
        captions=said,
        model=wish.model,
        weights_sha256=choice.metadata["weights_sha256"],
        box=box,
        grid=math.isqrt(looked[0].shape[1]) if looked[0] is not None else None,
        beam=wish.beam,
        seconds=round(seconds, 4),
        waited=round(done.waited, 4),
        together=done.together,
    )


def offer(name: str, choice: Choice) -> Offered:
    """A choice, as clients see it."""
    told = choice.metadata
    return Offered(
        name=name,
        version=choice.version,
        weights_sha256=told["weights_sha256"],
        encoder=told["encoder"]["encoder"],
        decoder=told["shape"]["decoder"],
        words=len(told["vocabulary"]),
        beam=told["decoding"]["beam"],
        attention=choice.attends,
        card=bool(choice.card),
    )


def sentence(errors: Sequence[Any]) -> str:
    """pydantic's errors in one line: `beam: Input should be less than or equal to 20`; not what was sent."""
    places = (".".join(str(part) for part in each["loc"] if part != "query") or "JSON" for each in errors[:5])
    return "; ".join(f"{place[:100]}: {each['msg']}" for place, each in zip(places, errors, strict=False))


# --- pages ------------------------------------------------------------------------------------------------------------


def write_page(name: str) -> str:
    """A page of this folder with the look that all pages share."""
    return HERE.with_name(name).read_text(encoding="utf-8").replace("/* the look of all pages */", page.css())


def policy(html: str) -> str:
    """What a page may load: its own style and script, known by their hashes, and this server's API."""

    def digest(tag: str) -> str:
        inner = html.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        return base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()

    return (
        f"default-src 'none'; script-src 'sha256-{digest('script')}'; style-src 'sha256-{digest('style')}'; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
