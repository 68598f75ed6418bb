"""What a node costs beyond its process, and stores that many runs used."""

from __future__ import annotations

import subprocess
import time

import pytest
from pipelines import Pipelines

import castore
import conducto as co
from conducto import context

NODES = 500
OVERHEAD_S_MAX = 0.015


def test_500_nodes_cost_little_more_than_their_processes(pipelines: Pipelines) -> None:
    root = co.Parallel()
    for number in range(NODES):
        root[f"n{number}"] = co.Exec("true")
    overheads = []
    for _ in range(3):  # others may be busy meanwhile
        began = time.monotonic()
        for _ in range(NODES):
            subprocess.run(["/bin/bash", "-c", "true"], stdin=subprocess.DEVNULL, check=True)
        bare_s, began = time.monotonic() - began, time.monotonic()
        done = pipelines.run(_again(root), parallel=2)
        overheads.append((time.monotonic() - began - bare_s) / NODES)
        assert done.out.splitlines()[-1].endswith(f": {NODES} done")
        if overheads[-1] <= OVERHEAD_S_MAX:
            break
    assert min(overheads) <= OVERHEAD_S_MAX, overheads
    with castore.open(context.store_url()) as store:
        assert store.check(read_data=True).exit_code == 0
        assert len(list(store.names())) >= NODES


def _again(root: co.Node) -> co.Node:
    from conducto.nodes.serialization import dumps, loads

    return loads(dumps(root))


def test_nodes_that_print_at_once_are_recorded_whole(pipelines: Pipelines) -> None:
    """Pieces of many logs, some of them written several times."""
    root = co.Parallel()
    for number in range(8):
        root[f"n{number}"] = co.Exec(
            f"for i in $(seq 40); do yes {number}$i | head -c 40000; sleep 0.02; done"
        )
    done = pipelines.run(root, parallel=8)
    assert done.code == 0
    for number in range(8):
        log = pipelines.log(done.id, f"/n{number}")
        assert len(log) == 40 * 40000
        want = b"".join((f"{number}{i}\n" * 20000).encode()[:40000] for i in range(1, 41))
        assert log == want


LIMITED = """
import resource, runpy, sys
soft, hard = int(sys.argv[1]), sys.argv[2]
hard = int(hard) if hard else resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
sys.argv = ["pipeline.py", "--run", "-j40"]
runpy.run_path("pipeline.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("limits", "at_once", "said"),
    [
        (("80", ""), 40, ""),
        (
            ("80", "150"),
            7,
            "conducto: 7 commands run at once, and not 40: the system lets a process have no more "
            "open files (ulimit -n)\n",
        ),
    ],
)
def test_commands_at_once_do_not_fail_for_want_of_descriptors(
    pipelines: Pipelines, limits: tuple[str, str], at_once: int, said: str
) -> None:
    """As many as are to run at once wait for each other."""
    pipelines.write("limited.py", f"# import conducto\n{LIMITED}")
    pipelines.write(
        "pipeline.py",
        f"""
        def build() -> co.Parallel:
            root = co.Parallel(max_time=100)
            for number in range(40):
                root[f"n{{number}}"] = co.Exec(
                    f"touch began-{{number}}; until [ -e began-{at_once - 1} ]; do sleep 0.1; done"
                )
            return root
        """,
    )
    done = pipelines.python("limited.py", *limits)
    assert (done.code, done.err) == (0, said), done
    assert done.out.splitlines()[-1].endswith(": 40 done")
