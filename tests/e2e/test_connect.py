"""Honest connect: what a client's connect(2) says is what the proxy said, when the proxy said it."""

import contextlib
import errno
import select
import socket
import struct
import time

import pytest

from lab.connections import open_tunnel
from lab.faultproxy import OK, reply
from lab.gateway import is_relayed, upstream
from lab.netns import (
    CLIENT,
    CLIENT_OTHER,
    NOBODY,
    PROXY,
    PROXY6,
    SERVER,
    SERVER6,
    connecting,
    finish_connect,
    literal,
)
from lab.wait import WAIT, until
from lab.wire import PORT, TCP, Wire

SYN_ONLY = "tcp[tcpflags] & (tcp-syn|tcp-ack) = tcp-syn"
SYN_ONLY_6 = "ip6[53] & 0x12 = 0x02"

# (status, errno over IPv4, errno over IPv6)
TABLE = [
    (502, errno.ECONNREFUSED, errno.ECONNREFUSED),
    (503, errno.EHOSTUNREACH, errno.EHOSTUNREACH),
    (504, errno.EHOSTUNREACH, errno.EHOSTUNREACH),
    # Administratively prohibited: ICMP type 3 code 13, ICMPv6 type 1 code 1.
    (403, errno.EHOSTUNREACH, errno.EACCES),
    (405, errno.EHOSTUNREACH, errno.EACCES),
    (407, errno.EHOSTUNREACH, errno.EACCES),
    (400, errno.EHOSTUNREACH, errno.EACCES),
    (404, errno.EHOSTUNREACH, errno.EACCES),
    (429, errno.EHOSTUNREACH, errno.EACCES),
]


def by_family(server, v4, v6):
    return v6 if ":" in server else v4


@pytest.mark.parametrize("status,v4,v6", TABLE, ids=[str(row[0]) for row in TABLE])
def test_refusals(gateway, proxy, client, server, status, v4, v6):
    gateway()
    sock = client.begin_connect(server, 443)
    proxy.open(reply(status)).close()
    assert finish_connect(sock) == by_family(server, v4, v6)


@pytest.mark.parametrize("status", [200, 201, 202, 299])
def test_any_2xx_connects(gateway, proxy, client, server, status):
    gateway()
    sock = client.begin_connect(server, 443)
    connection = proxy.open(f"HTTP/1.1 {status} Fine\r\n\r\n".encode())
    assert connection.target == f"{literal(server)}:443"
    assert finish_connect(sock) == 0
    sock.sendall(b"ping")
    assert connection.sock.recv(100) == b"ping"


def test_icmp_errors_are_well_made(gateway, proxy, client, server, capture):
    """The error quotes the client's own SYN, comes with a lifetime, and is the administrative one for 403."""
    lan = capture(client, "lan", "icmp[icmptype] = icmp-unreach or (icmp6 and ip6[40] = 1)")
    gateway()
    sock = client.begin_connect(server, 443)
    port = sock.getsockname()[1]
    proxy.open(reply(403)).close()
    finish_connect(sock)
    packet, = lan.packets()
    if ":" in server:
        hops, error, quoted = packet[7], packet[40:], packet[48:]
        assert error[:2] == bytes([1, 1])
        assert quoted[24:40] == socket.inet_pton(socket.AF_INET6, server)
        ports = quoted[40:44]
    else:
        hops, error, quoted = packet[8], packet[20:], packet[28:]
        assert error[:2] == bytes([3, 13])
        assert quoted[16:20] == socket.inet_aton(server)
        ports = quoted[20:24]
    assert ports == struct.pack("!HH", port, 443)
    assert 32 < hops <= 255


@pytest.mark.parametrize("proxy_address", [PROXY, PROXY6])
def test_proxy_refuses_connections(gateway, client, server, proxy_address):
    """Nobody listens on the proxy's port."""
    gateway(upstreams=[upstream(proxy_address)])
    assert client.connect_errno(server, 443) == errno.ENETUNREACH


def test_proxy_is_dead(gateway, client, server):
    """The proxy's address swallows everything."""
    gateway("--connect-timeout", "1", upstreams=[upstream(NOBODY)])
    assert client.connect_errno(server, 443) == errno.ENETUNREACH


def test_proxy_has_no_route(gateway, router, client, server):
    router.run("ip", "route", "add", "unreachable", f"{PROXY}/32")
    gateway()
    assert client.connect_errno(server, 443) == errno.ENETUNREACH


