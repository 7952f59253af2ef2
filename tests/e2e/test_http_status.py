"""Plain HTTP as requests in absolute form: what is told of such connections, and who may end them."""

import json
import time

import pytest

from lab.faultproxy import reply
from lab.gateway import upstream
from lab.netns import PROXY_OTHER, SERVER
from lab.plain import ALWAYS, DONE, WRONG, absolute, get, receive
from lab.wait import until

OTHER = f"{PROXY_OTHER}:3128"
BLACK_HOLE = "table inet hole {{ chain in {{ type filter hook input priority 0; ip daddr {} drop; }}; }}"


def test_they_are_counted_while_they_last(gateway, client, proxy):
    """As flows of their proxy and their client, and their bytes as they come."""
    daemon = gateway(*ALWAYS)
    near = client.connect(SERVER, 80)
    connection = proxy.accept()
    near.sendall(get(SERVER))
    receive(connection.sock)
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n")
    receive(near)
    for sent in 100_000, 200_000:
        connection.send(bytes(100_000))
        received = 0
        while received < 100_000:
            received += len(near.recv(100_000 - received))
        one, = daemon.status()["upstreams"]
        assert one["flows"] == 1
        assert sent <= one["down"] < sent + 200 and 50 < one["up"] < 200
        of_client, = json.loads(daemon.command("clients", "--json").stdout)["clients"]
        assert [of_client[key] for key in ("flows", "up", "down")] == [1, one["up"], one["down"]]
    connection.close()
    until(lambda: daemon.status()["upstreams"][0]["flows"] == 0, "its end")
    assert daemon.status()["upstreams"][0]["down"] == one["down"]


@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_whoever_goes_over_to_another_proxy_may_end_them(gateway, client, proxy):
    daemon = gateway(*ALWAYS, upstreams=[upstream(), upstream(PROXY_OTHER)])
    near = client.connect(SERVER, 80)
    connection = proxy.accept()
    near.sendall(get(SERVER))
    receive(connection.sock)
    connection.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npart")
    receive(near, b"part")
    assert daemon.command("use", OTHER, "--reset").stdout == f"new connections use {OTHER}; 1 others reset\n"
    with pytest.raises(ConnectionResetError):
        near.recv(1)
    assert connection.sock.recv(1) == b""
    one = daemon.status()["upstreams"][0]
    assert one["flows"] == 0 and one["down"] > 40


@pytest.mark.native(why="new runs")
def test_what_is_known_of_a_proxy_outlasts_a_reload(configured, client, proxy):
    """While it is the same one: no client is refused once more, and a password that was hashed is."""
    daemon = configured.write(upstreams=[upstream(user="me")]).start()
    near = client.begin_connect(SERVER, 80)
    connection = proxy.accept_request()
    connection.send(b'HTTP/1.1 407 No\r\nProxy-Authenticate: Digest realm="r", nonce="n"\r\nContent-Length: 0\r\n\r\n')
    connection.close()
    connection = proxy.accept_request()
    assert connection.header("Proxy-Authorization").startswith("Digest ")
    connection.send(reply(403))
    connection.close()
    connection = proxy.accept()
    near.close()
    connection.close()
    configured.reload("changed", main="option keepalive 77", upstreams=[upstream(user="me")])
    near = client.connect(SERVER, 80)
    connection = proxy.accept()
    near.sendall(get(SERVER))
    head = receive(connection.sock)
    assert head.startswith(absolute(SERVER).split(b"\r\n")[0]) and b"Authorization: Digest " in head
    connection.send(DONE)
    assert receive(near, DONE) == DONE
    assert daemon.status()["upstreams"][0]["refused_403"] == 1


@pytest.mark.native(why="new runs")
def test_a_reload_counts_for_the_next_request(configured, client, proxy, fault_proxy):
    """Where the proxy has not kept its connection: the new proxy is asked for what the old one has begun."""
    always = "option http_relay always"
    configured.write(main=always).start()
    near = client.connect(SERVER, 80)
    connection = proxy.accept()
    near.sendall(get(SERVER, "/1"))
    assert receive(connection.sock) == absolute(SERVER, "/1")
    connection.send(DONE.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
    assert receive(near, DONE) == DONE
    other = fault_proxy(PROXY_OTHER)
    configured.reload("changed", main=always, upstreams=[upstream(PROXY_OTHER)])
    near.sendall(get(SERVER, "/2"))
    connection = other.accept()
    assert receive(connection.sock) == absolute(SERVER, "/2")
    connection.send(DONE)
    assert receive(near, DONE) == DONE
    assert not proxy.pending()


@pytest.mark.native(why="new runs")
def test_a_new_password_counts_for_connections_that_are_kept(configured, client, proxy):
    """The old one is no longer right, which is nobody's failure."""
    always = "option http_relay always"
    daemon = configured.write(main=always, upstreams=[upstream(user="me")]).start()
    near = client.connect(SERVER, 80)
    connection = proxy.accept()
    near.sendall(get(SERVER, "/1"))
    old = receive(connection.sock)
    connection.send(DONE)
    assert receive(near, DONE) == DONE
    configured.reload("changed", main=always, upstreams=[upstream(user="you")])
    near.sendall(get(SERVER, "/2"))
    assert receive(connection.sock) == old.replace(b"/1", b"/2", 1)
    connection.send(WRONG)
    connection.close()
    connection = proxy.accept()
    new = receive(connection.sock)
    assert b"\r\nProxy-Authorization: Basic " in new and new != old.replace(b"/1", b"/2", 1)
    connection.send(DONE)
    assert receive(near, DONE) == DONE
    assert "WARN  tcp_over_http::upstream" not in daemon.log()


@pytest.mark.long
@pytest.mark.once(why="how proxies are chosen and asked knows no path")
def test_those_of_a_silent_proxy_are_reset(gateway, client, proxy, internet):
    daemon = gateway(*ALWAYS, "--connect-timeout", "1", "--keepalive", "0", upstreams=[upstream(), upstream(PROXY_OTHER)])
    near = client.connect(SERVER, 80)
    connection = proxy.accept()
    near.sendall(get(SERVER))
    receive(connection.sock)
    internet.nft(BLACK_HOLE.format(proxy.address))
    begun = time.monotonic()
    near.settimeout(1)
    with pytest.raises(ConnectionResetError):
        while time.monotonic() < begun + 150:
            try:
                assert near.recv(1)
            except TimeoutError:
                client.begin_connect(SERVER, 80).close()
    assert "1 connections reset" in daemon.log()
