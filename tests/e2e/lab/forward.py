"""The forward path: its tests' ends, fixtures, and connections that talk."""

import collections
import random
import socket
import threading

import pytest

from lab.capture import LeakCapture
from lab.faultproxy import OK
from lab.gateway import upstream
from lab.middle import Middle
from lab.netns import CLIENT, CLIENT6, PROXY, PROXY6, ROUTER_WAN, ROUTER_WAN6, SERVER, SERVER6, finish_connect

# By family: a server, the proxy, the client, the router's own address towards the proxy.
Ends = collections.namedtuple("Ends", "server proxy client router")
FAMILIES = {
    "v4": Ends(SERVER, PROXY, CLIENT, ROUTER_WAN),
    "v6": Ends(SERVER6, PROXY6, CLIENT6, ROUTER_WAN6),
}
# The port of the first client; each step has the next.
PORT = 30_000

# Seconds for what is to come at once, and not by a timeout of the daemon's.
PROMPT = 4
HELLO = b"client's hello" * 20


@pytest.fixture(params=FAMILIES)
def ends(request):
    return FAMILIES[request.param]


@pytest.fixture
def strays(network, ends):
    """What passes the uplink and is not between the router's own address and the proxy."""
    allowed = f"(tcp port 3128 or tcp port 3129) and host {ends.router} and host {ends.proxy}"
    capture = LeakCapture(network, [], allowed)
    yield capture
    capture.close()


@pytest.fixture
def hard(router):
    """A router that is strict, as fw4 is with `drop_invalid`, and whose marks are those of mwan3 and pbr, too."""
    for device in ("all", "default", "lan", "wan"):
        router.sysctl(f"net.ipv4.conf.{device}.rp_filter", 1)
    router.nft("""
table inet strict {
    chain prerouting { type filter hook prerouting priority filter; ct state invalid counter; }
    chain input { type filter hook input priority filter; ct state invalid drop; }
    chain forward { type filter hook forward priority filter; ct state invalid counter drop; }
    chain output { type filter hook output priority filter; ct state invalid counter drop; }
}""")


@pytest.fixture
def middles(network):
    """Both links with a middle in them."""
    made = {link: Middle(network, link) for link in ("lan", "wan")}
    yield made
    for middle in made.values():
        middle.close()


@pytest.fixture
def forward(gateway, fault_proxy, ends):
    """A function that starts a gateway on the forward path, and its proxy."""
    def start(*options, **more):
        proxy = fault_proxy(ends.proxy)
        return gateway(*options, upstreams=(upstream(ends.proxy),), **more), proxy

    return start


def handshakes(router):
    """Entries of conntrack that belong to a handshake."""
    listing = router.run("cat", "/proc/net/nf_conntrack").stdout.splitlines()
    marks = [int(word[5:]) for line in listing for word in line.split() if word.startswith("mark=") and " CLOSE " not in line]
    return [mark for mark in marks if mark & 0xC000 == 0x4000]


def read(sock, size):
    data = bytearray()
    while len(data) < size:
        part = sock.recv(size - len(data))
        assert part, f"ended after {len(data)} of {size} bytes"
        data += part
    return bytes(data)


def echo(connection):
    """A far end that greets, and then says all again."""
    connection.send(OK)
    connection.send(b"server's hello")
    while data := connection.sock.recv(65536):
        connection.sock.sendall(data)
    connection.close()


def talk(client, ends, port, size=20_000):
    near = client.begin_connect(ends.server, 443, ends.client, port)
    try:
        assert finish_connect(near, 60) == 0
        near.sendall(HELLO)
        assert read(near, 14) == b"server's hello"
        assert read(near, len(HELLO)) == HELLO
        blob = random.Random(port).randbytes(size)
        threading.Thread(target=near.sendall, args=(blob,), daemon=True).start()
        assert read(near, size) == blob
        near.shutdown(socket.SHUT_WR)
        assert near.recv(1) == b""
    finally:
        near.close()


def all_of(works):
    """Does them at the same time; returns how each failed."""
    failures = {}

    def one(name, work):
        try:
            work()
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=one, args=item) for item in works.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures
