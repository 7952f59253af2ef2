"""The flow table: many short connections, a full table, ICMP errors, segment sizes."""

import contextlib
import errno
import json
import socket
import sys
import threading

import pytest

from lab.connections import open_tunnel
from lab.faultproxy import OK, reset
from lab.gateway import PROJECT, TUN, is_relayed
from lab.netns import CLIENT, PROXY, SERVER, SERVER6, connecting, finish_connect, retransmits
from lab.servers import wait_port
from lab.wait import until

LOAD = PROJECT / "tests" / "e2e" / "lab" / "load.py"


def load(gateway, client, internet, server, rate, seconds):
    """The result of rate connections a second to one server."""
    # Ports of the client may come again before their time: that is the gateway's problem to solve.
    client.sysctl("net.ipv4.ip_local_port_range", "1024 65535")
    internet.popen(sys.executable, LOAD, "proxy", PROXY, 3128)
    wait_port(internet, PROXY, 3128)
    daemon = gateway(log_level="info")
    run = client.run(sys.executable, LOAD, "client", server, 80, rate, seconds, timeout=seconds * 3 + 60)
    assert daemon.running()
    print(daemon.summary())  # shown if the test fails
    return json.loads(run.stdout)


def test_short_connections(gateway, client, internet, server):
    """1,000 short connections a second to one server, none fails."""
    result = load(gateway, client, internet, server, 1000, 8)
    assert result["done"] == 8000, result


@pytest.mark.long
def test_short_connections_for_two_minutes(gateway, client, internet, server):
    """The same for two minutes: longer than the kernel's TIME_WAIT, more connections than a table or a port range."""
    result = load(gateway, client, internet, server, 1000, 120)
    assert result["done"] == 120_000, result


def test_more_connections_than_the_table(gateway, proxy, client, server):
    """Slots of ended flows serve again: many more connections one after the other than the table holds."""
    gateway("--max-flows", "16")
    for number in range(200):
        near = until(lambda: attempt(client, server, proxy), f"connection {number} opens")
        near.close()


def test_a_port_used_again_after_a_reset(gateway, proxy, client, server):
    """The proxy is asked for the next connection, though the last one's relay has yet to learn that it is over."""
    gateway()
    source = None
    for number in range(30):
        near, connection = open_tunnel(client, proxy, server, 80, *source or ())
        if number % 2:
            near.sendall(b"question")
            assert connection.sock.recv(100) == b"question"
        source = near.getsockname()[:2]
        reset(near)


def test_a_port_used_again_while_bytes_are_under_way(gateway, proxy, client, server):
    """A connection that both ends have ended, and whose last bytes the server is slow to take, is not in the way."""
    gateway()
    near, slow = open_tunnel(client, proxy, server)
    slow.sock.shutdown(socket.SHUT_WR)
    assert near.recv(1) == b""
    sent, received = 0, 0
    near.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while True:
            sent += near.send(bytes(1 << 16))
    address, port, *_ = near.getsockname()
    near.close()
    while client.run("ss", "-Htn", "sport", "=", f":{port}").stdout:
        received += len(slow.sock.recv(1 << 16))
    near, connection = open_tunnel(client, proxy, server, 80, address, port)
    near.sendall(b"question")
    assert connection.sock.recv(100) == b"question"
    while data := slow.sock.recv(1 << 18):
        received += len(data)
    assert received == sent


def attempt(client, server, proxy):
    """A connection that works and whose far end has been closed."""
    near, connection = open_tunnel(client, proxy, server)
    connection.send(b"bye")
    connection.close()
    assert near.recv(10) == b"bye" and near.recv(10) == b""
    return near


def test_full_table_spares_the_living(gateway, proxy, client, server):
    """The seventeenth flow of sixteen is refused; the sixteen go on; when one ends there is room."""
    if not is_relayed(server):
        pytest.skip("what the kernel forwards takes no place in the table")
    gateway("--max-flows", "16", "--max-dials", "16", "--max-dials-per-client", "16")
    ends = []
    for _ in range(16):
        near, connection = open_tunnel(client, proxy, server)
        ends.append((near, connection))
    late = client.begin_connect(server, 81)
    until(lambda: retransmits(late) >= 1 or not connecting(late), "the late one is not answered, or refused")
    assert not proxy.pending()
    for number, (near, connection) in enumerate(ends):
        near.sendall(bytes([number]))
        assert connection.sock.recv(10) == bytes([number])
        connection.send(bytes([number, number]))
        assert near.recv(10) == bytes([number, number])
    late.close()
    for near, connection in ends[:8]:
        near.close()
        connection.close()
    # Its SYN is repeated until there is room, ever more rarely.
    another = client.begin_connect(server, 82)
    connection = proxy.accept(timeout=90)
    connection.read_request()
    connection.send(OK)
    assert finish_connect(another) == 0


@pytest.mark.path(
    "relay", why="the kernel sends no IPv4 ICMP error in the server's name, and the self-test finds such a firewall"
)
def test_icmp_error_reaches_the_client(gateway, proxy, client, router, server):
    """A router firewall that rejects packets from the TUN to the listener: the client hears of it, by ICMP."""
    icmp = "icmpv6" if ":" in server else "icmp"
    gateway()
    router.nft(f"""
table inet filter {{
    chain input {{
        type filter hook input priority 0
        iifname {TUN} meta nfproto {'ipv6' if ':' in server else 'ipv4'} tcp dport 12345 reject with {icmp} admin-prohibited
    }}
}}""")
    near = client.begin_connect(server, 80)
    proxy.open()
    assert finish_connect(near) == (errno.EACCES if ":" in server else errno.EHOSTUNREACH)


def test_icmp_error_from_the_client(gateway, proxy, client, server, capture):
    """A client's firewall that rejects our packets by ICMP does no harm to others, whatever it quotes."""
    gateway()
    near, connection = open_tunnel(client, proxy, server)
    port = near.getsockname()[1]
    icmp = "icmpv6 type" if ":" in server else "icmp type"
    client.nft(f"""
table inet filter {{
    chain input {{
        type filter hook input priority 0
        tcp dport {port} reject with icmpx port-unreachable
    }}
}}""")
    sent = capture(client, "lan", "icmp[icmptype] = icmp-unreach or (icmp6 and ip6[40] = 1)")
    connection.send(b"x" * 1000)
    until(lambda: sent.packets(), f"the client's {icmp} error")
    other, far = open_tunnel(client, proxy, server, 81)
    far.send(b"unharmed")
    assert other.recv(100) == b"unharmed"


def mss_option(packet, offset):
    """The value of the MSS option of the TCP header at offset."""
    header = packet[offset:]
    options = header[20:(header[12] >> 4) * 4]
    while options:
        if options[0] == 2:
            return int.from_bytes(options[2:4])
        options = options[1:] if options[0] == 1 else options[options[1]:]
    return None


@pytest.mark.parametrize("mtu", [1280, 1500, 9000, 65535])
def test_segment_size(gateway, proxy, client, server, capture, mtu):
    """The MSS that the client is told fits the TUN if packets pass it; what comes out fits the client's own link."""
    six = ":" in server
    headers = 60 if six else 40
    syn_acks = capture(client, "lan", "ip6[53] & 0x12 = 0x12" if six else "tcp[tcpflags] & (tcp-syn|tcp-ack) = (tcp-syn|tcp-ack)")
    gateway("--mtu", str(mtu), log_level="info")
    near, connection = open_tunnel(client, proxy, server)
    value = mss_option(syn_acks.packets()[0], headers - 20)
    assert value is not None and 500 < value <= (mtu if is_relayed(server) else 1500) - headers
    # And bulk gets through, both ways.
    for source, sink in ((near, connection.sock), (connection.sock, near)):
        source.sendall(b"z" * 200_000)
        left = 200_000
        while left:
            left -= len(sink.recv(left))


@pytest.mark.parametrize("mtu", [1280, 65535])
def test_small_lan(gateway, proxy, client, router, server, mtu):
    """A LAN link smaller than the TUN: path MTU discovery or clamping, but no black hole."""
    client.run("ip", "link", "set", "lan", "mtu", "1300")
    router.run("ip", "link", "set", "lan", "mtu", "1300")
    gateway("--mtu", str(mtu), log_level="info")
    near, connection = open_tunnel(client, proxy, server)
    threading.Thread(target=connection.send, args=(b"z" * 1_000_000,), daemon=True).start()
    left = 1_000_000
    while left:
        data = near.recv(left)
        assert data
        left -= len(data)


def test_one_port_many_servers(gateway, proxy, client):
    """One client port to several servers at once: the table tells them apart."""
    gateway()
    ends = []
    for address in (SERVER, "203.0.113.11", "203.0.113.12"):
        near = client.socket(address)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        near.bind((CLIENT, 45678))
        near.setblocking(False)
        near.connect_ex((address, 80))
        connection = proxy.open()
        assert connection.target == f"{address}:80"
        assert finish_connect(near) == 0
        ends.append((near, connection, address.encode()))
    for _, connection, name in ends:
        connection.send(name)
    for near, _, name in ends:
        assert near.recv(100) == name


def test_v4_and_v6_at_once(gateway, proxy, client):
    gateway()
    four, six = client.begin_connect(SERVER, 80), client.begin_connect(SERVER6, 80)
    connections = [proxy.open() for _ in range(2)]
    assert finish_connect(four) == 0 and finish_connect(six) == 0
    for connection in connections:
        connection.send(connection.target.encode())
    assert four.recv(100) == f"{SERVER}:80".encode()
    assert six.recv(100) == f"[{SERVER6}]:80".encode()
