"""Odd packets: IP options, extension headers, fragments, and bytes that are no packets at all."""

import random
import struct

import pytest
from scapy.layers.inet import ICMP, IP, TCP, IPOption_NOP, IPOption_RR, fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    PadN,
    fragment6,
)
from scapy.packet import Raw

from lab.connections import assert_proxied_among_others
from lab.netns import CLIENT, CLIENT6, SERVER6, connecting
from lab.wait import until
from lab.wire import PORT, Wire


@pytest.fixture
def wire(client, router, server):
    return Wire(client, router, server)


def odd_headers(server):
    """Headers that stand between the IP header and TCP, or within it, by name."""
    if ":" in server:
        return {
            "destination options": lambda ip: ip / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)]),
            # Linux takes no more than 7 bytes of padding for good.
            "two of them": lambda ip: ip / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)]) / IPv6ExtHdrDestOpt(),
            "hop-by-hop": lambda ip: ip / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)]),
        }
    return {
        "nops": lambda ip: options(ip, [IPOption_NOP()] * 4),
        "record route": lambda ip: options(
            ip, [IPOption_RR(length=11, pointer=4, routers=["0.0.0.0", "0.0.0.0"]), IPOption_NOP()]
        ),
    }


def options(ip, wanted):
    ip.options = wanted
    return ip


@pytest.mark.parametrize("number", range(3))
def test_connection_with_odd_headers(gateway, proxy, wire, server, number):
    """A connection all of whose packets have IP options or extension headers works like any other, or is refused."""
    cases = list(odd_headers(server).items())
    if number >= len(cases):
        pytest.skip("no more kinds in this family")
    name, dress = cases[number]
    daemon = gateway()
    wire.send(dress(wire.ip()) / TCP(sport=PORT, dport=80, flags="S", seq=1000, options=[("MSS", 1400)]))
    connection = proxy.open()
    answer = wire.receive(lambda tcp: True)
    assert answer.flags == "SA", f"{name}: {answer.flags}"
    base = {"sport": PORT, "dport": 80}
    wire.send(dress(wire.ip()) / TCP(**base, flags="A", seq=1001, ack=answer.seq + 1))
    wire.send(dress(wire.ip()) / TCP(**base, flags="PA", seq=1001, ack=answer.seq + 1) / Raw(b"question"))
    assert connection.sock.recv(100) == b"question"
    connection.send(b"answer")
    data = wire.receive(lambda tcp: bytes(tcp.payload).startswith(b"answer"))
    assert data.ack == 1001 + 8
    wire.send(dress(wire.ip()) / TCP(**base, flags="FA", seq=1009, ack=data.seq + 6))
    assert connection.sock.recv(1) == b""
    assert daemon.running()


def test_wrong_checksum_is_no_data(gateway, proxy, wire, client, server):
    """A damaged packet stays damaged: the rewriter must not repair its checksum."""
    gateway()
    connection, fields = wire.open(proxy)
    wire.send(wire.ip() / TCP(**fields, flags="PA", chksum=0x1234) / Raw(b"damaged!"))
    wire.send(wire.ip() / TCP(**fields, flags="PA") / Raw(b"flawless"))
    assert connection.sock.recv(100) == b"flawless"


def test_reset_on_the_wire(gateway, proxy, wire, server):
    """A client's RST, as packets tell it, reaches the proxy as a reset."""
    gateway()
    connection, fields = wire.open(proxy)
    wire.send(wire.ip() / TCP(**fields | {"ack": 0}, flags="R"))
    with pytest.raises(ConnectionResetError):
        connection.sock.recv(1)


def test_data_of_nobody_is_reset(gateway, wire, server):
    """A packet of a connection that was never opened gets a RST that its sender believes (RFC 9293 section 3.10.7.1)."""
    gateway()
    wire.send(wire.ip() / TCP(sport=PORT, dport=80, flags="PA", seq=5000, ack=7000) / Raw(b"hello?"))
    answer = wire.receive(lambda tcp: "R" in str(tcp.flags))
    assert answer.seq == 7000


def test_reset_of_nobody_is_not_answered(gateway, wire, client, server, capture):
    """No RST for a RST: two gateways would play ping-pong."""
    answers = capture(client, "lan", f"src host {server} and tcp")
    gateway()
    wire.send(wire.ip() / TCP(sport=PORT, dport=80, flags="R", seq=5000))
    wire.send(wire.ip() / TCP(sport=PORT, dport=81, flags="PA", seq=5000, ack=1) / Raw(b"x"))
    wire.receive(lambda tcp: tcp.sport == 81)
    assert len(answers.packets()) == 1


@pytest.mark.parametrize("flags", ["", "F", "FPU", "SF", "SR", "SFRPAUEC", "A"])
def test_odd_flags(gateway, proxy, wire, client, server, flags):
    """What port scanners and the bored send opens nothing and harms nothing."""
    daemon = gateway()
    wire.send(wire.ip() / TCP(sport=PORT, dport=80, flags=flags, seq=1, ack=1))
    assert_proxied_among_others(client, proxy, server, 4321)
    assert not proxy.pending()
    assert daemon.running()


