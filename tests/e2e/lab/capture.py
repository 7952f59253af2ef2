"""Captures: what passes an interface, as a packet socket with one of tcpdump's filters sees it."""

import ctypes
import socket
import struct

from lab.netns import literal

ETH_P_ALL = 0x0003
SO_ATTACH_FILTER = 26
SO_RCVBUFFORCE = 33
PACKET_HEADER = 14
# What neighbours say to each other (ARP, neighbour and multicast listener discovery) is no traffic.
NEIGHBOURS = "arp or (icmp6 and (ip6[40] >= 130 and ip6[40] <= 143)) or (ip6[6] = 0 and ip6[40] = 58)"


class Capture:
    """The packets that pass an interface of a namespace, both ways, from the moment this is made."""

    def __init__(self, space, interface, expression):
        program = compile_filter(space, interface, expression)
        with space.enter():
            self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        # The filter before the binding: nothing that it would refuse gets in.
        self.sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        self.sock.bind((interface, ETH_P_ALL))
        self.sock.setblocking(False)
        self.seen = []

    def packets(self):
        """All packets so far, each the bytes of its IP header and what follows."""
        while True:
            try:
                self.seen.append(self.sock.recv(65535)[PACKET_HEADER:])
            except BlockingIOError:
                return self.seen

    def close(self):
        self.sock.close()


class LeakCapture(Capture):
    """What passes the router's WAN side without being a connection with one of the given proxies."""

    def __init__(self, network, proxies, also="", interface="wan"):
        allowed = [f"(tcp and host {address} and port {port})" for address, port in proxies]
        allowed += [NEIGHBOURS] + ([also] if also else [])
        super().__init__(network.router, interface, "not (" + " or ".join(f"({term})" for term in allowed) + ")")

    def assert_none(self):
        packets = self.packets()
        assert not packets, f"{len(packets)} packets went around the proxy: " + "; ".join(map(summary, packets[:5]))


def summary(packet):
    """One line about an IP packet."""
    if packet[0] >> 4 == 4:
        source, destination = socket.inet_ntop(socket.AF_INET, packet[12:16]), socket.inet_ntop(socket.AF_INET, packet[16:20])
        protocol, payload = packet[9], packet[(packet[0] & 15) * 4:]
    else:
        source, destination = socket.inet_ntop(socket.AF_INET6, packet[8:24]), socket.inet_ntop(socket.AF_INET6, packet[24:40])
        protocol, payload = packet[6], packet[40:]
    if protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP) and len(payload) >= 4:
        from_port, to_port = struct.unpack("!HH", payload[:4])
        flags = f" flags {payload[13]:#x}" if protocol == socket.IPPROTO_TCP and len(payload) > 13 else ""
        return f"protocol {protocol} {literal(source)}:{from_port} > {literal(destination)}:{to_port}{flags}"
    return f"protocol {protocol} {source} > {destination}"


def compile_filter(space, interface, expression):
    """The filter as a struct sock_fprog whose instructions live as long as the returned object."""
    lines = space.run("tcpdump", "-ddd", "-i", interface, expression).stdout.split("\n")
    code = b"".join(struct.pack("=HBBI", *map(int, line.split())) for line in lines[1:] if line)
    return fprog(code)


class fprog(bytes):
    """struct sock_fprog { unsigned short len; struct sock_filter *filter; } of <linux/filter.h>."""

    def __new__(cls, code):
        buffer = ctypes.create_string_buffer(code, len(code))
        self = super().__new__(cls, struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer)))
        self.buffer = buffer
        return self
