"""Clients among each other: one that does its worst takes nothing from another."""

import contextlib
import itertools
import pathlib
import resource
import subprocess
import sys
import threading

import pytest

from lab import emulator
from lab.connections import assert_carries, open_tunnel
from lab.faultproxy import OK, reset
from lab.gateway import is_relayed
from lab.netns import CLIENT, CLIENT6, CLIENT6_OTHER, CLIENT_OTHER, MACHINE6, SERVER, SERVER6, connecting, finish_connect
from lab.wait import until
from lab.wire import TCP, Wire

# The ports that the attacker asks for.
SILENT, OPEN = 9, 7
NO_NEIGHBOURS = "the daemon can't read the kernel's table of neighbours"
FORGE = pathlib.Path(__file__).parent / "lab/forge.py"


@pytest.fixture
def machines(machine6):
    """A second machine in the LAN's /64, and many files for the attacker."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(params=[4, 6], ids=["by-v4", "by-v6"])
def attacker(request, machines):
    """The addresses that the attacker has, and the server that it asks for."""
    if request.param == 4:
        return [CLIENT_OTHER], SERVER
    return [CLIENT6, CLIENT6_OTHER], SERVER6


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def other(request, machines):
    """The address of the other client, and the server that it asks for."""
    is_in_the_same_64 = "attacker" in request.fixturenames and ":" in request.getfixturevalue("attacker")[1]
    if emulator.RUNNER and request.param == 6 and is_in_the_same_64:
        pytest.skip(NO_NEIGHBOURS)
    return (CLIENT, SERVER) if request.param == 4 else (MACHINE6, SERVER6)


@pytest.fixture
def serving(proxy):
    """A proxy that opens everything at once but what asks for SILENT; it echoes the first bytes for port 80."""
    asked = []

    def answer(connection):
        asked.append(connection.port)
        if connection.port == SILENT:
            return
        connection.send(OK)
        if connection.port == 80:
            connection.send(connection.sock.recv(100))

    proxy.serve(answer)
    return asked


def measure(client, other, count=30):
    """How many of the other client's new connections work within some seconds each, of so many that stay open."""
    address, server = other
    kept, good = [], 0
    for _ in range(count):
        with contextlib.suppress(OSError, AssertionError):
            sock = client.connect(server, 80, source=address, timeout=4)
            sock.settimeout(4)
            kept.append(sock)
            sock.sendall(b"me too")
            good += sock.recv(100) == b"me too"
    for sock in kept:
        sock.close()
    return good


def has_ended(sock):
    try:
        return not sock.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True


class Attack:
    """Begins connections for ever, `at_once` of them; those that end are begun anew."""

    def __init__(self, client, attacker, port, at_once):
        self.client, (self.addresses, self.server) = client, attacker
        self.port, self.at_once = port, at_once
        self.sockets = []
        self.ends = threading.Event()
        self.fill()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def fill(self):
        while len(self.sockets) < self.at_once:
            source = self.addresses[len(self.sockets) % len(self.addresses)]
            self.sockets.append(self.client.begin_connect(self.server, self.port, source))

    def run(self):
        while not self.ends.wait(0.05):
            for sock in self.sockets[:]:
                if not connecting(sock) and has_ended(sock):
                    sock.close()
                    self.sockets.remove(sock)
            self.fill()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ends.set()
        self.thread.join()
        for sock in self.sockets:
            sock.close()


def test_idle_connections(gateway, serving, client, attacker, other):
    """One client has all flows of the table: others get theirs, and keep those that they have."""
    if not is_relayed(attacker[1]):
        pytest.skip("what the kernel forwards takes no place in the table")
    daemon = gateway("--max-flows", "300", log_level="info")
    near = client.connect(other[1], 80, source=other[0])
    with Attack(client, attacker, OPEN, 350):
        until(lambda: sum(daemon.summary()[f"flows {state}"] for state in ("held", "opening", "live", "closing")) >= 300,
              "the table is full")
        assert measure(client, other) >= 27
    near.sendall(b"still here")
    assert near.recv(100) == b"still here"
    print(daemon.summary())


@pytest.mark.path("forward", why="it is about what the kernel forwards")
def test_idle_forwarded_connections(gateway, serving, client, router, attacker, other, directory):
    """One client has nearly all of conntrack's table: others keep what they have. (The machine's own limit is for all tests,
    so the daemon is shown another.)"""
    if is_relayed(attacker[1]):
        pytest.skip("what is relayed has places in the table")
    limit = directory / "limit"
    limit.write_text("400\n")
    show = 'mount --bind "$0" /proc/sys/net/netfilter/nf_conntrack_max && exec "$@"'
    daemon = gateway(log_level="info", prefix=("unshare", "-m", "sh", "-c", show, str(limit)))
    near = [client.connect(other[1], 80, source=other[0]) for _ in range(20)]
    tracked = lambda: int(router.run("cat", "/proc/sys/net/netfilter/nf_conntrack_count").stdout)
    with Attack(client, attacker, OPEN, 200) as attack:
        for _ in range(10):
            until(lambda: serving.count(OPEN) >= attack.at_once, "it has them all")
            until(lambda: tracked() <= 350, "there is room for others")
            attack.at_once += 50
        daemon.wait_log("the client with the most made room")
        assert measure(client, other) >= 27
    for sock in near:
        sock.sendall(b"still here")
        assert sock.recv(100) == b"still here"


