"""The daemon under test: started in the router, watched, ended, and checked for what it left behind."""

import json
import os
import pathlib
import re
import signal
import subprocess
import time

from lab import emulator
from lab.netns import PROXY
from lab.wait import WAIT, until

TUN = "toh0"
TABLE = 7480
PASSWORD = "hunter2-must-not-show"
PROJECT = pathlib.Path(__file__).resolve().parents[3]
READY = "listening on port"
# The path that the tests are run on.
PATH = os.environ.get("TOH_PATH", "relay")
# The firewall's tables.
NFT_TABLE = f"tcp_over_http_{TUN}"
# The rules that every namespace has, and those of ours.
DEFAULT_RULES = {0, 32766, 32767, *emulator.PRIORITIES}
# What a clean end may take: the drain time-out of the tests' gateways and some for the machine.
STOP = 30


def binary():
    """TOH_BIN, or the newest build of the working tree."""
    if "TOH_BIN" in os.environ:
        return pathlib.Path(os.environ["TOH_BIN"]).resolve()
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target"))
    built = [path for path in (target / kind / "tcp-over-http" for kind in ("release", "debug")) if path.exists()]
    assert built, f"no tcp-over-http in {target}: run cargo build --release, or set TOH_BIN"
    return max(built, key=lambda path: path.stat().st_mtime)


class Gateway:
    """One daemon in a router namespace; start() may be called again after stop() or kill()."""

    def __init__(self, router, directory, options, env=None, prefix=()):
        self.router = router
        # One file system for all namespaces: the default socket would be everybody's.
        self.status_socket = directory / f"status-{time.monotonic_ns()}"
        self.options = ("--status-socket", self.status_socket, *options)
        self.env = os.environ | {"RUST_BACKTRACE": "1"} | (env or {})
        self.prefix = prefix
        self.log_path = directory / f"gateway-{time.monotonic_ns()}.log"
        self.process = None

    def start(self, ready=True):
        """Starts the daemon and waits until it serves (or, with ready=False, not even a moment)."""
        offset = len(self.log())
        with open(self.log_path, "ab") as log:
            self.process = self.router.popen(
                *self.argv("run", *self.options), env=self.env, stdout=log, stderr=log
            )
        if ready:
            self.wait_ready(offset)
            if emulator.RUNNER:
                emulator.capture(self.router, TUN, TABLE, self.options)
        return self

    def wait_ready(self, offset):
        """Waits until a run whose log is behind offset serves and tells its status."""
        until(lambda: READY in self.log()[offset:] or not self.running(), "the daemon listens")
        assert self.running(), f"the daemon ended with {self.process.poll()}:\n{self.log()}"

    def argv(self, *argv):
        """The whole command of the program with these arguments."""
        return *self.prefix, *emulator.RUNNER, binary(), *argv

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def wait_log(self, pattern, offset=0, timeout=WAIT):
        """Waits for a match of pattern in the log behind offset."""
        return until(lambda: re.search(pattern, self.log()[offset:]), f"{pattern!r} in the log", timeout)

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, timeout=STOP):
        """The exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the daemon still runs after {timeout} s:\n{self.log()}") from None

    def running(self):
        return self.process is not None and self.process.poll() is None

    def command(self, *argv, check=True):
        """Runs the program's command with the daemon's options; returns its CompletedProcess."""
        return self.router.run(*self.argv(*argv, *self.options), check=check, env=self.env)

    def status(self):
        """What `status --json` says."""
        return json.loads(self.command("status", "--json").stdout)

    def summary(self):
        """The counters of the status: {"flows opened": 1, "dropped malformed": 2, ...}."""
        status = self.status()
        about = {key: value for key, value in status.items() if isinstance(value, dict)}
        return {f"{key} {name}": number for key, value in about.items() for name, number in value.items()}

    def dropped(self):
        """The number of packets dropped so far, for any reason."""
        return sum(number for name, number in self.summary().items() if name.startswith("dropped "))

    def stop(self):
        """SIGTERM: the daemon must end with 0 and leave nothing behind."""
        if self.running():
            self.signal(signal.SIGTERM)
        code = self.wait()
        self.assert_sane_log()
        assert code == 0, f"exit code {code}:\n{self.log()}"
        if emulator.RUNNER:
            emulator.release(self.router)
        self.assert_clean()

    def kill(self):
        """SIGKILL, as a crash."""
        self.signal(signal.SIGKILL)
        self.wait()

    def leftovers(self):
        """Rules, routes, devices and firewall tables in the router that are not its own."""
        left = []
        for number in ("-4", "-6"):
            left += [rule for rule in self.router.ip(number, "rule", "show") if rule["priority"] not in DEFAULT_RULES]
            left += self.router.ip(number, "route", "show", "table", TABLE, check=False)
        left += [link for link in self.router.ip("link", "show") if link["ifname"] not in ("lo", "lan", "lan2", "wan")]
        # Of the firewall's tables a chain for NAT may stay, for connections that the kernel goes on to forward.
        left += [text for text in tables(self.router) if text and (PATH == "relay" or "forward" in text)]
        return left

    def assert_clean(self):
        left = self.leftovers()
        assert not left, f"left behind: {left}"

    def assert_sane_log(self):
        log = self.log()
        assert "panicked" not in log, log
        assert PASSWORD not in log, "the log shows the password"
        assert "a packet of a handshake to 127.0.0.1" not in log, "a sign of life is no failure"


def tables(router):
    """The rules of the daemon's firewall tables, one a family; empty where there is none."""
    return [router.run("nft", "-s", "list", "table", family, NFT_TABLE, check=False).stdout for family in ("ip", "ip6")]


def is_relayed(server):
    """Whether connections to a server are, when the proxy is PROXY: all, or those of the other family."""
    return PATH == "relay" or ":" in server


def upstream(host=PROXY, port=3128, user=None):
    """The URL of an upstream."""
    credentials = f"{user}:{PASSWORD}@" if user else ""
    return f"http://{credentials}{'[' + host + ']' if ':' in host else host}:{port}"
