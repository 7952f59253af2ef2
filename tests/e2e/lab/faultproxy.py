"""A scripted CONNECT proxy: the test accepts each connection and decides what becomes of it.

    proxy = FaultProxy(internet, PROXY, 3128)
    connection = proxy.accept_request()  # the gateway dialled and sent its CONNECT
    connection.send(OK)  # from here on connection.sock is the far end of the client's connection
"""

import contextlib
import select
import socket
import struct
import threading

from lab.wait import WAIT

OK = b"HTTP/1.1 200 Connection established\r\n\r\n"


def reply(status, reason="Because"):
    """A reply that ends at once, as proxies send with an error."""
    return f"HTTP/1.1 {status} {reason}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


class FaultProxy:
    """A listener of which every step is scripted."""

    def __init__(self, space, address, port=3128, backlog=1024):
        self.space, self.address, self.port = space, address, port
        self.listener = space.listen(address, port, backlog)
        self.connections = []
        self.threads = []

    def accept(self, timeout=WAIT):
        """The next connection of the gateway; fails if none comes."""
        self.listener.settimeout(timeout)
        try:
            sock, _ = self.listener.accept()
        except TimeoutError:
            raise AssertionError(f"nobody came to the proxy within {timeout:g} s") from None
        sock.settimeout(WAIT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(sock)
        self.connections.append(connection)
        return connection

    def waits(self):
        """Whether a connection waits to be accepted; it goes on waiting."""
        return bool(select.select([self.listener], [], [], 0)[0])

    def pending(self):
        """The same, but it is accepted and closed."""
        self.listener.settimeout(0)
        try:
            sock, _ = self.listener.accept()
        except BlockingIOError:
            return False
        sock.close()
        return True

    def accept_request(self):
        """Accepts a connection and its request; the answer is up to the test."""
        connection = self.accept()
        connection.read_request()
        return connection

    def open(self, answer=OK):
        """Accepts a connection and its request, and answers."""
        connection = self.accept_request()
        connection.send(answer)
        return connection

    def serve(self, handler):
        """From now on handler(connection) is called with each connection, in its own thread, after its request."""

        def one(connection):
            try:
                connection.read_request()
                handler(connection)
            except (OSError, AssertionError):
                connection.close()

        def loop():
            while True:
                try:
                    sock, _ = self.listener.accept()
                except OSError:
                    return
                sock.settimeout(WAIT)
                connection = Connection(sock)
                self.connections.append(connection)
                threading.Thread(target=one, args=(connection,), daemon=True).start()

        self.listener.settimeout(None)
        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        self.threads.append(thread)
        return self

    def close(self):
        """Ends the listener and all connections."""
        with contextlib.suppress(OSError):
            # Wakes a thread in accept(), which close() alone does not.
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(WAIT)
        for connection in self.connections:
            connection.close()


class Connection:
    """One connection with the gateway, as the proxy sees it."""

    def __init__(self, sock):
        self.sock = sock
        self.request = b""

    def read_request(self):
        """Reads to the end of the request's head; returns it. Nothing may follow the head before the reply."""
        while b"\r\n\r\n" not in self.request:
            data = self.sock.recv(65536)
            assert data, f"the gateway closed within its request: {self.request!r}"
            self.request += data
        return self.request

    @property
    def target(self):
        """What the CONNECT asked for."""
        method, target, _ = self.request.split(b"\r\n")[0].decode().split(" ")
        assert method == "CONNECT", method
        return target

    @property
    def port(self):
        """The port that the CONNECT asked for."""
        return int(self.target.rpartition(":")[2])

    def header(self, name):
        """The value of a header of the request, or None."""
        for line in self.request.split(b"\r\n")[1:]:
            key, _, value = line.decode().partition(":")
            if key.lower() == name.lower():
                return value.strip()
        return None

    def send(self, data):
        self.sock.sendall(data)

    def close(self):
        self.sock.close()

    def reset(self):
        reset(self.sock)


def reset(sock):
    """Closes a socket with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
