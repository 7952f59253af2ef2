"""Proxies that people run: squid, tinyproxy, privoxy, Apache's mod_proxy_connect."""

import errno
import hashlib
import random
import re
import threading

import pytest

from lab.gateway import PASSWORD, upstream
from lab.netns import CLIENT, CLIENT6, PROXY, PROXY6, SERVER, finish_connect, literal
from lab.proxies import Apache, HonestProxy, Privoxy, Squid, StrictSquid, Tinyproxy
from lab.servers import WebServer
from lab.wait import WAIT, until

ALL = [Squid, Tinyproxy, Privoxy, Apache, HonestProxy]


def exchange(client, listener, address, size=4 << 20):
    """A question up and a long answer down, compared by hash; returns the far end's peer address."""
    near = client.connect(address, listener.getsockname()[1])
    far, peer = listener.accept()
    far.settimeout(WAIT)
    data = random.Random(1).randbytes(size)
    near.sendall(b"question")
    assert far.recv(100) == b"question"

    def answer():
        far.sendall(data)
        far.close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    received = hashlib.sha256()
    while piece := near.recv(1 << 18):
        received.update(piece)
    assert received.hexdigest() == hashlib.sha256(data).hexdigest()
    thread.join(WAIT)
    near.close()
    return peer[0]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__.lower())
def test_carries(kind, gateway, client, internet, server, directory, leaks):
    """Bytes arrive, by the proxy's own word through it, and nothing goes around it."""
    listener = internet.listen(server)
    port = listener.getsockname()[1]
    proxy = kind(internet, directory)
    gateway()
    assert exchange(client, listener, server) not in (CLIENT, CLIENT6)
    leaks.assert_none()
    until(lambda: re.search(rf"CONNECT {re.escape(literal(server))}:{port}|{re.escape(server)}\]?:{port}", proxy.log()),
          f"the CONNECT in {kind.__name__}'s log")


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__.lower())
def test_uploads(kind, gateway, client, internet, directory):
    """A long upload, acknowledged at its end by the server."""
    listener = internet.listen(SERVER)
    kind(internet, directory)
    gateway()
    near = client.connect(SERVER, listener.getsockname()[1])
    far, _ = listener.accept()
    far.settimeout(WAIT)
    data = random.Random(2).randbytes(16 << 20)
    thread = threading.Thread(target=near.sendall, args=(data,), daemon=True)
    thread.start()
    received, left = hashlib.sha256(), len(data)
    while left:
        piece = far.recv(min(left, 1 << 18))
        assert piece, f"the end {left} bytes too early"
        received.update(piece)
        left -= len(piece)
    assert received.hexdigest() == hashlib.sha256(data).hexdigest()
    far.sendall(b"thanks")
    far.close()
    assert near.recv(100) == b"thanks"
    assert near.recv(100) == b""
    thread.join(WAIT)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__.lower())
def test_closed_port_fails(kind, gateway, client, internet, directory, leaks):
    """A connection that the proxy could not make is not made. (Which error is the proxy's to tell.)"""
    kind(internet, directory)
    gateway()
    assert client.connect_errno(SERVER, 9) in (errno.ECONNREFUSED, errno.EHOSTUNREACH)
    leaks.assert_none()


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_squid_allows_only_443(gateway, client, internet, directory, leaks):
    """Squid's default forbids CONNECT to other ports: forbidden is what the client sees."""
    StrictSquid(internet, directory)
    gateway()
    tls = internet.listen(SERVER, 443)
    internet.listen(SERVER, 8080)
    assert client.connect_errno(SERVER, 8080) == errno.EHOSTUNREACH
    near = client.connect(SERVER, 443)
    tls.accept()
    near.close()
    leaks.assert_none()


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_squid_with_password(gateway, client, internet, directory):
    listener = internet.listen(SERVER)
    Squid(internet, directory, user="me")
    daemon = gateway(upstreams=(), env={"TCP_OVER_HTTP_UPSTREAM": upstream(user="me")})
    exchange(client, listener, SERVER)
    assert PASSWORD not in daemon.log()


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_squid_with_wrong_password(gateway, client, internet, server, directory):
    listener = internet.listen(server)
    Squid(internet, directory, user="me")
    daemon = gateway(upstreams=[upstream(user="you")])
    error = client.connect_errno(server, listener.getsockname()[1])
    assert error == (errno.EACCES if ":" in server else errno.EHOSTUNREACH)
    daemon.wait_log(r"WARN.*407")


def test_squid_with_digest(gateway, client, internet, server, directory):
    """Squid offers Digest only: the first connection learns it, and none fails, not even many at once."""
    listener = internet.listen(server)
    port = listener.getsockname()[1]
    proxy = Squid(internet, directory, user="me", scheme="digest")
    daemon = gateway(upstreams=[upstream(user="me")])
    exchange(client, listener, server)
    begun = [client.begin_connect(server, port) for _ in range(15)]  # more at once look like a loop
    assert [finish_connect(near) for near in begun] == [0] * len(begun)
    for near in begun:
        near.close()
    near = client.connect(server, port)
    near.close()
    until(lambda: len(re.findall("/200 .* CONNECT ", proxy.log())) >= 17, "squid's log")
    # With Basic and without a nonce it refused; no more often than there were connections without one.
    assert 1 <= proxy.log().count("/407") <= 16
    assert PASSWORD not in daemon.log() and not re.search(r"WARN.*upstream", daemon.log())


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_squid_with_digest_and_wrong_password(gateway, client, internet, server, directory):
    """One login for all connections while the proxy rests, and the log says it once."""
    listener = internet.listen(server)
    proxy = Squid(internet, directory, user="me", scheme="digest")
    daemon = gateway(upstreams=[upstream(user="you")])
    for _ in range(3):
        error = client.connect_errno(server, listener.getsockname()[1])
        assert error == (errno.EACCES if ":" in server else errno.EHOSTUNREACH)
    daemon.wait_log(r"WARN.*407: refuses the credentials")
    assert daemon.log().count("407: refuses") == 1
    until(lambda: proxy.log().count("/407") == 2, "squid's log")


def test_proxy_over_ipv6(gateway, client, internet, server, directory, leaks):
    listener = internet.listen(server)
    Squid(internet, directory)
    gateway(upstreams=[upstream(PROXY6)])
    exchange(client, listener, server)
    leaks.assert_none()


@pytest.mark.once(why="no gateway takes part")
def test_capture_can_see_leaks(network, client, internet, server, leaks):
    """The other tests' proof can fail: without a gateway traffic goes around the proxy, and the capture sees it."""
    listener = internet.listen(server)
    near = client.connect(server, listener.getsockname()[1])
    assert finish_connect(near) == 0
    with pytest.raises(AssertionError, match="went around"):
        leaks.assert_none()


@pytest.mark.once(why="no gateway takes part")
@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__.lower())
def test_harness_proxies_work(kind, client, internet, directory):
    """Each proxy as a client uses it by hand: what fails here is not the gateway's fault."""
    (directory / "page").write_text("hello")
    web = WebServer(internet, SERVER, directory)
    proxy = kind(internet, directory)
    result = client.run(
        "curl", "-sS", "--noproxy", "", "-p", "-x", f"http://{PROXY}:{proxy.port}", f"http://{SERVER}:{web.port}/page"
    )
    web.close()
    assert result.stdout == "hello"