def test_half_open_connections(gateway, serving, client, attacker, other):
    """One client never answers a SYN-ACK, as a scanner does not."""
    addresses, _ = attacker
    sources = ", ".join(addresses)
    client.nft(f"""
table inet scanner {{
    chain input {{
        type filter hook input priority 0
        {'ip6' if ':' in sources else 'ip'} daddr {{ {sources} }} tcp sport {OPEN} drop
    }}
}}""")
    daemon = gateway("--max-flows", "300", log_level="info")
    with Attack(client, attacker, OPEN, 500):
        until(lambda: daemon.summary()["flows opening"] >= 120, "the flows are half-open")
        assert measure(client, other) >= 27
        # An IPv6 address is its machine's once it has been answered.
        assert daemon.summary()["flows opening"] <= 128 * len(addresses)


def test_dials_from_a_64(gateway, serving, client, other, machines):
    """One machine has five addresses, and holds as many dials as it may with each."""
    addresses = [CLIENT6, CLIENT6_OTHER, "fd01::4", "fd01::5", "fd01::6"]
    for address in addresses[2:]:
        client.run("ip", "addr", "add", f"{address}/64", "dev", "lan", "nodad", "preferred_lft", "0")
    daemon = gateway("--reply-timeout", "300", log_level="info")
    with Attack(client, (addresses, SERVER6), SILENT, 700):
        until(lambda: daemon.summary()["flows held"] >= 128, "its dials are held")
        assert measure(client, other) >= 27
        # Those of addresses that have been answered, and of the others.
        assert daemon.summary()["flows held"] <= 2 * 128 + 2


@pytest.mark.parametrize("count, attempts", [(600, 1), (512, 3)], ids=["repeated", "anew"])
def test_dials_in_the_name_of_others(gateway, serving, client, router, other, count, attempts):
    """One machine sends the SYNs of many, each from an address of its own, and again, so that they stay; or other attempts
    with the same ports, all of them young."""
    daemon = gateway("--reply-timeout", "300", log_level="info")
    wire = Wire(client, router, other[1])
    forged = []
    for sequence, number in itertools.product(range(attempts), range(count)):
        wire.source = f"fd02:0:0:{number:x}::9" if ":" in other[1] else f"10.2.{number >> 8}.{number & 255}"
        forged.append(bytes(wire.ip() / TCP(sport=40_000, dport=SILENT, flags="S", seq=sequence)))
    ends = threading.Event()

    def flood():
        for begin in itertools.cycle(range(0, len(forged), count)):
            for packet in forged[begin:begin + count]:
                wire.send(packet)
            if ends.wait(1 if attempts == 1 else 0.5):
                return

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    until(lambda: daemon.summary()["flows held"] == 512, "all dials are held")
    assert measure(client, other, 10) >= 9
    assert daemon.summary()["flows held"] <= 512
    ends.set()
    thread.join()


def test_own_dials_to_silent_targets(gateway, serving, client, server):
    """A client with 140 dials to targets that say nothing opens a page within a few seconds."""
    daemon = gateway("--reply-timeout", "300", log_level="info")
    silent = [client.begin_connect(server, SILENT) for _ in range(140)]
    until(lambda: daemon.summary()["flows held"] == 128, "its dials are held")
    with client.connect(server, 80, timeout=10) as near:
        near.sendall(b"page")
        assert near.recv(100) == b"page"
    assert daemon.summary()["flows held"] <= 128
    for sock in silent:
        sock.close()


def test_blind_packets(gateway, proxy, client, router, server):
    """Somebody in the LAN sends a RST and a SYN in another's name, but knows no sequence number: nothing happens."""
    daemon = gateway()
    near, connection = open_tunnel(client, proxy, server)
    assert_carries(near, connection.sock)
    source, port, *_ = near.getsockname()
    wire = Wire(client, router, server)
    wire.source = source
    for number in range(50):
        sequence = number * 85_899_345
        for flags in ("R", "RA", "FA", "S"):
            wire.send(wire.ip() / TCP(sport=port, dport=80, flags=flags, seq=sequence, ack=sequence))
    assert_carries(near, connection.sock)
    assert not proxy.pending()
    assert daemon.summary()["flows opened"] == 1
    # What the kernel takes counts: the port is free at once after the client's own reset.
    reset(near)
    again = client.begin_connect(server, 80, source, port)
    connection = proxy.open()
    assert finish_connect(again) == 0
    assert_carries(again, connection.sock)


@pytest.mark.native(why=NO_NEIGHBOURS)
@pytest.mark.parametrize("port", [SILENT, OPEN], ids=["silent", "open"])
@pytest.mark.parametrize("sources", ["10.0.0.0/8", "10.1.0.128/25", "fd02::/16", "fd01::/64"])
def test_forged_sources(gateway, serving, client, router, machines, sources, port):
    """One machine sends thousands of SYNs a second, each from another address: of anywhere, or of the LAN."""
    gateway("--reply-timeout", "300", log_level="info")
    source, server = other = (MACHINE6, SERVER6) if ":" in sources else (CLIENT, SERVER)
    assert measure(client, other, 1) == 1
    hardware = router.ip("link", "show", "lan")[0]["address"]
    forging = client.popen(sys.executable, FORGE, sources, server, port, hardware, stdout=subprocess.PIPE)
    assert forging.stdout.readline() == b"ready\n"
    assert measure(client, other, 10) >= 9
    # All at once, as a browser does.
    page = [client.begin_connect(server, 80, source=source) for _ in range(10)]
    assert [finish_connect(sock) for sock in page] == [0] * 10
    client.stop(forging)
    for sock in page:
        sock.close()
