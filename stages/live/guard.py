"""Who may ask the server: nobody from another origin, nobody under a name that is not the server's; and whoever is
refused hears why.

A page anywhere can make a browser ask 127.0.0.1, and whoever owns a domain can let it point there (DNS rebinding), so
that the browser takes the server's answers for the domain's own. Against the first the Origin is looked at, against the
second the Host: localhost, an address (which nobody can let point elsewhere), or a name that was allowed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
MOST = 128 << 20  # bytes of a refused request that are read to its end, and for how many seconds
PATIENCE = 5.0
NOTHING = "default-src 'none'; frame-ancestors 'none'"  # the policy of what is no page


class Guard:
    """Checks Host and Origin, and gives every answer the headers that keep browsers strict. A mistake of the
    application is answered too, and told on stderr.

    `policies` are the Content-Security-Policies of pages by path; `seen` hears of every answer: scope, status, seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        names: Sequence[str],
        policies: Mapping[str, str],
        seen: Callable[[Scope, int, float], None],
    ) -> None:
        self.app, self.policies, self.seen = app, policies, seen
        self.names = {"localhost", *(name.lower().strip("[]") for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = monotonic()
        headers = Headers(scope=scope)
        whole = started = False  # whether the request has come to its end, and whether its answer has begun

        async def hear() -> Message:
            nonlocal whole
            message = await receive()
            whole = whole or not message.get("more_body", False)
            return message

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                # A client that is told 100 only when its body is wanted sends none; a slow one has had its time.
                if message["status"] >= 400 and message["status"] != 408 and not whole and "expect" not in headers:
                    await to_the_end(hear)
                answered = MutableHeaders(scope=message)
                answered.update({**HEADERS, "Content-Security-Policy": self.policies.get(scope["path"], NOTHING)})
                self.seen(scope, message["status"], monotonic() - began)
                started = True
            await send(message)

        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.ours(host):
            refusal = JSONResponse({"error": f"{host[:200]!r} is not a name of this server (see --name)"}, 421)
            await refusal(scope, hear, answer)
        elif origin is not None and origin.partition("://")[2].lower() != host.lower():
            refusal = JSONResponse({"error": f"pages of {origin[:200]!r} may not ask this server"}, 403)
            await refusal(scope, hear, answer)
        else:
            try:
                await self.app(scope, hear, answer)
            except Exception:
                if started:  # the server prints it, and cuts what has begun
                    raise
                traceback.print_exc()
                refusal = JSONResponse({"error": "the server made a mistake: its log says which"}, 500)
                await refusal(scope, hear, answer)

    def ours(self, host: str) -> bool:
        """Whether a Host header, `name`, `name:port` or `[address]:port`, names this server."""
        with suppress(ValueError):
            name = urlsplit(f"//{host}").hostname or ""
            if name in self.names:
                return True
            ipaddress.ip_address(name)
            return True
        return False


async def to_the_end(hear: Receive) -> None:
    """Reads what is left of a request, so that its client hears the answer: to one that still sends, a server that has
    answered and closed is a broken connection."""
    left = MOST
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while left > 0 and (message := await hear()).get("more_body", False):
                left -= len(message.get("body", b""))
