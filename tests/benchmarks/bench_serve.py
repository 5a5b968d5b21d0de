"""The live page's API under load: 32 clients on loopback for a minute, each asking again as soon as it has an answer.

    python tests/benchmarks/bench_serve.py ARCHIVE.zip [SECONDS [CLIENTS [MODEL]]]

Prints pictures a second, times of answers, how many pictures were captioned together, and the server's memory at the
start, in the middle and at the end. Any answer but 200 and 429 is an error, and so is a caption that differs from the
one that the picture got when it was asked for alone. Clients, their pictures and the server share the processor.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import aiohttp
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from stages.fetch.pictures import Pictures

CAPTION = Path(sys.executable).with_name("caption")
KINDS = {"Content-Type": "image/jpeg"}


async def metrics(session: aiohttp.ClientSession) -> dict[str, float]:
    async with session.get("metrics") as answer:
        families = text_string_to_metric_families(await answer.text())
        return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


async def load(address: str, pictures: list[bytes], seconds: float, clients: int) -> None:
    patience = aiohttp.ClientTimeout(120)
    async with aiohttp.ClientSession(address, timeout=patience, connector=aiohttp.TCPConnector(limit=0)) as session:
        alone = []
        for picture in pictures:
            async with session.post("api/caption", data=picture, headers=KINDS) as answer:
                alone.append((await answer.json())["caption"])
        before, times, statuses, memory = await metrics(session), [], [], []
        until = time.monotonic() + seconds

        async def client(number: int) -> None:
            place = number
            while time.monotonic() < until:
                began = time.monotonic()
                async with session.post("api/caption", data=pictures[place], headers=KINDS) as answer:
                    said = await answer.json()
                    statuses.append(answer.status)
                    if answer.status == 429:
                        await asyncio.sleep(float(answer.headers["Retry-After"]))
                        continue
                    if answer.status != 200:
                        raise AssertionError(f"{answer.status}: {said}")
                times.append(time.monotonic() - began)
                if said["caption"] != alone[place]:
                    raise AssertionError(f"{said['caption']!r}, alone {alone[place]!r}")
                place = (place + clients) % len(pictures)

        async def watch() -> None:
            for _ in range(11):
                memory.append((await metrics(session))["process_resident_memory_bytes"] / 2**20)
                await asyncio.sleep(max(0, min(seconds / 10, until - time.monotonic())))

        await asyncio.gather(watch(), *(client(number) for number in range(clients)))
        after = await metrics(session)
    p50, p95, p99 = np.percentile(times, (50, 95, 99))
    batches = after["captioner_batch_pictures_count"] - before["captioner_batch_pictures_count"]
    refused = statuses.count(429)
    print(f"{clients} clients, {seconds:.0f} s: {len(times):,} pictures, {len(times) / seconds:.1f} a second; "
          f"{refused} of {len(statuses)} answers were 429, none another error")  # fmt: skip
    print(f"answers: half within {p50:.2f} s, 95% within {p95:.2f} s, 99% within {p99:.2f} s; "
          f"{len(times) / batches:.1f} pictures together")  # fmt: skip
    print("resident memory, MiB: " + " ".join(f"{each:.0f}" for each in memory))


def main() -> None:
    archive, seconds, clients, *model = [*sys.argv[1:], "60", "32"][:3] + sys.argv[4:5]
    opened = Pictures(archive)
    pictures = [opened.read(name) for name in islice(opened, 64)]
    command = [CAPTION, "--serve", "--port", "0", *(("--model", model[0]) if model else ())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[0]
            asyncio.run(load(f"{address}/", pictures, float(seconds), int(clients)))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
