#!/usr/bin/env python3
"""A client that sends packets in the name of others, each from an address of its own, some 5,000 a second.

    forge.py NETWORK SERVER PORT ROUTER     addresses of NETWORK at random; a SYN each, or to port 53 a query in a datagram;
                                            ROUTER is its hardware address; prints "ready"; goes on until it is killed
"""

import ipaddress
import logging
import random
import socket
import sys
import time

logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.layers.dns import DNS, DNSQR  # noqa: E402
from scapy.layers.inet import IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import IPv6  # noqa: E402
from scapy.layers.l2 import Ether  # noqa: E402

COUNT = 4_000
BURST = 50


def main(network, server, port, router):
    network, port = ipaddress.ip_network(network), int(port)
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind(("lan", 0))
    link = Ether(src=sock.getsockname()[4], dst=router)
    frames = []
    for number in range(COUNT):
        source = str(network[random.randrange(2, network.num_addresses - 1)])
        kind = IPv6 if ":" in source else IP
        if port == 53:
            payload = UDP(sport=20_000 + number, dport=53) / DNS(id=number, qd=DNSQR(qname=f"n{number}.forged.example"))
        else:
            payload = TCP(sport=20_000 + number, dport=port, flags="S", seq=number)
        frames.append(bytes(link / kind(src=source, dst=server) / payload))
    print("ready", flush=True)
    while True:
        for begin in range(0, COUNT, BURST):
            for frame in frames[begin:begin + BURST]:
                sock.send(frame)
            time.sleep(0.01)


main(*sys.argv[1:])
