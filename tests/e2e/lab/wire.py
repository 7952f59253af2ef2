"""The wire: packets that no kernel would send, of a connection that no kernel knows."""

import logging
import socket

logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.layers.inet import IP, TCP  # noqa: E402
from scapy.layers.inet6 import IPv6  # noqa: E402

from lab.netns import CLIENT, CLIENT6, ROUTER_LAN, ROUTER_LAN6  # noqa: E402
from lab.wait import until  # noqa: E402

PORT = 33333
ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD


class Wire:
    """Sends and receives whole IP packets of one made-up connection on the client's link."""

    def __init__(self, client, router, server):
        self.server = server
        self.source = CLIENT6 if ":" in server else CLIENT
        self.kind = IPv6 if ":" in server else IP
        with client.enter():
            self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
        self.sock.bind(("lan", 3))
        self.sock.setblocking(False)
        hardware = router.ip("link", "show", "lan")[0]["address"]
        self.router = bytes.fromhex(hardware.replace(":", ""))
        # The client's kernel knows nothing of this connection and must not reset it.
        client.nft(f"""
table inet quiet {{
    chain input {{
        type filter hook input priority 0
        tcp dport {PORT} drop
    }}
}}""")
        # Neighbours are known beforehand: no resolution in between.
        client.run("ping", "-c1", "-W20", ROUTER_LAN6 if ":" in server else ROUTER_LAN)

    def ip(self, **fields):
        return self.kind(src=self.source, dst=self.server, **fields)

    def send(self, packet):
        data = packet if isinstance(packet, bytes) else bytes(packet)
        protocol = ETH_P_IPV6 if data[0] >> 4 == 6 else ETH_P_IP
        self.sock.sendto(data, ("lan", protocol, 0, 0, self.router))

    def receive(self, wanted):
        """The next packet to our port that wanted(tcp) likes."""

        def look():
            try:
                data, (_, protocol, *_) = self.sock.recvfrom(65535)
            except BlockingIOError:
                return None
            if protocol not in (ETH_P_IP, ETH_P_IPV6):
                return None
            packet = (IPv6 if protocol == ETH_P_IPV6 else IP)(data)
            tcp = packet.getlayer(TCP)
            if tcp is not None and packet.src == self.server and tcp.dport == PORT and wanted(tcp):
                return tcp
            return None

        return until(look, "the packet", interval=0.001)

    def open(self, proxy):
        """Opens the connection to port 80: (the proxy's Connection, the fields of the client's next segment)."""
        fields = {"sport": PORT, "dport": 80}
        self.send(self.ip() / TCP(**fields, flags="S", seq=1000))
        connection = proxy.open()
        answer = self.receive(lambda tcp: tcp.flags == "SA")
        fields |= {"seq": 1001, "ack": answer.seq + 1}
        self.send(self.ip() / TCP(**fields, flags="A"))
        return connection, fields
