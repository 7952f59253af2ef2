"""The forward path while networks change, links are small, tables are full and many come at once."""

import contextlib
import socket
import threading
import time

import pytest

from lab.connections import open_tunnel
from lab.faultproxy import OK, reset
from lab.forward import HELLO, PORT, echo, handshakes, read, talk
from lab.gateway import upstream
from lab.netns import INTERNET, INTERNET6, finish_connect
from lab.wait import WAIT, until

pytestmark = pytest.mark.path("forward", why="it is about the other one")

BLACK_HOLE = "table inet hole {{ chain c {{ type filter hook prerouting priority -300; tcp dport {} drop; }}; }}"


@contextlib.contextmanager
def download(client, ends, proxy):
    """Bytes that flow all the time, and all of them at the end; yields a function that waits until some have come."""
    near, connection = open_tunnel(client, proxy, ends.server)
    near.settimeout(60)
    stop, total = threading.Event(), [0, 0]

    def send():
        while not stop.is_set():
            connection.sock.sendall(bytes(10_000))
            total[0] += 10_000
            stop.wait(0.01)
        connection.sock.shutdown(socket.SHUT_WR)

    def receive():
        while data := near.recv(65536):
            total[1] += len(data)

    threads = [threading.Thread(target=work) for work in (send, receive)]
    for thread in threads:
        thread.start()

    def goes_on():
        before = total[1]
        until(lambda: total[1] > before + 100_000, "bytes go on", WAIT)

    try:
        goes_on()
        yield goes_on
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        near.close()
        connection.close()
    assert total[0] == total[1]


def test_an_uplink_that_comes_and_goes(forward, client, router, ends, strays):
    """The default route, the link, and networks: each goes and comes, a transfer goes on, what is new is captured."""
    _, proxy = forward()
    number, via = ("-6", INTERNET6) if ":" in ends.server else ("-4", INTERNET)
    with download(client, ends, proxy) as goes_on:
        for _ in range(3):
            router.run("ip", number, "route", "del", "default")
            time.sleep(0.2)
            router.run("ip", number, "route", "add", "default", "via", via)
            goes_on()
        # Other networks: on the uplink, on a link of their own, and the server's own network for a moment.
        for net, device in (("198.18.7.0/24", "wan"), ("10.77.0.0/24", "lan"), ("2001:db8:77::/64", "wan")):
            kind = "-6" if ":" in net else "-4"
            router.run("ip", kind, "route", "add", net, "dev", device)
            goes_on()
            router.run("ip", kind, "route", "del", net, "dev", device)
            goes_on()
        near, connection = open_tunnel(client, proxy, ends.server, 81)
        near.sendall(b"question")
        assert read(connection.sock, 8) == b"question"
        near.close()
    strays.assert_none()


@pytest.mark.parametrize("step", ["SYN", "request", "reply", "answered"])
def test_forgotten_within_a_handshake(gateway, fault_proxy, client, router, ends, strays, hard, step):
    """`conntrack -F` before or after the proxy's answer: the client's SYN is answered in the end, and nothing leaks."""
    proxy, other = fault_proxy(ends.proxy), fault_proxy(ends.proxy, 3129)
    other.serve(echo)
    urls = [upstream(ends.proxy, port) for port in (3128, 3129)]
    gateway("--connect-timeout", "5", "--reply-timeout", "2", upstreams=urls)
    near = client.begin_connect(ends.server, 443)
    if step == "SYN":
        router.forget_connections()
    connection = proxy.accept()
    if step == "request":
        router.forget_connections()
    with contextlib.suppress(OSError, AssertionError):
        connection.read_request()
        if step == "reply":
            router.forget_connections()
        connection.send(OK)
        if step == "answered":
            router.forget_connections()
    proxy.serve(echo)
    if not finish_connect(near, 30):
        # Forgotten once it was answered: reset by what either end says, unless the daemon was not done with it.
        with contextlib.suppress(ConnectionResetError):
            if len(proxy.connections) + len(other.connections) == 1:
                connection.send(b"server's hello")
            near.sendall(HELLO)
            assert near.recv(1) == b"s"
    near.close()
    talk(client, ends, PORT)
    strays.assert_none()


