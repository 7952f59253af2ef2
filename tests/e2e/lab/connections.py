"""Connections: whether they come to the proxy or go straight to the server, and whether they carry bytes.

A test whose proxies are scripted (FaultProxy) says with these that "it works".
"""

import contextlib
import errno

from lab.faultproxy import OK
from lab.netns import connecting, finish_connect
from lab.wait import until


def open_tunnel(space, proxy, address, port=80, source=None, source_port=0, answer=OK):
    """A connection from a namespace that the proxy opens: (the client's socket, the proxy's Connection)."""
    near = space.begin_connect(address, port, source, source_port)
    connection = proxy.open(answer)
    assert connection.port == port
    assert finish_connect(near) == 0
    return near, connection


def assert_carries(near, far):
    """Bytes arrive both ways between two connected sockets."""
    near.sendall(b"question")
    assert far.recv(100) == b"question"
    far.sendall(b"answer")
    assert near.recv(100) == b"answer"


def assert_proxied(space, proxy, address, port=80):
    """A connection from a namespace comes to the proxy and works."""
    near, connection = open_tunnel(space, proxy, address, port)
    assert_carries(near, connection.sock)
    near.close()
    connection.close()


def assert_proxied_among_others(space, proxy, address, port):
    """The same, where the proxy may still have connections to other ports waiting; it closes these."""
    near = space.begin_connect(address, port)
    connection = until(lambda: opened(proxy, port), "it comes to the proxy")
    assert finish_connect(near) == 0
    assert_carries(near, connection.sock)
    near.close()
    connection.close()


def opened(proxy, port):
    """Accepts a connection: opens and returns it if it is one to this port, and closes any other."""
    connection = proxy.accept()
    with contextlib.suppress(OSError, AssertionError):  # it has ended by itself
        connection.read_request()
    if b"\r\n\r\n" not in connection.request or connection.port != port:
        connection.close()
        return None
    connection.send(OK)
    return connection


def works(space, proxy, address, port=80):
    """Whether a connection comes to the proxy and is opened."""
    near = space.begin_connect(address, port)
    # Not given up before one of the two: what it has asked for would be there for the next.
    until(lambda: proxy.waits() or not connecting(near), "it comes to the proxy, or is refused")
    result = False
    if proxy.waits():
        connection = proxy.open()
        result = finish_connect(near) == 0
        connection.close()
    near.close()
    return result


def assert_direct(space, listener, proxy=None, source=None):
    """A connection from a namespace goes straight to the server, and the proxy hears nothing of it."""
    near = space.connect(*listener.getsockname()[:2], source=source)
    listener.accept()[0].close()
    near.close()
    assert proxy is None or not proxy.pending()


def refused(space, address, port=80):
    """Whether a connection fails at once, and not for want of an answer."""
    return space.connect_errno(address, port) not in (0, errno.ETIMEDOUT)
