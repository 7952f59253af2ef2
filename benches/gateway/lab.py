"""Three network namespaces, and what runs in them.

    client 192.168.7.2 ---- 192.168.7.1 router 192.0.2.1 ---- 192.0.2.2 internet
                                                              203.0.113.0/24, the servers
                                                              192.0.2.2:3128, the proxy

The router's default route leads nowhere: what reaches the servers has come through a gateway, or through
`open_router`. All links are veth with GRO. Every lab has names of its own and nothing outlives it.
"""

import contextlib
import os
import resource
import secrets
import signal
import subprocess
import tempfile
import time
from pathlib import Path

CONGESTION = "reno"
# Namespaces are PREFIX-PID-RANDOM-ROLE.
PREFIX = "tohbench"
PROXY = ("192.0.2.2", 3128)
# Where the router's default route leads: a neighbour that is not there.
NOBODY = "192.0.2.9"
SERVER = ("203.0.113.1", 5201)
SERVER_NET = "203.0.113.0/24"
# Servers' addresses in use: 203.0.113.1 and up.
SPREAD = 250
CLIENT_LINK = "lan"

_SYSCTLS = {
    "net.ipv4.tcp_congestion_control": CONGESTION,
    "net.ipv4.ip_local_port_range": "1024 65535",
    "net.ipv4.tcp_tw_reuse": "1",
    "net.core.somaxconn": "4096",
    "net.ipv4.tcp_max_syn_backlog": "8192",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.default.rp_filter": "0",
}

_TOPOLOGY = """
link add lan netns {client} type veth peer name lan netns {router}
link add wan netns {router} type veth peer name wan netns {internet}
"""
# What costs something in OpenWrt's default rules: connection tracking, and masquerading to the uplink.
_FIREWALL = """
table inet firewall {
  chain input { type filter hook input priority filter; ct state established,related accept; }
  chain forward { type filter hook forward priority filter; ct state established,related accept; }
  chain output { type filter hook output priority filter; ct state established,related accept; }
  chain srcnat { type nat hook postrouting priority srcnat; oifname wan masquerade; }
}
"""
# As fw4 has it with `flow_offloading`; needs a kernel with NF_FLOW_TABLE.
_FLOWTABLE = """
table inet firewall {
  flowtable fast { hook ingress priority filter; devices = { lan, wan }; }
  chain offload { type filter hook forward priority filter - 1; meta l4proto tcp flow add @fast; }
}
"""
_ADDRESSES = {
    "client": (
        "addr add 192.168.7.2/24 dev lan\nlink set lo up\nlink set lan up\nroute add default via 192.168.7.1"
    ),
    "router": (
        "addr add 192.168.7.1/24 dev lan\naddr add 192.0.2.1/24 dev wan\n"
        f"link set lo up\nlink set lan up\nlink set wan up\nroute add default via {NOBODY}"
    ),
    "internet": (
        f"addr add 192.0.2.2/24 dev wan\nlink set lo up\nlink set wan up\n"
        f"route add local {SERVER_NET} dev lo\nroute add default via 192.0.2.1"
    ),
}


class LabError(Exception):
    """Something in the lab could not be set up."""