@pytest.mark.parametrize("first", ["black hole", "reset", "closed", "half an answer"])
def test_failover_within_one_syn(gateway, fault_proxy, client, router, internet, ends, strays, hard, first):
    """Whatever the first proxy does, the second gets the client: with the same port, and nothing of the first stays."""
    bad, good = (fault_proxy(ends.proxy, port) for port in (3129, 3128))
    if first == "black hole":
        internet.nft(BLACK_HOLE.format(3129))
    urls = [upstream(ends.proxy, port) for port in (3129, 3128)]
    patience = {"black hole": ("--connect-timeout", "1"), "half an answer": ("--reply-timeout", "2")}
    gateway(*patience.get(first, ()), "--hedge-delay", "0", upstreams=urls)
    near = client.begin_connect(ends.server, 443, ends.client, PORT)
    if first != "black hole":
        connection = bad.accept_request()
        if first == "reset":
            connection.reset()
        elif first == "closed":
            connection.close()
        else:
            connection.send(b"HTTP/1.1 200 ")
    connection = good.open()
    assert connection.sock.getpeername()[:2] == (ends.router, PORT)
    assert finish_connect(near) == 0
    near.sendall(b"question")
    assert read(connection.sock, 8) == b"question"
    near.close()
    assert connection.sock.recv(1) == b""
    connection.close()
    assert not handshakes(router)


def test_a_port_used_again_at_once(forward, client, ends, strays, hard):
    """One port for 20 connections after each other, ended by either side, or by a reset."""
    _, proxy = forward()
    for number in range(20):
        near, connection = open_tunnel(client, proxy, ends.server, 443, ends.client, PORT)
        near.sendall(b"question")
        assert read(connection.sock, 8) == b"question"
        if number % 3 == 0:
            reset(near)
        elif number % 3 == 1:
            reset(connection.sock)
            with pytest.raises(ConnectionResetError):
                near.recv(1)
        else:
            connection.close()
            assert near.recv(1) == b""
            near.close()
        near.close()
        connection.close()
    strays.assert_none()


def test_two_thousand_at_once(forward, client, ends, strays, hard):
    """More than may be held at a time: all get through, and none gets another's bytes."""
    _, proxy = forward("--max-dials", "4096", "--max-dials-per-client", "4096", "--max-flows", "8192", log_level="info")
    proxy.listener.listen(4096)

    def handler(connection):
        connection.send(OK)
        connection.send(f"{connection.target} {connection.sock.getpeername()[1]}\n".encode())
        connection.close()

    proxy.serve(handler)
    socks = [client.begin_connect(ends.server, 1000 + number, ends.client, 20_000 + number) for number in range(2000)]
    for number, sock in enumerate(socks):
        assert finish_connect(sock, 60) == 0
        text = b""
        while not text.endswith(b"\n"):
            text += read(sock, 1)
        target, port = text.split()
        assert target.endswith(f":{1000 + number}".encode())
        assert int(port) == 20_000 + number
        sock.close()
    strays.assert_none()


def test_a_silent_proxy_is_flooded(forward, client, router, ends, strays):
    """512 dials are held, and more SYNs come; when the proxy speaks again all is as before."""
    daemon, proxy = forward("--reply-timeout", "3", "--max-dials", "512", log_level="info")
    socks = [client.begin_connect(ends.server, 443) for _ in range(1500)]
    until(lambda: daemon.status()["flows"]["held"] >= 100, "dials are held")
    for sock in socks:
        sock.close()
    until(lambda: daemon.status()["flows"]["held"] == 0, "none is held", 40)
    assert not handshakes(router)
    while proxy.pending():
        pass
    proxy.serve(echo)
    talk(client, ends, PORT)
    strays.assert_none()


def test_packets_of_ours_are_dropped(forward, client, router, ends, strays):
    """What a full table of connections does: ours do not leave. Nobody gets around the proxy, and all is well after."""
    _, proxy = forward("--connect-timeout", "1")
    proxy.serve(echo)
    talk(client, ends, PORT)
    router.nft("table inet full { chain c { type filter hook output priority -199; ct state new drop; }; }")
    assert client.connect_errno(ends.server, 443, timeout=30) != 0
    router.run("nft", "delete", "table", "inet", "full")
    talk(client, ends, PORT + 1)
    strays.assert_none()
