#!/usr/bin/env python3
"""Packets that fill a processor: whatever changes, some are on their way through the kernel at that moment.

    flood.py ROUTER SERVER...    from a client; ROUTER is the router's hardware address
    flood.py - SERVER...         from the router itself

In turn SYNs, segments from the middle of connections that nobody knows, and QUIC's datagrams, to each server. Prints "ready";
goes on until it is killed.
"""

import contextlib
import itertools
import logging
import socket
import sys

logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.layers.inet import IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import IPv6  # noqa: E402
from scapy.layers.l2 import Ether  # noqa: E402


def main(router, *servers):
    send = from_here(servers) if router == "-" else from_client(servers, router)
    print("ready", flush=True)
    for function, argv in send:
        with contextlib.suppress(OSError):  # refused
            function(*argv)


def from_client(servers, router):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind(("lan", 0))
    link = Ether(src=sock.getsockname()[4], dst=router)
    frames = [bytes(link / packet) for port in range(20000, 20700) for server in servers for packet in to(server, port)]
    return itertools.cycle([(sock.send, (frame,)) for frame in frames])


def from_here(servers):
    """From ever other ports: what conntrack knows already is no new connection. (It checks no checksums there.)"""
    templates = []
    for server in servers:
        version, offset = (6, 40) if ":" in server else (4, 20)
        sock = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
        templates += [(sock.sendto, bytearray(bytes(packet)), offset, (server, 0)) for packet in to(server, 20000, own=True)]
    for port in itertools.cycle(range(22000, 65000)):
        for function, data, offset, address in templates:
            data[offset:offset + 2] = port.to_bytes(2, "big")
            yield function, (data, address)


def to(server, port, own=False):
    """One packet of each kind."""
    if ":" in server:
        ip = IPv6(src="2001:db8:a::1" if own else "fd01::2", dst=server)
    else:
        ip = IP(src="100.64.0.1" if own else "10.1.0.2", dst=server)
    data = b"data"
    yield ip / TCP(sport=port, dport=9, flags="S", seq=port)
    yield ip / TCP(sport=port, dport=9, flags="A", seq=port, ack=port) / data
    yield ip / TCP(sport=port, dport=10, flags="A", seq=port, ack=port) / data
    yield ip / UDP(sport=port, dport=443) / data


main(*sys.argv[1:])
