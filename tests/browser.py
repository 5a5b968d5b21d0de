"""A real browser for tests: Chromium without a window.

`chromium` steers it over its DevTools protocol, for pages of others, whose charts are waited for with real time.
`opened` is a page in it by Playwright, for pages of ours, also in the frame of another: clicked, typed into,
looked at by axe (`barriers`), and kept as a picture (`keep`) in $CI_OUTPUT/screenshots,
or reports/screenshots where that is not set.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import ConsoleMessage, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Browser:
    """One page of a running Chromium."""

    def __init__(self, port: int) -> None:
        self.port = port

    def see(self, url: str, *wanted: str, seconds: float = 90, picture: Path | None = None) -> Any:
        """Opens `url` and returns when every JavaScript expression of `wanted` is true there, with the value of the
        last. Fails after `seconds`, with what the page says by then. `picture` gets a screenshot in either case."""
        return asyncio.run(self._see(url, wanted, seconds, picture))

    async def _see(self, url: str, wanted: tuple[str, ...], seconds: float, picture: Path | None) -> Any:
        async with aiohttp.ClientSession() as session:
            async with session.put(f"http://127.0.0.1:{self.port}/json/new?about:blank") as answer:
                page = (await answer.json(content_type=None))["webSocketDebuggerUrl"]
            async with session.ws_connect(page, max_msg_size=0) as socket:
                calls = iter(range(1, 1_000_000))

                async def call(method: str, **params: Any) -> Any:
                    number = next(calls)
                    await socket.send_str(json.dumps({"id": number, "method": method, "params": params}))
                    while (message := json.loads((await socket.receive()).data)).get("id") != number:
                        pass
                    return message["result"]

                async def value(expression: str) -> Any:
                    result = await call("Runtime.evaluate", expression=expression, returnByValue=True)
                    return result["result"].get("value")

                await call("Page.navigate", url=url)
                until, found = time.monotonic() + seconds, None
                waiting = list(wanted)
                while waiting and time.monotonic() < until:
                    if found := await value(waiting[0]):
                        waiting.pop(0)
                    else:
                        await asyncio.sleep(0.2)
                if picture:
                    shot = await call("Page.captureScreenshot")
                    picture.write_bytes(base64.b64decode(shot["data"]))
                text = "" if not waiting else await value("document.body.innerText")
                await call("Page.close")
        if waiting:
            raise AssertionError(f"{url} does not get to {waiting[0]} within {seconds} s; it says: {text}")
        return found


def executable() -> str:
    """The browser's path; the test is skipped where there is none."""
    command = next((path for name in NAMES if (path := shutil.which(name))), None)
    if command is None:
        pytest.skip("needs a browser: apt-get install chromium")
    return command


@contextmanager
def opened(
    width: int = 1280,
    height: int = 900,
    scheme: Any = "light",
    offline: bool = True,
    policy: bool = False,
    forgiven: str | None = None,
) -> Iterator[Page]:
    """An empty page, so large in pixels, `light` or `dark`; without a network unless `offline` is False. Fails at the
    end where a script of the page failed or the page wanted something from elsewhere. A page's own policy, behind which
    mistakes in escaping would hide and Playwright cannot wait for a condition, holds only if `policy` says so. What
    fails at addresses with the text `forgiven` in them is not counted."""
    path, wrong = executable(), []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme=scheme,
                offline=offline,
                bypass_csp=not policy,
            )
            page = context.new_page()
            page.set_default_timeout(60_000)
            page.on("pageerror", lambda error: wrong.append(str(error)))

            def hear(said: ConsoleMessage) -> None:
                if said.type == "error" and not (forgiven and forgiven in said.location["url"]):
                    wrong.append(said.text)

            page.on("console", hear)
            yield page
        finally:
            browser.close()
    assert wrong == [], wrong


def barriers(page: Page) -> list[str]:
    """What axe finds wrong for people who see badly or use no mouse, by WCAG 2.1 A and AA: a sentence each."""
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]})
    return [f"{each['help']}: {each['nodes'][0]['html'][:200]}" for each in found.response["violations"]]


def keep(page: Page, name: str, whole: bool = False) -> None:
    """Keeps what the page looks like now as NAME.png."""
    folder = Path(os.environ.get("CI_OUTPUT", "reports")) / "screenshots"
    page.screenshot(path=Path(__file__).resolve().parent.parent / folder / f"{name}.png", full_page=whole)


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own in `folder`; the test is skipped where there is none."""
    command = executable()
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1500,1600")
    with (folder / "chromium.log").open("w") as log:
        process = subprocess.Popen(
            [command, *options, f"--user-data-dir={folder / 'profile'}", "--remote-debugging-port=0"],
            stdout=log,
            stderr=log,
        )
    try:
        told = folder / "profile" / "DevToolsActivePort"
        until = time.monotonic() + 60
        while not (told.exists() and told.read_text()) and time.monotonic() < until and process.poll() is None:
            time.sleep(0.1)
        assert told.exists(), (folder / "chromium.log").read_text()
        yield Browser(int(told.read_text().split()[0]))
    finally:
        process.terminate()
        process.wait()
