"""Several things at once, in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable


def in_threads(*tasks: Callable[[], None]) -> None:
    """Run them at once; the first error of any of them is raised."""
    errors: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,), daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
