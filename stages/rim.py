"""The rim of every command: what a user did wrong ends in one clear message and exit status 1, not in a traceback.

Everything else, our own mistakes, keeps its traceback. `TRACEBACK=1` shows it for users' mistakes too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def run(main: Callable[[], None]) -> None:
    """Calls `main`. A ValueError or OSError (bad settings, bad input, no file, full disk) is told and ends with 1."""
    try:
        main()
    except (ValueError, OSError) as error:
        if os.environ.get("TRACEBACK"):
            raise
        if isinstance(error, OSError) and error.filename is not None:
            sys.exit(f"{error.filename}: {error.strerror}")
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
