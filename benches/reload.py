#!/usr/bin/env python3
"""How long a connection stands still while the daemon reloads, with a bypass file of thousands of networks.

    sudo benches/reload.py [NETWORKS]

A client sends a small piece every millisecond through the gateway, in the tests' namespaces (tests/e2e/lab/netns.py);
the figures are the longest time between two arrivals at the other end and how long the reload took, the median of
five rounds. "nothing" is as long a time without a reload: what the machine itself does to it. TOH_BIN says
which binary is measured, TOH_PATH (relay, forward) on which path.
"""

import multiprocessing
import os
import pathlib
import select
import signal
import statistics
import sys
import tempfile
import time

PROJECT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "tests" / "e2e"))

from lab.faultproxy import FaultProxy  # noqa: E402
from lab.gateway import PATH, Gateway, upstream  # noqa: E402
from lab.netns import PROXY, SERVER, Network, finish_connect  # noqa: E402

ROUNDS = int(os.environ.get("ROUNDS", 5))
PERIOD = 0.001
# Seconds of a round without a reload, and before each.
IDLE = 0.5
SETTLE = 0.1


def main():
    networks = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    one, other = (lines(first, networks) for first in (11, 101))
    few = one[:-10] + other[-10:]
    # What the file holds before and after.
    changes = {"nothing": None, "the same file": (one, one), "10 networks": (one, few), "all networks": (one, other),
               "to none": (one, []), "from none": ([], one)}
    print(f"{networks:,} networks, {PATH} path\n")
    print("| what changes | longest gap, ms | reload, ms |")
    print("|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="toh-") as directory:
        os.chmod(directory, 0o755)
        lab = Lab(pathlib.Path(directory))
        try:
            for name, change in changes.items():
                rounds = [lab.measure(change) for _ in range(ROUNDS)]
                gap, took = (statistics.median(column) * 1000 for column in zip(*rounds))
                print(f"| {name} | {gap:.1f} | {took:.0f} |", flush=True)
        finally:
            lab.close()


def lines(first, count):
    """So many networks, one a line: FIRST.0.0.0/24 and what follows."""
    return [f"{first + number // 65536}.{number // 256 % 256}.{number % 256}.0/24\n" for number in range(count)]


class Lab:
    """A gateway with a bypass file, and a connection through it."""

    def __init__(self, directory):
        self.file = directory / "networks"
        self.network = Network()
        try:
            self.file.write_text("")
            proxy = FaultProxy(self.network.internet, PROXY)
            options = ("--path", PATH, "--auto-route", "1", "--upstream", upstream(), "--bypass-file", self.file)
            self.gateway = Gateway(self.network.router, directory, options).start()
            self.near = self.network.client.begin_connect(SERVER, 80)
            self.far = proxy.open().sock
            assert finish_connect(self.near) == 0
        except BaseException:
            self.network.close()
            raise

    def close(self):
        self.gateway.stop()
        self.network.close()

    def measure(self, change):
        """The longest gap while the file changes from one list to another, and how long the reload takes, in seconds."""
        if change:
            self.reload(change[0])
            self.file.write_text("".join(change[1]))
        ours, theirs = multiprocessing.Pipe()
        sender = multiprocessing.Process(target=send, args=(self.near, self.far, theirs))
        sender.start()
        ours.recv()  # it is under way
        if change:
            took = self.reload()
        else:
            time.sleep(IDLE)
            took = 0
        ours.send(None)
        gap = ours.recv()
        sender.join()
        return gap, took

    def reload(self, networks=None):
        """Writes the file, or leaves it, has the daemon read it; returns how long that took."""
        if networks is not None:
            self.file.write_text("".join(networks))
        offset = len(self.gateway.log())
        begun = time.monotonic()
        self.gateway.signal(signal.SIGHUP)
        self.gateway.wait_log("INFO.*reload: ", offset, 120)
        return time.monotonic() - begun


def send(near, far, control):
    """Sends pieces until it is told to end; tells when it is under way, and then the longest time between two arrivals."""
    near.setblocking(False)
    due = last = time.monotonic()
    settled, longest = due + SETTLE, None
    while not control.poll():
        if time.monotonic() >= due:
            near.send(b"x" * 16)
            due += PERIOD
        if select.select([far], [], [], max(due - time.monotonic(), 0))[0]:
            far.recv(65536)
            now = time.monotonic()
            if longest is not None:
                longest = max(longest, now - last)
            last = now
            if longest is None and now > settled:
                longest = 0
                control.send(None)
    control.send(longest)


if __name__ == "__main__":
    main()