def test_reply_times_out(gateway, proxy, client, server):
    gateway("--reply-timeout", "1")
    sock = client.begin_connect(server, 443)
    proxy.accept_request()
    assert finish_connect(sock) == errno.EHOSTUNREACH


def test_client_waits_for_the_proxy(gateway, proxy, client, server):
    """connect() ends after the proxy's answer and not before."""
    gateway()
    sock = client.begin_connect(server, 443)
    connection = proxy.accept()
    assert connecting(sock)
    connection.read_request()
    connection.send(OK[:-1])
    assert connecting(sock)
    connection.send(OK[-1:])
    assert finish_connect(sock) == 0


def test_connect_early(gateway, proxy, client, server):
    """With connect 'early' the client is in before the proxy says anything, and what it sent is kept."""
    gateway("--connect", "early")
    sock = client.begin_connect(server, 443)
    assert finish_connect(sock) == 0
    sock.sendall(b"early bird")
    connection = proxy.accept_request()
    assert connection.request.endswith(b"\r\n\r\n"), "data before the reply"
    connection.send(OK)
    assert connection.sock.recv(100) == b"early bird"


def test_connect_early_is_reset_on_refusal(gateway, proxy, client, server):
    gateway("--connect", "early")
    sock = client.connect(server, 443)
    proxy.open(reply(403)).close()
    with pytest.raises(ConnectionResetError):
        sock.recv(1)


def test_repeated_syn_is_one_connect(gateway, proxy, client, server, capture):
    syns = capture(client, "lan", f"dst host {server} and ({SYN_ONLY_6 if ':' in server else SYN_ONLY})")
    gateway()
    sock = client.begin_connect(server, 443)
    connection = proxy.accept_request()
    until(lambda: len(syns.packets()) >= 3, "the client repeats its SYN twice")
    connection.send(OK)
    assert finish_connect(sock) == 0
    sock.sendall(b"x")
    assert connection.sock.recv(10) == b"x"
    assert not proxy.pending()


def test_refused_syn_is_refused_again(gateway, proxy, client, router, server):
    """A SYN that comes once more after its refusal, as Linux may send one, is refused, and the proxy is not asked."""
    daemon = gateway()
    wire = Wire(client, router, server)
    syn = wire.ip() / TCP(sport=PORT, dport=80, flags="S", seq=1000)
    wire.send(syn)
    proxy.open(reply(502)).close()
    for _ in range(3):
        wire.receive(lambda tcp: "R" in tcp.flags)
        wire.send(syn)
    wire.receive(lambda tcp: "R" in tcp.flags)
    assert not proxy.pending()
    assert daemon.summary()["flows opened"] == 1


def test_the_last_syn_is_answered(gateway, proxy, client, router, server):
    """A client that does without options in a later SYN gets them in no answer."""
    daemon = gateway()
    wire, first = Wire(client, router, server), None
    for options in ([("MSS", 1400), ("WScale", 7), ("SAckOK", b"")], [("MSS", 1400)]):
        wire.send(wire.ip() / TCP(sport=PORT, dport=80, flags="S", seq=1000, options=options))
        first = first or proxy.accept_request()
    until(lambda: daemon.summary()["dropped repeated_syn"] == 1, "both have come")
    if is_relayed(server):
        first.send(OK)
    else:
        # The proxy knows the client's own options: it is asked anew.
        proxy.open()
        with pytest.raises(ConnectionResetError):
            first.sock.recv(1)
    answer = wire.receive(lambda tcp: tcp.flags == "SA")
    assert [name for name, _ in answer.options] == ["MSS"]
    assert not proxy.pending()


def test_client_gives_up(gateway, proxy, client, server):
    """A new connection from the same port asks anew, and the old answer is not taken for it."""
    gateway()
    sock = client.begin_connect(server, 443)
    source, port = sock.getsockname()[:2]
    old = proxy.accept_request()
    sock.close()
    again = client.begin_connect(server, 443, source, port)
    with contextlib.suppress(ConnectionResetError):
        old.send(OK)
    if not is_relayed(server):
        # In the client's own name, with other numbers: there is nothing left of the old one.
        far = proxy.open()
        assert finish_connect(again) == 0
        again.sendall(b"who")
        assert far.sock.recv(10) == b"who"
    elif finish_connect(again) == 0:
        # Either one tunnel serves the new attempt, or a second was asked for; it must be a working one.
        again.sendall(b"who")
        readable, _, _ = select.select([old.sock, proxy.listener], [], [], WAIT)
        far = old if old.sock in readable and carries(old.sock) else proxy.open()
        assert far.sock.recv(10) == b"who"


