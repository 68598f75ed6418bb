"""The steps of `driver.py` in which others are at work: threads, forks, and processes and machines
that are killed."""

from __future__ import annotations

import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from driver_doors import PeerDoor
from driver_model import NAMES, Change
from driver_steps import change_of, on_model

if TYPE_CHECKING:
    from driver import Driver


def fork(driver: Driver) -> str:
    """A forked child puts, and its parent sees it."""
    what = change_of(driver, ("put",))
    what = Change("put", what.name, what.data)
    driver.say(f"{what} by a forked child")
    began = time.time_ns()
    pid = os.fork()
    if not pid:
        status = 1
        with contextlib.suppress(BaseException):
            driver.store.puts(what.name, what.data)
            assert driver.store.gets(what.name) == what.data
            driver.store.close()
            status = 0
        os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0, "the child failed"
    on_model(driver.model, [what], began)
    return ""


def kill(driver: Driver) -> str:
    """Kill the other process while it puts; what it put is there whole, or not at all."""
    if driver.peer is None:
        driver.peer = PeerDoor(driver.scratch, driver.place.for_child())
        return "start the other process"
    choose = driver.choose
    what = change_of(driver, ("put",))
    wait = choose.choice([0, 0.001, 0.003, 0.01])
    peer, driver.peer = driver.peer, None
    began, before = time.time_ns(), driver.model.copy()
    if choose.random() < 0.4:
        driver.say(f"gc by a process that is killed {wait} s later")
        peer.tell(verb="gc", options={"repack_below": choose.choice([0.5, 0.9])})
        time.sleep(wait)
        peer.kill()
        return ""
    driver.say(f"{what} by a process that is killed {wait} s after half of it")
    path = driver.scratch / "slow"
    path.write_bytes(what.data)
    half = len(what.data) // 2
    assert peer.ask(verb="slow", name=what.name, path=str(path), at=half) == "half"
    time.sleep(wait)
    peer.kill()
    driver.settle(before, [Change("put", what.name, what.data)], began)
    return ""


def kill_machine(driver: Driver) -> str:
    """As `kill`, on the server in memory: none of its requests arrives from one on."""
    if driver.choose.random() < 0.4:
        after = driver.choose.randrange(40)
        options = {"grace_s": 0.0, "repack_below": driver.choose.choice([0.0, 0.5, 0.9])}
        driver.say(f"gc {options} by a machine that is gone after {after} requests")
        driver.die_while(lambda store: store.gc(**options), after)
        return ""
    what = change_of(driver, ("put",))
    what = Change("put", what.name, what.data)
    after = driver.choose.randrange(6)
    driver.say(f"{what} by a machine that is gone after {after} requests")
    began, before = time.time_ns(), driver.model.copy()
    driver.die_while(lambda store: store.puts(what.name, what.data), after)
    driver.settle(before, [what], began)
    return ""


def at_once(driver: Driver) -> str:
    """Several threads put, each its own names, while one collects."""
    choose = driver.choose
    names = choose.sample(NAMES, 6)
    puts = []
    for name in names:
        what = change_of(driver, ("put",))
        puts.append(Change("put", name, what.data))
    grace, below = choose.choice([0.0, 86_400.0]), choose.choice([0.0, 0.9])
    driver.say(f"at once: {puts}, gc of grace {grace} below {below}")
    began = time.time_ns()
    with ThreadPoolExecutor(4) as pool:
        collecting = pool.submit(driver.other.gc, grace_s=grace, repack_below=below)
        doing = [pool.submit(driver.store.puts, what.name, what.data) for what in puts]
        for future in [collecting, *doing]:
            future.result()
    for what in puts:
        on_model(driver.model, [what], began)
    return ""


STEPS: dict[Any, tuple[int, str]] = {
    at_once: (2, "local s3"),
    fork: (1, "local"),
    kill: (1, "local"),
    kill_machine: (2, "s3"),
}
