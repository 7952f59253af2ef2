#!/usr/bin/env python3
"""See scripts/soak. Uses what the tests have: a network of namespaces, a client, a proxy, a gateway.

    soak.py PATH SECONDS
"""

import contextlib
import json
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time

from lab import netns
from lab.configured import Configured
from lab.dnsservers import PORT
from lab.gateway import TUN, Gateway, binary
from lab.netns import PROXY, SERVER
from lab.wait import until

HERE = pathlib.Path(__file__).resolve().parent
# Control groups of version 1, where a process waits for memory if the kernel is told not to end it, and a limit goes down
# by so many bytes a second.
CGROUP, OOM, STEP = pathlib.Path("/sys/fs/cgroup/memory"), "memory.oom_control", 64 << 10
# Connections a second, idle clients, names in all and a second.
RATE, IDLE, NAMES, ASKED = 50, 100, 2000, 20
# Seconds that each fault gets in its turn, and after which nothing should grow any more: conntrack keeps what has ended for
# 120.
TURN, WARM_UP = 10, 200
# What memory may grow by from then on, in KiB, and how many entries conntrack may have: three a relayed connection.
MEMORY, ENTRIES = 256, 3 * (RATE * 150 + IDLE)


class Soak:
    def __init__(self, path, seconds, directory):
        self.seconds, self.directory = seconds, directory
        self.network = netns.Network()
        self.client, self.router = self.network.client, self.network.router
        self.disk = directory / "disk"
        self.disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "soak", self.disk], check=True)
        self.proxy = self.network.internet.popen(sys.executable, HERE / "lab/load.py", "proxy", PROXY, "3128")
        self.lines = "\n".join((f"option path {path}", "option dns fakeip", f"option fakeip_file {self.disk}/names",
                                "option log_level info", "option drain_timeout 1"))
        self.group, prefix = CGROUP / f"toh-soak-{os.getpid()}", ()
        if CGROUP.exists():
            self.group.mkdir()
            (self.group / OOM).write_text("1")
            prefix = ("sh", "-c", f'echo $$ >{self.group}/cgroup.procs; exec "$@"', "sh")
            # The group is charged for a file that it is the first to have.
            copy = directory / "tcp-over-http"
            subprocess.run([*prefix, "cp", binary(), copy], check=True)
            os.environ["TOH_BIN"] = str(copy)
        else:
            print(f"no {CGROUP}: there is always enough memory")
        make = lambda *options, **_: Gateway(self.router, directory, options, prefix=prefix).start()
        self.configured, self.is_changing = Configured(make, directory).write(self.lines), True
        self.daemon = self.configured.start()
        self.load, self.loads, self.names, self.idle, self.limit, self.was_read = None, [], 0, [], None, 0

    def run(self):
        until(lambda: self.client.connect_errno(SERVER, 443) == 0, "the proxy serves")
        self.idle = [self.client.connect(SERVER, 443) for _ in range(IDLE)]
        faults = (self.quiet, self.tiny_segments, self.full_disk, self.few_files, self.little_memory)
        begun, turns, base, round_ends = time.monotonic(), 0, None, 0
        while base is None or time.monotonic() - begun < max(self.seconds, WARM_UP + 2 * TURN * len(faults)):
            fault = faults[turns % len(faults)]
            end = time.monotonic() + TURN
            with fault():
                while time.monotonic() < end:
                    self.busy()
            turns += 1
            figures = self.figures()
            self.tell(begun, fault.__name__, figures)
            if base is None and time.monotonic() - begun >= WARM_UP:
                base, round_ends = figures, turns + len(faults)
            elif base and turns <= round_ends:
                # A full disk or little memory changes what is resident for long: the most of a whole round.
                base["memory"] = max(base["memory"], figures["memory"])
        self.load.wait()
        for sock in self.idle:
            sock.sendall(b"still here")
            assert sock.recv(100) == b"still here", "an idle client has lost its connection"
        self.daemon.wait_log("listening on port")
        until(lambda: self.figures()["files"] <= base["files"], "descriptors are given back", 60)
        end = self.figures()
        self.tell(begun, "end", end)
        failures = [load["failures"] for load in self.loads if load["failures"]]
        print("connections", sum(load["done"] for load in self.loads), "failures", failures)
        assert self.read_again() or not self.group.exists(), "memory was never short"
        assert end["memory"] <= base["memory"] + MEMORY, "memory has grown"
        assert end["entries"] <= ENTRIES, "conntrack's table has grown"
        for what in ("rules", "routes", "table"):
            assert end[what] == base[what], f"{what}: not what they were"

    def busy(self):
        """A second or so of what goes on all the time."""
        if self.load is None or self.load.poll() is not None:
            if self.load:
                self.loads.append(json.loads(self.load.stdout.read()))
            self.load = self.client.popen(sys.executable, HERE / "lab/load.py", "client", SERVER, "443", str(RATE), "5",
                                          stdout=subprocess.PIPE, text=True)
        with self.router.enter():
            asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        asking.settimeout(1)
        with asking, contextlib.suppress(TimeoutError):
            for _ in range(ASKED):
                self.names += 1
                labels = (b"n%d" % (self.names % NAMES), b"soak", b"example")
                name = b"".join(bytes([len(label)]) + label for label in labels)
                asking.sendto(b"\0\1\1\0\0\1\0\0\0\0\0\0" + name + b"\0\0\1\0\1", ("127.0.0.1", PORT))
                asking.recv(1500)
        if self.is_changing:
            # Live: another limit each time.
            self.configured.write(f"{self.lines}\noption max_dials {500 + self.names // ASKED % 10}")
            self.daemon.signal(signal.SIGHUP)
        self.adjust()
        time.sleep(0.7)

    @contextlib.contextmanager
    def quiet(self):
        yield

    @contextlib.contextmanager
    def tiny_segments(self):
        """A byte each, both ways."""
        sock = self.client.connect(SERVER, 7)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(10)
        for _ in range(2000):
            sock.sendall(b"x")
        got = 0
        while got < 2000:
            got += len(sock.recv(100))
        sock.close()
        yield

    @contextlib.contextmanager
    def full_disk(self):
        """Names can't be written; then they can."""
        filler = self.disk / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        yield
        filler.unlink()

    @contextlib.contextmanager
    def few_files(self):
        """No descriptor more than there are open."""
        pid = self.daemon.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (self.files(), limits[1]))
        yield
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)

    @contextlib.contextmanager
    def little_memory(self):
        """As little as makes it read pages of the program again that had to go. (Without nft, which has more.)"""
        self.is_changing = False
        time.sleep(0.5)
        before = self.was_read = self.read_again()
        if self.group.exists():
            self.limit = int((self.group / "memory.usage_in_bytes").read_text())
        try:
            yield
        finally:
            if self.limit:
                print(f"       {self.limit >> 10} KiB; {self.read_again() - before} pages were read again")
                self.limit = None
                self.set_limit(-1)
        self.is_changing = True

    def adjust(self):
        """Called each second: there is less until pages are read again, and more if it does nothing else."""
        if self.limit:
            again = self.read_again()
            more, self.was_read = again - self.was_read, again
            is_stuck = "under_oom 1" in (self.group / OOM).read_text()
            self.limit += STEP if is_stuck or more > 1000 else -STEP if more == 0 else 0
            self.set_limit(self.limit)

    def set_limit(self, limit):
        with contextlib.suppress(OSError):  # it can't be so little
            (self.group / "memory.limit_in_bytes").write_text(str(limit))

    def read_again(self):
        with contextlib.suppress(OSError):
            text = (self.group / "memory.stat").read_text()
            return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("workingset_refault_file "))
        return 0

    def status(self, key):
        text = pathlib.Path(f"/proc/{self.daemon.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{key}:")))

    def files(self):
        return len(os.listdir(f"/proc/{self.daemon.process.pid}/fd"))

    def how_it_ended(self):
        memory = ""
        with contextlib.suppress(OSError):
            memory = f"; of its group: {' '.join((self.group / OOM).read_text().split())}"
        return f"the daemon has ended with {self.daemon.wait()}{memory}"

    def figures(self):
        said = self.daemon.summary()
        listed = lambda *argv: len(self.router.run(*argv, check=False).stdout.splitlines())
        return {
            "memory": self.status("VmRSS"),
            "files": self.files(),
            "entries": int(self.router.run("cat", "/proc/sys/net/netfilter/nf_conntrack_count").stdout),
            "rules": listed("ip", "rule") + listed("ip", "-6", "rule"),
            "routes": listed("ip", "route", "show", "table", "all", "dev", TUN),
            "table": listed("nft", "-s", "list", "ruleset"),
            "opened": said["flows opened"],
            "yielded": said["flows yielded"],
        }

    def tell(self, begun, what, figures):
        print(f"{time.monotonic() - begun:6.0f} s  {what:14}", *(f"{key} {value}" for key, value in figures.items()), flush=True)

    def close(self):
        for sock in self.idle:
            sock.close()
        if self.daemon.running():
            self.daemon.stop()
        else:
            print(f"{self.daemon.log()[-3000:]}\nby itself:", end=" ")
        print(self.how_it_ended(), flush=True)
        self.network.close()
        if self.group.exists():
            self.group.rmdir()
        subprocess.run(["umount", self.disk], check=False)


def main(path, seconds):
    print(f"path {path}, {seconds:.0f} s", flush=True)
    netns.sweep()
    with tempfile.TemporaryDirectory(prefix="toh-") as directory:
        os.chmod(directory, 0o755)
        soak = Soak(path, seconds, pathlib.Path(directory))
        try:
            soak.run()
        finally:
            soak.close()
    print("nothing has grown")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main(sys.argv[1], float(sys.argv[2]))