def carries(sock):
    """Whether what has come is bytes, and no end."""
    try:
        return sock.recv(1, socket.MSG_PEEK) != b""
    except ConnectionResetError:
        return False


def test_closed_port_beside_open_one(gateway, proxy, client, server):
    """A refusal touches nobody else."""
    gateway()
    first, answered = open_tunnel(client, proxy, server)
    second = client.begin_connect(server, 81)
    proxy.open(reply(502)).close()
    assert finish_connect(second) == errno.ECONNREFUSED
    first.sendall(b"still here")
    assert answered.sock.recv(100) == b"still here"


def test_fallback_to_the_second_address(gateway, proxy, client):
    """What an application with several addresses does works: the first refuses, the second connects."""
    gateway()
    proxy.serve(lambda connection: connection.send(reply(502) if SERVER6 in connection.target else OK))
    chosen = next(address for address in (SERVER6, SERVER) if client.connect_errno(address, 443) == 0)
    assert chosen == SERVER


def send_syns(space, source, count, first_port=10000):
    """Sends count bare SYNs from source to SERVER port 9, each from another port."""
    address = socket.inet_aton(source)
    target = socket.inet_aton(SERVER)
    with space.enter():
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    raw.bind((source, 0))
    for number in range(count):
        port = first_port + number
        segment = struct.pack("!HHIIBBHHH", port, 9, number * 7919, 0, 5 << 4, 2, 64240, 0, 0)
        pseudo = address + target + struct.pack("!HH", socket.IPPROTO_TCP, len(segment)) + segment
        total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        raw.sendto(segment[:16] + struct.pack("!H", ~total & 0xFFFF) + segment[18:], (SERVER, 0))
    raw.close()


def test_syn_flood_leaves_others_working(gateway, proxy, client):
    """One client's 5,000 SYNs fill its own share of dials; another's connect works meanwhile."""
    daemon = gateway("--max-dials", "128", "--max-dials-per-client", "32", "--reply-timeout", "300", log_level="info")
    flood = []

    def answer(connection):
        if connection.port == 9:
            flood.append(connection)  # and says nothing
        else:
            connection.send(OK)
            connection.send(connection.sock.recv(100))

    proxy.serve(answer)
    begun = time.monotonic()
    send_syns(client, CLIENT_OTHER, 5000)
    until(lambda: len(flood) >= 32, "the flood's share of dials")
    for _ in range(20):
        with client.connect(SERVER, 80, source=CLIENT) as sock:
            sock.sendall(b"me too")
            assert sock.recv(100) == b"me too"
    # Once a second the oldest may give way.
    assert 32 <= len(flood) <= 32 * (1 + time.monotonic() - begun)
    assert daemon.summary()["flows held"] == 32


def test_dials_are_bounded_in_all(gateway, proxy, client):
    """With max_dials in flight, no client having more than one, a SYN of another is not answered, until it may take the place
    of the oldest. Whose that was tries again."""
    daemon = gateway("--max-dials", "2", "--max-dials-per-client", "2")
    silent = []

    def answer(connection):
        if len(silent) < 2:
            silent.append(connection)
        else:
            connection.send(OK)

    proxy.serve(answer)
    waiting = [client.begin_connect(server, 80) for server in (SERVER, SERVER6)]
    until(lambda: len(silent) == 2, "the proxy is asked")
    late = client.begin_connect(SERVER, 81, source=CLIENT_OTHER)
    assert finish_connect(late) == 0
    until(lambda: daemon.summary()["flows yielded"], "one has made room")
    for connection in silent:
        with contextlib.suppress(OSError):
            connection.send(OK)
    assert [finish_connect(sock) for sock in waiting] == [0] * 2


def test_unknown_flow_gets_a_reset(gateway, proxy, client, server):
    """A connection that the gateway knows nothing of (it was restarted) ends at once instead of hanging."""
    daemon = gateway()
    sock, connection = open_tunnel(client, proxy, server)
    daemon.kill()
    daemon.start()
    if is_relayed(server):
        with pytest.raises(ConnectionResetError):
            sock.sendall(b"anyone there?")
            sock.recv(1)
    else:
        sock.sendall(b"anyone there?")
        assert connection.sock.recv(100) == b"anyone there?"