def test_fragments_are_dropped(gateway, proxy, wire, client, router, server):
    """Fragments that come to the TUN move a counter; the router's own reassembly is none of our business."""
    daemon = gateway()
    before = daemon.dropped()
    if ":" in server:
        whole = wire.ip() / IPv6ExtHdrFragment(id=7) / TCP(sport=PORT, dport=80, flags="S") / Raw(b"x" * 2000)
        pieces = fragment6(whole, 1280)
    else:
        pieces = fragment(wire.ip(id=7) / TCP(sport=PORT, dport=80, flags="S") / Raw(b"x" * 2000), 576)
    # A first fragment has ports and is as good as its SYN; the later ones have none.
    for piece in pieces[1:]:
        wire.send(piece)
    until(lambda: daemon.dropped() > before, "a drop counted")
    assert not proxy.pending()
    assert_proxied_among_others(client, proxy, server, 4321)


def malformed(server, random):
    """Bytes that begin like an IP packet of TCP to the server and go wrong later."""
    kind = IPv6 if ":" in server else IP
    good = bytes(kind(src=CLIENT6 if ":" in server else CLIENT, dst=server) / TCP(sport=PORT, dport=80, flags="S"))
    head = 40 if ":" in server else 20
    for cut in (head, head + 1, head + 4, head + 13, head + 19):
        piece = bytearray(good[:cut])
        if ":" in server:
            piece[4:6] = (cut - 40).to_bytes(2)
        else:
            piece = bytearray(bytes(IP(bytes(piece))))
            piece[2:4] = cut.to_bytes(2)
            piece[10:12] = b"\0\0"
            piece[10:12] = struct.pack("!H", checksum(piece[:20]))
        yield bytes(piece)
    for offset in (0, 1, 4, 15):  # TCP data offset: too small, beyond the end
        piece = bytearray(good)
        piece[head + 12] = offset << 4
        yield bytes(piece)
    for _ in range(300):
        piece = bytearray(good + random.randbytes(random.randrange(40)))
        for _ in range(random.randrange(1, 8)):
            piece[random.randrange(head, len(piece))] = random.randrange(256)
        if ":" in server:
            piece[4:6] = (len(piece) - 40).to_bytes(2)
            piece[6] = random.choice([0, 6, 6, 43, 44, 50, 51, 58, 59, 60, 135, 253])
        else:
            piece[2:4] = len(piece).to_bytes(2)
            piece[9] = random.choice([1, 6, 6, 17, 255])
            piece[10:12] = b"\0\0"
            piece[10:12] = struct.pack("!H", checksum(piece[:20]))
        yield bytes(piece)


def checksum(header):
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def test_malformed_packets(gateway, fault_proxy, wire, client, router, server):
    """Damaged packets move counters and nothing else. They come through the router and straight into the TUN's route."""
    proxy = fault_proxy()
    daemon = gateway(log_level="info")
    before = daemon.dropped()
    for packet in malformed(server, random.Random(1)):
        wire.send(packet)
    until(lambda: daemon.dropped() > before, "drops counted")
    # What was a SYN after all may have been dialled.
    while proxy.pending():
        pass
    assert_proxied_among_others(client, proxy, server, 4321)
    assert daemon.running()


def test_icmp_errors_of_nobody(gateway, proxy, wire, client, server):
    """ICMP errors that quote nonsense, or flows that we don't have, are dropped."""
    daemon = gateway("--non-tcp", "reject")
    quoted = bytes(wire.kind(src=server, dst=wire.source) / TCP(sport=80, dport=1, flags="A"))
    if ":" in server:
        kinds = [ICMPv6DestUnreach(code=4), ICMPv6PacketTooBig(mtu=1)]
    else:
        kinds = [ICMP(type=3, code=3), ICMP(type=3, code=4, nexthopmtu=1), ICMP(type=11), ICMP(type=12)]
    for kind in kinds:
        for length in (0, 1, 20, 28, 40, len(quoted)):
            wire.send(wire.ip() / kind / Raw(quoted[:length]))
    assert_proxied_among_others(client, proxy, server, 4321)
    assert daemon.running()


def test_packets_to_the_gateways_own_subnet(gateway, proxy, client, router, server):
    """The TUN's subnet is nobody's destination: what a client sends there is no way to the listener or to others' flows."""
    daemon = gateway()
    targets = ["fd45:39::1", "fd45:39::2", "fd45:39::5"] if ":" in server else ["10.45.39.1", "10.45.39.2", "10.45.39.3"]
    for target in targets:
        near = client.begin_connect(target, 12345)
        until(lambda: not connecting(near), "an answer or an error") if target.endswith("1") else None
        near.close()
    assert_proxied_among_others(client, proxy, server, 4321)
    assert daemon.running()


def test_pings_of_captured_addresses(gateway, client, leaks):
    gateway("--non-tcp", "reject", "--ping", "answer")
    for address in ("203.0.113.99", SERVER6):
        assert client.run("ping", "-c1", "-W20", address).returncode == 0
    leaks.assert_none()
