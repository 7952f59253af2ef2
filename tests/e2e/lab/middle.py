"""A middle: packets of one link pass through our hands, which lose, repeat or hold back those that a test names.

    middle = Middle(network, "wan")
    middle.fault = lambda packet: LOSE if packet.flags == "SA" and packet.first else None
"""

import collections
import contextlib
import heapq
import os
import select
import socket
import threading
import time

from lab.netns import (
    CLIENT,
    CLIENT6,
    CLIENT6_OTHER,
    CLIENT_OTHER,
    INTERNET,
    INTERNET6,
    ROUTER_LAN,
    ROUTER_LAN6,
    ROUTER_WAN,
    ROUTER_WAN6,
    Namespace,
    batch,
)

LOSE, TWICE, LATE = "lost", "twice", "late"
FAULTS = (LOSE, TWICE, LATE)
# Seconds that a packet is late: others overtake it, and the first timeout of a SYN (one second) is not over.
DELAY = 0.3
# <linux/if_packet.h>; struct virtio_net_hdr, in front of each frame: checksums that are still to be made pass as they are.
SOL_PACKET, PACKET_VNET_HDR, PACKET_OUTGOING = 263, 15, 4
VNET_HEADER, ETHERNET = 10, 14

# A TCP segment as it passes: whether it goes to the router, its ports and flags (as "SA"), the length of its payload.
Segment = collections.namedtuple("Segment", "inwards source destination flags length")


class Middle:
    """What stands in the link of the router that is called lan or wan, from the moment this is made."""

    def __init__(self, network, link, fault=lambda segment: None):
        self.fault = fault
        self.space = Namespace(f"toh-{os.getpid()}-{id(self) % 10**8}-middle{link}")
        network.namespaces.append(self.space)
        end = network.client if link == "lan" else network.internet
        end.run("ip", "link", "set", link, "netns", self.space.name, "name", "router")
        self.space.run("ip", "link", "add", "end", "type", "veth", "peer", "name", link, "netns", end.name)
        (lan if link == "lan" else wan)(end)
        self.socks = {}
        for device in ("router", "end"):
            self.space.sysctl(f"net.ipv6.conf.{device}.disable_ipv6", 1)
            self.space.run("ip", "link", "set", device, "up", "promisc", "on")
            with self.space.enter():
                sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            sock.bind((device, 3))
            self.socks[device] = sock
        self.wake = os.pipe()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        ways = {self.socks["end"]: (self.socks["router"], True), self.socks["router"]: (self.socks["end"], False)}
        late, number = [], 0
        while True:
            patience = max(late[0][0] - time.monotonic(), 0) if late else None
            ready = select.select([*ways, self.wake[0]], [], [], patience)[0]
            if self.wake[0] in ready:
                return
            while late and late[0][0] <= time.monotonic():
                _, _, to, frame = heapq.heappop(late)
                send(to, frame)
            for sock in ready:
                to, inwards = ways[sock]
                frame, address = sock.recvfrom(70_000)
                if address[2] == PACKET_OUTGOING:
                    continue
                segment = parse(frame, inwards)
                fault = segment and self.fault(segment)
                if fault == LATE:
                    number += 1
                    heapq.heappush(late, (time.monotonic() + DELAY, number, to, frame))
                elif fault != LOSE:
                    for _ in range(2 if fault == TWICE else 1):
                        send(to, frame)

    def close(self):
        os.write(self.wake[1], b"x")
        self.thread.join()
        for sock in self.socks.values():
            sock.close()
        for end in self.wake:
            os.close(end)


def send(sock, frame):
    with contextlib.suppress(OSError):  # the link goes down at the end of a test
        sock.send(frame)


def parse(frame, inwards):
    """The TCP segment in a frame, if it is one without extension headers."""
    ip = frame[VNET_HEADER + ETHERNET:]
    if ip[0] >> 4 == 4 and ip[9] == socket.IPPROTO_TCP:
        tcp = ip[(ip[0] & 15) * 4:int.from_bytes(ip[2:4])]
    elif ip[0] >> 4 == 6 and ip[6] == socket.IPPROTO_TCP:
        tcp = ip[40:40 + int.from_bytes(ip[4:6])]
    else:
        return None
    flags = "".join(name for bit, name in enumerate("FSRPA") if tcp[13] >> bit & 1)
    ports = int.from_bytes(tcp[:2]), int.from_bytes(tcp[2:4])
    return Segment(inwards, *ports, flags.replace("P", ""), len(tcp) - (tcp[12] >> 4) * 4)


def lan(client):
    batch(
        client,
        f"addr add {CLIENT}/24 dev lan",
        f"addr add {CLIENT_OTHER}/24 dev lan",
        f"addr add {CLIENT6}/64 dev lan nodad",
        f"addr add {CLIENT6_OTHER}/64 dev lan nodad preferred_lft 0",
        "link set lan up",
    )
    batch(client, f"route add default via {ROUTER_LAN}", f"route add default via {ROUTER_LAN6}")


def wan(internet):
    batch(
        internet,
        f"addr add {INTERNET}/30 dev wan",
        f"addr add {INTERNET6}/64 dev wan nodad",
        "link set wan up",
        f"route add 10.1.0.0/24 via {ROUTER_WAN}",
        f"route add fd01::/64 via {ROUTER_WAN6}",
    )
