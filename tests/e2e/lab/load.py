#!/usr/bin/env python3
"""Short connections at a fixed rate: a client, and a proxy that is its own server.

    load.py client ADDRESS PORT RATE SECONDS     prints one JSON object at the end
    load.py proxy ADDRESS PORT                   answers each CONNECT with 200, then each line with itself, and closes; for
                                                 port 7 (echo) it goes on
"""

import errno
import json
import select
import socket
import sys
import time

LINE = b"hello, is this connection a good one?\n"
PATIENCE = 20.0
# Open at a time, where the machine is too slow for the rate: fewer than a client may have dialled (max_dials_per_client),
# for of more the oldest give way. All that is due would also be a jam, in which TCP soon waits for longer than we do.
MOST = 100


def client(address, port, rate, seconds):
    """Opens rate connections a second, or as many as the machine can; each sends a line, expects it back, and then the end."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    epoll = select.epoll()
    open_sockets = {}  # by file number: [socket, received, started]
    failures = {}
    done = started = 0
    begin = last = time.monotonic()
    # The longest time that this process itself was kept from running: nobody else's fault.
    stall = 0.0

    def fail(name):
        failures[name] = failures.get(name, 0) + 1

    while True:
        now = time.monotonic()
        stall, last = max(stall, now - last), now
        due = min(int((now - begin) * rate), rate * seconds, started - len(open_sockets) + MOST)
        while started < due:
            started += 1
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            error = sock.connect_ex((address, port))
            if error != errno.EINPROGRESS:
                fail(errno.errorcode.get(error, str(error)))
                sock.close()
                continue
            open_sockets[sock.fileno()] = [sock, b"", now]
            epoll.register(sock, select.EPOLLOUT)
        if started == rate * seconds and not open_sockets:
            break
        for number, _ in epoll.poll(0.001):
            state = open_sockets[number]
            sock = state[0]
            try:
                if not state[1] and (error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                    raise OSError(error, "connect")
                if state[1] == b"":
                    sock.send(LINE)
                    state[1] = b"?"
                    epoll.modify(sock, select.EPOLLIN)
                    continue
                data = sock.recv(100)
                state[1] += data
                if data:
                    continue
                if state[1] == b"?" + LINE:
                    done += 1
                else:
                    fail("wrong data")
            except BlockingIOError:
                continue
            except OSError as error:
                fail(errno.errorcode.get(error.errno, str(error)))
            del open_sockets[number]
            sock.close()
        oldest = next(iter(open_sockets.values()), None)
        if oldest and now - oldest[2] > PATIENCE + stall:
            for sock, _, _ in open_sockets.values():
                fail("timeout")
                sock.close()
            break
    elapsed = time.monotonic() - begin
    result = {"started": started, "done": done, "failures": failures, "rate": round(started / elapsed), "stall": round(stall, 2)}
    print(json.dumps(result))


def proxy(address, port):
    """Serves for ever."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, port), family=family, backlog=4096)
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    sockets, echoes = {}, set()
    while True:
        for number, _ in epoll.poll():
            if number == listener.fileno():
                try:
                    while True:
                        sock, _ = listener.accept()
                        sock.setblocking(False)
                        sockets[sock.fileno()] = sock
                        epoll.register(sock, select.EPOLLIN)
                except BlockingIOError:
                    continue
            sock = sockets[number]
            try:
                data = sock.recv(4096)
                if data.startswith(b"CONNECT ") and data.endswith(b"\r\n\r\n"):
                    if b":7 HTTP" in data:
                        echoes.add(number)
                    sock.send(b"HTTP/1.1 200 OK\r\n\r\n")
                    continue
                if data:
                    sock.send(data)
                    if number in echoes:
                        continue
            except BlockingIOError:
                continue
            except OSError:
                pass
            del sockets[number]
            echoes.discard(number)
            sock.close()


if __name__ == "__main__":
    if len(sys.argv) == 6 and sys.argv[1] == "client":
        client(sys.argv[2], *map(int, sys.argv[3:]))
    elif len(sys.argv) == 4 and sys.argv[1] == "proxy":
        proxy(sys.argv[2], int(sys.argv[3]))
    else:
        sys.exit(__doc__)
