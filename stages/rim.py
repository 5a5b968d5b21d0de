"""The rim of every command: what a user did wrong ends in one clear message and exit status 1, not in a traceback.

Everything else, our own mistakes, keeps its traceback. `TRACEBACK=1` shows it for users' mistakes too. A command's help
is its module's docstring.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
from collections.abc import Callable

MISTAKES = (ValueError, OSError)  # bad settings, bad input, no file, full disk


def run(main: Callable[[], None]) -> None:
    """Calls `main`. A user's mistake is told and ends with exit status 1."""
    try:
        main()
    except MISTAKES as error:
        if isinstance(error, BrokenPipeError) and deserted():  # whoever reads has read enough, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left to be written at exit
            sys.exit(128 + signal.SIGPIPE)
        if os.environ.get("TRACEBACK"):
            raise
        sys.exit(sentence(error))
    except KeyboardInterrupt:
        sys.exit(130)


def deserted() -> bool:
    """Whether nobody reads what is printed any longer."""
    poll = select.poll()
    poll.register(sys.stdout, select.POLLOUT)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def stage(name: str, doc: str | None, main: Callable[[], None]) -> None:
    """Runs a stage's `main`. Its command line has a help, and nothing to be set: params.yaml says everything."""
    parser(f"python -m stages.{name}", doc).parse_args()
    run(main)


def sentence(error: Exception) -> str:
    """What a user's mistake is told as."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def parser(command: str, doc: str | None) -> argparse.ArgumentParser:
    """A command line without options yet. Of its module's docstring the first line stands above them in the help, the
    rest below, as it stands."""
    first, _, rest = (doc or "").partition("\n")
    return argparse.ArgumentParser(
        command, description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