class Lab:
    """The namespaces, with the server and the proxy running. Use it in a `with`."""

    def __init__(self, tools: Path, firewall: bool = False, flowtable: bool = False, offloads: bool = True):
        self.tools = tools
        self.firewall = firewall
        self.flowtable = flowtable
        self.offloads = offloads
        self.proxy: subprocess.Popen | None = None
        self._names = {}
        self._processes: list[subprocess.Popen] = []
        self._stack = contextlib.ExitStack()
        self.dir = Path()

    def __enter__(self) -> "Lab":
        try:
            self._set_up()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_):
        self._stack.close()

    def _set_up(self):
        self.dir = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="toh-bench-")))
        run_id = f"{os.getpid()}-{secrets.token_hex(2)}"
        for role in ("client", "router", "internet"):
            name = f"{PREFIX}-{run_id}-{role}"
            _run(["ip", "netns", "add", name])
            self._stack.callback(subprocess.run, ["ip", "netns", "del", name], check=False)
            self._names[role] = name
        self._stack.callback(self._end_processes)
        _run(["ip", "-batch", "-"], _TOPOLOGY.format(**self._names))
        for role, batch in _ADDRESSES.items():
            self.run(role, ["sysctl", "-qw", *(f"{key}={value}" for key, value in _SYSCTLS.items())])
            self.run(role, ["ip", "-batch", "-"], batch)
        self.run("router", ["sysctl", "-qw", "net.ipv4.ip_forward=1"])
        if self.firewall or self.flowtable:
            self.run("router", ["nft", "-f", "-"], _FIREWALL)
        if self.flowtable:
            self.run("router", ["nft", "-f", "-"], _FLOWTABLE)
        state = "on" if self.offloads else "off"
        for role, device in (("client", "lan"), ("router", "lan"), ("router", "wan"), ("internet", "wan")):
            self.run(role, ["ethtool", "-K", device, "gro", state, "gso", state, "tso", state])
        self.spawn("internet", [self.tools, "server", "--listen", f"0.0.0.0:{SERVER[1]}"])
        self.proxy = self.spawn("internet", [self.tools, "proxy", "--listen", f"{PROXY[0]}:{PROXY[1]}"])
        self.wait_until(lambda: self.reaches_server(via_proxy=True), "the proxy answers")

    def open_router(self):
        """Lets the router forward to the servers, as one without a gateway does."""
        self.run("router", ["ip", "route", "add", SERVER_NET, "via", PROXY[0]])

    def run(self, role: str, argv: list, stdin: str = "") -> str:
        """Runs a command in a namespace; returns what it printed. Raises LabError if it fails."""
        return _run(["ip", "netns", "exec", self._names[role], *map(str, argv)], stdin)

    def spawn(self, role: str, argv: list, env: dict | None = None, **pipes) -> subprocess.Popen:
        """Starts a process in a namespace. Its output goes to a file of the lab; see `log`."""
        if "stdout" not in pipes:
            pipes["stdout"] = (self.dir / f"{Path(argv[0]).name}.log").open("ab")
            pipes["stderr"] = subprocess.STDOUT
        process = subprocess.Popen(
            ["ip", "netns", "exec", self._names[role], *map(str, argv)],
            stdin=pipes.pop("stdin", subprocess.DEVNULL),
            env={**os.environ, **(env or {})},
            cwd=self.dir,
            **pipes,
        )
        self._processes.append(process)
        return process

    def log(self, name: str) -> str:
        """The last lines that a process of this name has printed."""
        path = self.dir / f"{name}.log"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return " | ".join(lines[-3:])

    def stop(self, process: subprocess.Popen):
        """Ends a process of the lab, politely at first."""
        for sig, seconds in ((signal.SIGTERM, 6), (signal.SIGKILL, 6)):
            if process.poll() is not None:
                break
            process.send_signal(sig)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
        if process in self._processes:
            self._processes.remove(process)

    def reaches_server(self, via_proxy: bool = False) -> bool:
        """Whether a connection of the client gets its byte."""
        via = ["--via", f"{PROXY[0]}:{PROXY[1]}"] if via_proxy else []
        with contextlib.suppress(LabError):
            argv = [
                self.tools,
                "connect",
                "--to",
                f"{SERVER[0]}:{SERVER[1]}",
                "--max",
                1,
                "--seconds",
                1,
                *via,
            ]
            return '"done": 1,' in self.run("client", argv)
        return False

    def wait_until(self, condition, what: str, seconds: float = 10):
        """Polls until the condition holds. Raises LabError if that takes too long."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise LabError(f"gave up waiting until {what}")
            time.sleep(0.02)

    def _end_processes(self):
        for process in reversed(self._processes[:]):
            self.stop(process)


def sweep():
    """Removes what runs that were killed have left behind: processes and namespaces."""
    for line in _run(["ip", "netns", "list"]).splitlines():
        name = line.split()[0] if line else ""
        prefix, _, rest = name.partition("-")
        owner = rest.split("-")[0]
        if prefix != PREFIX or not owner.isdigit() or Path(f"/proc/{owner}").exists():
            continue
        for pid in _run(["ip", "netns", "pids", name]).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "del", name], check=False)


def file_limit() -> int:
    """Raises the limit of open files as far as it goes, for all that is started from here."""
    wanted = 262_144
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _run(argv: list[str], stdin: str = "") -> str:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise LabError(f"{' '.join(argv[-4:])}: {reason[-1] if reason else done.returncode}")
    return done.stdout
