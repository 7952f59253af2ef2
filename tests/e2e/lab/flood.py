#!/usr/bin/env python3
"""A client whose SYNs fill a processor: whatever changes, some are on their way through the kernel at that moment.

    flood.py SOURCE SERVER ROUTER     ROUTER is its hardware address; prints "ready"; goes on until it is killed
"""

import logging
import socket
import sys

logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.layers.inet import IP, TCP  # noqa: E402
from scapy.layers.l2 import Ether  # noqa: E402


def main(source, server, router):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind(("lan", 0))
    link = Ether(src=sock.getsockname()[4], dst=router)
    ports = range(20000, 22000)
    frames = [bytes(link / IP(src=source, dst=server) / TCP(sport=port, dport=9, flags="S", seq=port)) for port in ports]
    print("ready", flush=True)
    while True:
        for frame in frames:
            sock.send(frame)


main(*sys.argv[1:])
