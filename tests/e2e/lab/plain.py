"""Plain HTTP before a scripted proxy: what clients send, and what the proxy gets of it."""

import pytest

from lab.netns import SERVER

ALWAYS = ("--http-relay", "always")
# The answer to a wrong password.
WRONG = b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=r\r\nContent-Length: 0\r\n\r\n"
DONE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def opened(gateway, client, proxy):
    """
    A function that connects a client, whose connection is relayed: (the client's socket, the proxy's). With a request it
    is quicker: the gateway's first bytes complete the connection to the proxy, otherwise a timer does, after 200 ms.
    """
    gateway(*ALWAYS)

    def another(address=SERVER, request=b""):
        near = client.connect(address, 80)
        near.sendall(request)
        return near, proxy.accept()

    return another


def receive(sock, end=b"\r\n\r\n"):
    """Bytes up to this end."""
    received = b""
    while not received.endswith(end):
        piece = sock.recv(1 if end == b"\r\n\r\n" else 4096)
        assert piece, f"the end behind {received!r}"
        received += piece
    return received


def rest(sock):
    """Bytes up to the connection's end."""
    received = b""
    while piece := sock.recv(4096):
        received += piece
    return received


def get(host, path="/", more=""):
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode()


def absolute(host, path="/", more=""):
    return f"GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode()
