"""The downloader beside curl: the same file, from the same server on this machine, in turns.

    python tests/benchmarks/bench_download.py [MEGABYTES [ROUNDS]]
    chrt -f 1 python tests/benchmarks/bench_download.py 1000 3          where others work on the machine meanwhile

curl only writes the file; what it takes to know that the file is right is shown as `curl, then md5sum`. Ours writes and
verifies. Times are wall clock, the best of the rounds, since other work on the machine only ever adds. Processor time
tells more where no core is free: ours receives and hashes side by side, which takes two.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from stages.fetch.download import download

MIRROR = Path(__file__).resolve().parents[1] / "mirror.py"


def main() -> None:
    megabytes, rounds = int((sys.argv[1:] or ["1000"])[0]), int((sys.argv[2:] or ["7"])[0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        served, target = folder / "file.zip", folder / "target" / "file.zip"
        block = os.urandom(1_000_000)
        with served.open("wb") as file:
            for number in range(megabytes):
                file.write(number.to_bytes(8, "little") + block[8:])
        with served.open("rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
        # A process of its own, so that it shares no interpreter with what is measured.
        command = [sys.executable, str(MIRROR), "0", str(folder)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        url = f"{server.stdout.readline().split()[1]}/file.zip"
        curl = ["curl", "--silent", "--fail", "--output", str(target), url]
        kinds: dict[str, Callable[[], object]] = {
            "curl": lambda: subprocess.run(curl, check=True),
            "curl, then md5sum": lambda: (
                subprocess.run(curl, check=True),
                subprocess.run(["md5sum", str(target)], check=True, stdout=subprocess.DEVNULL),
            ),
            **{
                f"download, connections: {n}": lambda n=n: download(url, target, md5, megabytes * 10**6, connections=n)
                for n in (1, 4)
            },
        }
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        busy: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, run in kinds.items():
                target.parent.mkdir(exist_ok=True)
                for path in target.parent.iterdir():
                    path.unlink()
                os.sync()  # nobody pays for what another wrote
                began, used = time.perf_counter(), sum(os.times()[:4])
                run()
                times[kind].append(time.perf_counter() - began)
                busy[kind].append(sum(os.times()[:4]) - used)
        server.terminate()
        server.communicate()
        print(f"{megabytes:,} MB, best of {rounds} rounds, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
        for kind, seconds in times.items():
            print(
                f"{kind:26}{megabytes / min(seconds):7.0f} MB/s {min(times['curl']) / min(seconds):6.2f} of curl "
                f"{min(busy[kind]) / megabytes * 1000:6.2f} s of processor a GB"
            )


if __name__ == "__main__":
    main()
