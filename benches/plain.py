#!/usr/bin/env python3
"""Plain HTTP as requests: ours beside squid and privoxy that intercept the same clients, all with the same proxy behind them.

    sudo benches/plain.py [ROUNDS]

Each is in the tests' router namespace (tests/e2e/lab/netns.py) and serves an address of its own; nft redirects those of
squid and privoxy. The proxy answers all by itself. Each figure is taken of all three, one right after the other; shown are
the medians of the rounds, and those of the ratios to ours. TOH_BIN says which binary is measured (target/release).
"""

import contextlib
import os
import pathlib
import select
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time

PROJECT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "tests" / "e2e"))

from lab.gateway import Gateway, upstream  # noqa: E402
from lab.netns import PROXY, ROUTER_LAN, SERVER, Network  # noqa: E402
from lab.servers import wait_port  # noqa: E402

OURS, SQUID, PRIVOXY = SERVER, "203.0.113.30", "203.0.113.31"
NAMES = {OURS: "ours", SQUID: "squid, intercept", PRIVOXY: "privoxy, intercepting"}
LARGE = 512 << 20
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nCache-Control: no-store\r\nContent-Length: %d\r\n\r\n"
SQUID_CONF = f"""
http_port 3129 intercept
http_port 3130
cache_peer {PROXY} parent 3128 0 no-query no-digest default
never_direct allow all
http_access allow all
client_dst_passthru off
cache deny all
access_log none
pid_filename none
pinger_enable off
shutdown_lifetime 0 seconds
dns_nameservers 127.0.0.1
netdb_filename none
max_filedescriptors 4096
"""
PRIVOXY_CONF = f"""
listen-address {ROUTER_LAN}:8118
accept-intercepted-requests 1
keep-alive-timeout 60
tolerate-pipelining 1
connection-sharing 1
forward / {PROXY}:3128
"""


