"""The live page on a port, until Ctrl-C."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress

import uvicorn

from stages.live.app import make_app
from stages.live.models import Shelf

CONNECTIONS = 512  # at a time; beyond them uvicorn answers 503 by itself


def serve(shelf: Shelf, host: str, port: int, names: Sequence[str]) -> None:
    """Listens on `port` of `host` (0: any free one). `names` are host names under which it may be asked.

    Raises OSError where the port is taken, ArtifactError where the default captioner cannot be loaded.
    """
    with listen(host, port) as listening:
        shelf.load(shelf.default)
        config = uvicorn.Config(
            make_app(shelf, names=[host, socket.gethostname(), *names]),
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            limit_concurrency=CONNECTIONS,
            h11_max_incomplete_event_size=32 << 10,  # bytes of a request's headers
            timeout_graceful_shutdown=10,
        )
        address, port = listening.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        print(f"http://{shown}:{port} captions with {', '.join(shelf.choices)}; Ctrl-C ends it", flush=True)
        with suppress(KeyboardInterrupt):  # uvicorn raises it again, after it has answered what was asked
            uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ValueError for a port that cannot be, OSError that says what to do where the address
    is taken or not of this machine."""
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port} must be between 0 and 65535")
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(where[:2], family=family)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]  # without the address a second time
        raise OSError(error.errno, f"{reason}: choose another --port or --host", f"{host}:{port}") from error
