"""Several things at once, in threads."""

from __future__ import annotations

import faulthandler
import threading
from collections.abc import Callable
from typing import Any

WAIT_S = 60.0  # until a thread counts as hanging


def in_threads(*tasks: Callable[[], Any]) -> None:
    """Run them at once, each in a thread that must come to its end; the first error of any of them
    is raised."""
    errors: list[BaseException] = []

    def run(task: Callable[[], Any]) -> None:
        try:
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,), daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
        if thread.is_alive():
            faulthandler.dump_traceback()
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