def answer(sock):
    """The proxy's side of one connection."""
    received = b""
    # Clients and proxies leave when they like.
    with sock, contextlib.suppress(ConnectionError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while piece := sock.recv(65536):
            received += piece
            while b"\r\n\r\n" in received:
                head, received = received.split(b"\r\n\r\n", 1)
                if b"/large" in head.split(b"\r\n")[0]:
                    sock.sendall(ANSWER % LARGE)
                    with open("/dev/zero", "rb") as zero:
                        chunk = zero.read(1 << 20)
                    for _ in range(LARGE >> 20):
                        sock.sendall(chunk)
                else:
                    sock.sendall(ANSWER % 1000 + bytes(1000))


def serve():
    listener = socket.create_server((PROXY, 3128), backlog=1024)
    while True:
        threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


def cpu(pid):
    """Seconds that a process has run."""
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


class Client:
    def __init__(self, space, address, pid):
        self.space, self.address, self.pid = space, address, pid
        self.request = f"GET /{{}} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"

    def exchange(self, sock, path="small"):
        """Sends a request; returns when the first byte has come, and the bytes that were read along."""
        sock.sendall(self.request.format(path).encode())
        return sock.recv(65536)

    def finish(self, sock, received):
        while b"\r\n\r\n" not in received or len(received) - received.index(b"\r\n\r\n") - 4 < 1000:
            received += sock.recv(65536)

    def requests(self, seconds=2.0, connections=16):
        """Requests a second, and microseconds of CPU for each."""
        socks = [self.space.connect(self.address, 80) for _ in range(connections)]
        received = dict.fromkeys(socks, b"")
        poll, by_fd, count = select.poll(), {}, 0
        for sock in socks:
            poll.register(sock, select.POLLIN)
            by_fd[sock.fileno()] = sock
            sock.sendall(self.request.format("small").encode())
        begun, before = time.monotonic(), cpu(self.pid)
        while time.monotonic() < begun + seconds:
            for fd, _ in poll.poll(1000):
                sock = by_fd[fd]
                piece = sock.recv(65536)
                assert piece, f"{NAMES[self.address]}: closed after {count}"
                received[sock] += piece
                if len(received[sock].partition(b"\r\n\r\n")[2]) >= 1000:
                    count, received[sock] = count + 1, b""
                    sock.sendall(self.request.format("small").encode())
        took, used = time.monotonic() - begun, cpu(self.pid) - before
        assert count, f"{NAMES[self.address]}: no answer"
        for sock in socks:
            sock.close()
        return {"requests/s": count / took, "CPU us/request": used / count * 1e6}

    def first_byte(self, count=150):
        """Microseconds to the first byte on a connection that is there, and on a new one, with its opening."""
        again, new = [], []
        with self.space.connect(self.address, 80) as sock:
            for _ in range(count):
                begun = time.perf_counter()
                received = self.exchange(sock)
                again.append(time.perf_counter() - begun)
                self.finish(sock, received)
        for _ in range(count):
            begun = time.perf_counter()
            with self.space.connect(self.address, 80) as sock:
                received = self.exchange(sock)
                new.append(time.perf_counter() - begun)
                self.finish(sock, received)
        return {"first byte, us": statistics.median(again) * 1e6, "first byte, new, us": statistics.median(new) * 1e6}

    def large(self):
        with self.space.connect(self.address, 80) as sock:
            before, begun = cpu(self.pid), time.monotonic()
            left = LARGE - len(self.exchange(sock, "large"))
            while left > 0:
                left -= sock.recv_into(bytearray(1 << 18)) or left
            took = time.monotonic() - begun
        return {"CPU s/GB": (cpu(self.pid) - before) / LARGE * 1e9, "Gbit/s": LARGE * 8 / took / 1e9}


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    figures = {}
    with tempfile.TemporaryDirectory(prefix="toh-") as name:
        directory = pathlib.Path(name)
        os.chmod(directory, 0o777)
        network = Network()
        try:
            clients = set_up(network, directory)
            for _ in range(rounds):
                for measure in Client.requests, Client.first_byte, Client.large:
                    for client in clients:
                        for what, figure in measure(client).items():
                            figures.setdefault((what, client.address), []).append(figure)
        finally:
            network.close()
    print(f"| | {' | '.join(NAMES.values())} |\n|---|{'---|' * len(NAMES)}")
    for what in dict.fromkeys(what for what, _ in figures):
        cells = []
        for address in NAMES:
            ratio = statistics.median(a / b for a, b in zip(figures[what, address], figures[what, OURS], strict=True))
            median = statistics.median(figures[what, address])
            cells.append(f"{median:,.2f}" if median < 100 else f"{median:,.0f}")
            cells[-1] += f" ({ratio:.2f})" if address != OURS else ""
        print(f"| {what} | {' | '.join(cells)} |")


def set_up(network, directory):
    network.internet.popen(sys.executable, __file__, "--serve")
    wait_port(network.internet, PROXY, 3128)
    (directory / "squid.conf").write_text(SQUID_CONF + f"cache_log {directory}/cache.log\ncoredump_dir {directory}\n")
    (directory / "privoxy").write_text(f"confdir /etc/privoxy\nlogdir {directory}\n{PRIVOXY_CONF}")
    router = network.router
    # Privoxy leaves thousands of connections behind: whoever connects to the same proxy would search for a port among them.
    router.sysctl("net.ipv4.tcp_max_tw_buckets", 16)
    squid = router.popen("squid", "-N", "-f", directory / "squid.conf", "-n", f"bench{os.getpid()}")
    privoxy = router.popen("privoxy", "--no-daemon", "--user", "privoxy", directory / "privoxy")
    wait_port(router, "127.0.0.1", 3130)  # one that is not intercepted makes squid deaf on the other
    wait_port(router, ROUTER_LAN, 8118)
    router.nft(f"""table ip intercept {{ chain in {{ type nat hook prerouting priority dstnat;
        ip daddr {SQUID} tcp dport 80 redirect to :3129
        ip daddr {PRIVOXY} tcp dport 80 redirect to :8118; }}; }}""")
    gateway = Gateway(router, directory, ("--auto-route", "1", "--path", "relay", "--log-level", "info", "--http-relay",
                                          "always", "--bypass", PROXY, "--upstream", upstream()))
    gateway.start()
    pids = {OURS: gateway.process.pid, SQUID: squid.pid, PRIVOXY: privoxy.pid}
    clients = [Client(network.client, address, pid) for address, pid in pids.items()]
    for client in clients:
        client.first_byte(10)  # until all is warm
    return clients


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    if os.geteuid() != 0 or not (shutil.which("squid") and shutil.which("privoxy")):
        sys.exit(__doc__)
    main()
