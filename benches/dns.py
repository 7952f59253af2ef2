#!/usr/bin/env python3
"""Queries per second and how long an answer takes: our resolver beside dnsmasq and unbound.

    sudo benches/dns.py [SECONDS]

Each resolver is asked on the loopback of the tests' router namespace (tests/e2e/lab/netns.py), by one process with 1 and
with 32 queries under way, for 1,000 names in turn; rounds are interleaved, the median of three is shown. "forwarded"
has names that nobody has asked for before, through the bench's proxy to unbound. TOH_BIN and BENCH_TOOLS say which
binaries are measured and measure (target/release, benches/tools/target/release).
"""

import json
import os
import pathlib
import shutil
import statistics
import sys
import tempfile

PROJECT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "tests" / "e2e"))

from lab.dnsservers import Dnsmasq, Unbound  # noqa: E402
from lab.gateway import Gateway, upstream  # noqa: E402
from lab.netns import PROXY, RESOLVER, Network  # noqa: E402
from lab.servers import wait_port  # noqa: E402

TOOLS = os.environ.get("BENCH_TOOLS", PROJECT / "benches" / "tools" / "target" / "release" / "bench-tools")
ROUNDS = int(os.environ.get("ROUNDS", 3))
NAMES = 1000
# A record for every name below it.
ZONE = """server:
    log-queries: no
    local-zone: "bench.example." redirect
    local-data: "bench.example. 3600 IN A 203.0.113.10"
"""


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    figures = {}
    for _ in range(ROUNDS):
        for name, (set_up, port, names, space) in SCENARIOS.items():
            for concurrency in (1, 32):
                with tempfile.TemporaryDirectory(prefix="toh-") as directory:
                    os.chmod(directory, 0o755)
                    figure = measure(pathlib.Path(directory), set_up, port, names, space, concurrency, seconds)
                figures.setdefault((name, concurrency), []).append(figure)
    print("| | queries/s, 1 at a time | p50 / p99 us | queries/s, 32 at a time | p50 / p99 us | failed | RSS KiB |")
    print("|---|---|---|---|---|---|---|")
    for name in SCENARIOS:
        cells = []
        for concurrency in (1, 32):
            runs = figures[name, concurrency]
            middle = lambda key: statistics.median(map(key, runs))
            cells.append(f"{middle(lambda run: run['per_second']):,.0f}")
            cells.append(" / ".join(f"{middle(lambda run: run['answer_us'][key]):,.0f}" for key in ("p50", "p99")))
        failed = sum(run["failed"] for concurrency in (1, 32) for run in figures[name, concurrency])
        rss = max(run["rss"] for concurrency in (1, 32) for run in figures[name, concurrency])
        print(f"| {name} | {' | '.join(cells)} | {failed} | {rss:,} |")


def measure(directory, set_up, port, names, space, concurrency, seconds):
    network = Network()
    try:
        process = set_up(network, directory)
        asker = getattr(network, space)
        to = "8.8.8.8" if space == "client" else "127.0.0.1"

        def ask(count, at_once, time):
            command = [TOOLS, "query", "--to", f"{to}:{port}", "--names", count, "--concurrency", at_once, "--seconds", time]
            return json.loads(asker.run(*command, timeout=120).stdout)

        if names <= NAMES:
            ask(names, 32, 0.5)  # into the caches
        figure = ask(names, concurrency, seconds)
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        figure["rss"] = int(status.split("VmRSS:")[1].split()[0])
        return figure
    finally:
        network.close()


def ours(*options):
    def set_up(network, directory):
        Unbound(network.internet, directory, [RESOLVER], [], extra=ZONE)
        network.internet.popen(TOOLS, "proxy", "--listen", f"{PROXY}:3128", stdout=-3)
        wait_port(network.internet, PROXY, 3128)
        options_here = ("--auto-route", "1", "--path", "relay", "--log-level", "warn", "--status-socket", directory / "status")
        files = ("--fakeip-file", directory / "names", "--dns-server", RESOLVER)
        gateway = Gateway(network.router, directory, (*options_here, *files, *options, "--upstream", upstream()))
        gateway.start(ready=False)
        wait_port(network.router, "127.0.0.1", 5453)
        return gateway.process

    return set_up


def dnsmasq(network, directory):
    Unbound(network.internet, directory, [RESOLVER], [], extra=ZONE)
    return Dnsmasq(network.router, directory, ["127.0.0.1"], [RESOLVER], ["--cache-size=2000"]).process


def unbound(network, directory):
    return Unbound(network.router, directory, ["127.0.0.1"], [], extra=ZONE).process


FRESH = 1 << 30
SCENARIOS = {
    "dns 'fakeip'": (ours("--dns", "fakeip"), 5453, NAMES, "router"),
    "dns 'fakeip', hijacked from a client": (ours("--dns", "fakeip"), 53, NAMES, "client"),
    "dns 'proxy', cached": (ours("--dns", "proxy"), 5453, NAMES, "router"),
    "dns 'proxy', forwarded": (ours("--dns", "proxy"), 5453, FRESH, "router"),
    "dnsmasq, cached": (dnsmasq, 53, NAMES, "router"),
    "dnsmasq, forwarded over UDP": (dnsmasq, 53, FRESH, "router"),
    "unbound, local data": (unbound, 53, NAMES, "router"),
}

if __name__ == "__main__":
    if os.geteuid() != 0 or not shutil.which("unbound"):
        sys.exit(__doc__)
    main()
