"""The tie between the process of a sweep's job and the one that runs the sweep."""

from __future__ import annotations

import os
import signal
import threading

PARENT_VARIABLE = "TRIPTYCH_SWEEP"  # set in the processes of jobs


def end_with_parent() -> None:
    """In a job's process: save and end, as on SIGTERM, when the process that runs the sweep is gone."""
    if PARENT_VARIABLE not in os.environ or int(os.environ.get("LOCAL_RANK", "0")) > 0:
        return

    def watch() -> None:
        while os.read(0, 1024):  # nothing is ever written; it ends when the other end is closed
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
