#!/usr/bin/env python3
"""A client at its worst: asks for new names without end, and keeps connections to as many of them as told. By IPv6 it asks
for addresses of IPv6.

    attack.py SOURCE RESOLVER HOLD     prints "ready" once it holds all, or no more come; goes on until it is killed
"""

import resource
import select
import socket
import struct
import sys
import time

# Queries in flight.
WINDOW = 100
# Connects in flight: fewer than a client may have.
CONNECTS = 60


def query(number, family):
    name = f"n{number}.attack.example"
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    kind = 1 if family == socket.AF_INET else 28  # A, AAAA
    return struct.pack("!HHHHHH", number & 0xFFFF, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


def address_in(reply, family):
    """That of the record at its end, if there is one."""
    answers = struct.unpack_from("!H", reply, 6)[0]
    length = 4 if family == socket.AF_INET else 16
    return socket.inet_ntop(family, reply[-length:]) if answers and reply[3] & 15 == 0 else None


def main(source, resolver, hold):
    resource.setrlimit(resource.RLIMIT_NOFILE, (hold + 1000, hold + 1000))
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    asking = socket.socket(family, socket.SOCK_DGRAM)
    asking.bind((source, 0))
    asking.connect((resolver, 53))
    asking.setblocking(False)
    number = answered = 0
    connecting, held, began, said = [], [], time.monotonic(), False
    while True:
        try:
            while number - answered < WINDOW:
                asking.send(query(number, family))
                number += 1
        except OSError:
            pass
        if not select.select([asking], [], [], 0.02)[0]:
            answered = number  # lost
        try:
            while True:
                address = address_in(asking.recv(1500), family)
                answered += 1
                if address and len(held) + len(connecting) < hold and len(connecting) < CONNECTS:
                    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                    sock.bind((source, 0))
                    sock.connect_ex((address, 443))
                    connecting.append(sock)
        except OSError:
            pass
        if connecting:
            # Not select(), which knows 1,024 files only.
            poll = select.poll()
            for sock in connecting:
                poll.register(sock, select.POLLOUT)
            ready = {number for number, _ in poll.poll(0)}
            for sock in [sock for sock in connecting if sock.fileno() in ready]:
                connecting.remove(sock)
                (held.append if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0 else socket.socket.close)(sock)
        if not said and (len(held) >= hold or time.monotonic() - began > 15):
            said = True
            print("ready", len(held), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
