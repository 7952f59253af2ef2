"""Plain HTTP as requests in absolute form: each byte of them, before a scripted proxy."""

import errno
import socket
import time

import pytest

from lab.dnsservers import NAME, PORT, dig
from lab.faultproxy import OK, reply
from lab.gateway import PATH, upstream
from lab.netns import RESOLVER, SERVER, SERVER6, literal
from lab.plain import ALWAYS, DONE, WRONG, absolute, get, receive, rest
from lab.servers import Resolver
from lab.wait import WAIT


@pytest.mark.parametrize("status", [403, 405])
def test_the_first_refusal_is_nobodys_failure(gateway, client, server, proxy, status):
    """Its connection goes on as a relay; the next ones are not refused any more, those to other ports are."""
    daemon = gateway()
    near = client.begin_connect(server, 80)
    proxy.open(reply(status)).close()
    connection = proxy.accept()
    near.setblocking(True)
    near.settimeout(WAIT)
    host = literal(server)
    for path in ("/a", "/b"):
        near.sendall(get(host, path))
        assert receive(connection.sock) == absolute(host, path)
        connection.send(DONE)
        assert receive(near, DONE) == DONE
    daemon.wait_log("refuses CONNECT to port 80")
    assert "WARN  tcp_over_http::upstream" not in daemon.log()
    near = client.connect(server, 80)
    near.sendall(get(host))
    assert receive(proxy.accept().sock) == absolute(host)
    other = client.begin_connect(server, 8080)
    assert proxy.accept_request().target == f"{host}:8080"
    other.close()
    assert [one["opened"] for one in daemon.status()["upstreams"]] == [2]


def test_packets_behind_a_refusal_go_to_the_relay(gateway, client, server, proxy):
    """What conntrack knows of the handshake with the proxy would lead them there: a matter of luck, so eight times."""
    gateway("--http-port", "80-87")
    for port in range(80, 88):
        near = client.begin_connect(server, port)
        proxy.open(reply(403)).close()
        connection = proxy.accept()
        near.setblocking(True)
        near.settimeout(WAIT)
        near.sendall(get(f"{literal(server)}:{port}"))
        assert receive(connection.sock).startswith(b"GET http://")


def test_who_refuses_tls_as_well_refuses_the_client(gateway, client, proxy):
    gateway()
    for port in (443, 80):
        proxy.serve(lambda connection: (connection.send(reply(403)), connection.close()))
        assert client.connect_errno(SERVER, port) == errno.EHOSTUNREACH
    assert client.connect_errno(SERVER, 80) == errno.EHOSTUNREACH


def test_ports_are_configured(gateway, client, proxy):
    gateway(*ALWAYS, "--http-port", "8000-8080")
    near = client.connect(SERVER, 8080)
    near.sendall(get(SERVER))
    assert receive(proxy.accept().sock) == absolute(f"{SERVER}:8080")
    other = client.begin_connect(SERVER, 80)
    assert proxy.accept_request().target == f"{SERVER}:80"
    other.close()


def test_never_is_never(gateway, client, proxy):
    gateway("--http-relay", "never")
    proxy.serve(lambda connection: (connection.send(reply(403)), connection.close()))
    assert client.connect_errno(SERVER, 80) == errno.EHOSTUNREACH


# What a client sends, and what the proxy gets of it.
POST = "POST / HTTP/1.1\r\nHost: x\r\n"
PINNED = f"POST http://{SERVER}/ HTTP/1.1\r\nHost: {SERVER}\r\n"
REFUSED = [
    # Lengths that two readers may take differently.
    POST + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    POST + "Content-Length: 3\r\nContent-Length: 0\r\n\r\nabc",
    POST + "Content-Length: 3, 3\r\n\r\nabc",
    POST + "Content-Length: +3\r\n\r\nabc",
    POST + "Content-Length: 0x3\r\n\r\nabc",
    POST + "Content-Length: 99999999999999999999\r\n\r\nabc",
    POST + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    POST + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    # Lines that end elsewhere for others.
    "GET / HTTP/1.1\nHost: x\n\n",
    "GET / HTTP/1.1\r\nHost: x\nX: y\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: x\rX: y\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
    "GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    POST + "Content-Length : 3\r\n\r\nabc",
    POST + "Content-Length\t: 3\r\n\r\nabc",
    # Another host.
    f"GET http://other.test/ HTTP/1.1\r\nHost: {SERVER}\r\n\r\n",
    "GET http://other.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n",
    f"GET http://{SERVER}@other.test/ HTTP/1.1\r\nHost: {SERVER}\r\n\r\n",
    f"GET http://{SERVER}?@other.test/ HTTP/1.1\r\nHost: {SERVER}\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "GET / HTTP/1.1\r\n\r\n",
    "CONNECT other.test:25 HTTP/1.1\r\nHost: other.test\r\n\r\n",
    # The proxy's answer could have the password in it.
    "TRACE / HTTP/1.1\r\nHost: x\r\nMax-Forwards: 0\r\n\r\n",
]
PASSED = [
    # Pinned to whom the client has connected to.
    (POST + "Content-Length: 3\r\n\r\nabc", PINNED + "Content-Length: 3\r\n\r\nabc"),
    ("GET / HTTP/1.0\r\n\r\n", f"GET http://{SERVER}/ HTTP/1.0\r\nHost: {SERVER}\r\n\r\n"),
    # What concerns one connection only.
    (POST + "Connection: X-A, keep-alive\r\nX-A: 1\r\nKeep-Alive: 5\r\nTE: gzip\r\nProxy-Authorization: Basic eA==\r\n"
     "Proxy-Connection: x\r\nUpgrade: h2c\r\nX-B: 2\r\nContent-Length: 0\r\n\r\n",
     PINNED + "X-B: 2\r\nContent-Length: 0\r\n\r\n"),
    # Chunks are written anew; what is behind them waits for the response.
    (POST + "Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nA: b\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
     PINNED + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\n"),
    # A request hidden in another's body stays there.
    (POST + "Content-Length: 31\r\n\r\nGET /hidden HTTP/1.1\r\nHost: x\r\n\r\n",
     PINNED + "Content-Length: 31\r\n\r\nGET /hidden HTTP/1.1\r\nHost: x\r\n"),
]


def test_nothing_is_smuggled(opened):
    for request in REFUSED:
        near, connection = opened(request=request.encode())
        assert rest(near).startswith(b"HTTP/1.1 400 "), request
        near.close()
        assert connection.sock.recv(100) == b"", request
    for request, expected in PASSED:
        near, connection = opened(request=request.encode())
        assert receive(connection.sock, expected.encode()[-9:]) == expected.encode()
        connection.sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.sock.recv(1)
        near.close()


def test_responses_are_not_smuggled(opened):
    """What the proxy sends is read as strictly: a response with two ends belongs to nobody."""
    for response in (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
                     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nab", b"HTTP/1.1 200 OK\r\n A: b\r\n\r\n"):
        near, connection = opened()
        near.sendall(get(SERVER))
        receive(connection.sock)
        connection.send(response)
        assert rest(near).startswith(b"HTTP/1.1 502 "), response


def test_names_are_asked_for_if_they_belong_to_the_address(gateway, client, internet, server, proxy):
    """Host goes along if it resolves to the address that the client has connected to; else it is pinned."""
    resolver = Resolver(internet, RESOLVER, {"www.toh.test": [SERVER, SERVER6], "other.toh.test": [RESOLVER]})
    gateway(*ALWAYS, "--resolver", RESOLVER)
    pinned = literal(server)
    for host, asked in ("www.toh.test", "www.toh.test"), ("other.toh.test", pinned), (f"{pinned}:80", pinned):
        near = client.connect(server, 80)
        near.sendall(get(host))
        assert receive(proxy.accept().sock) == absolute(asked)
        near.close()
    resolver.close()


@pytest.mark.native(why="rules of its own")
def test_the_name_of_a_fake_address_is_asked_for(gateway, client, router, proxy, directory):
    gateway(*ALWAYS, "--dns", "fakeip", "--fakeip-file", directory / "names")
    for kind in ("A",) if PATH == "forward" else ("A", "AAAA"):  # those of the proxy's family
        address, = dig(router, "127.0.0.1", NAME, kind, port=PORT)
        for host in (NAME, "other.test", ""):
            near = client.connect(address, 80)
            near.sendall(get(host))
            assert receive(proxy.accept().sock) == absolute(NAME)
            near.close()


def test_heads_are_bounded(opened):
    """431 for one of more than 16 KiB, 408 for one that does not end within 10 s."""
    near, _ = opened()
    near.sendall(get(SERVER, more=f"X: {'y' * 17000}\r\n"))
    assert rest(near).startswith(b"HTTP/1.1 431 ")
    near, _ = opened()
    near.sendall(b"GET / HTTP/1.1\r\n")
    begun = time.monotonic()
    assert rest(near).startswith(b"HTTP/1.1 408 ")
    assert 8 < time.monotonic() - begun < 15


def test_expectations_and_interim_responses(opened):
    near, connection = opened()
    head = POST + "Expect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    near.sendall(head.encode())
    assert receive(connection.sock) == (PINNED + "Expect: 100-continue\r\nContent-Length: 4\r\n\r\n").encode()
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    connection.send(hint)
    assert receive(near, hint) == hint
    near.sendall(b"body")
    assert receive(connection.sock, b"body") == b"body"
    connection.send(DONE)
    assert receive(near, DONE) == DONE


def test_a_refused_expectation_ends_the_connection(opened):
    """Nobody can tell whether the client still sends the body."""
    near, connection = opened()
    near.sendall((POST + "Expect: 100-continue\r\nContent-Length: 4\r\n\r\n").encode())
    receive(connection.sock)
    connection.send(b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")
    assert rest(near) == b"HTTP/1.1 417 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def test_a_response_comes_before_the_body_has_gone(opened):
    """And arrives, though the proxy takes nothing more."""
    near, connection = opened()
    near.sendall((PINNED.replace(f"http://{SERVER}", "") + "Content-Length: 50000000\r\n\r\n").encode())
    receive(connection.sock)
    near.settimeout(1)
    with pytest.raises(TimeoutError):
        near.sendall(bytes(50_000_000))
    near.settimeout(WAIT)
    connection.send(b"HTTP/1.1 413 Too much\r\nContent-Length: 2\r\n\r\nno")
    connection.close()  # what it has not read makes this a reset
    assert rest(near) == b"HTTP/1.1 413 Too much\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"


@pytest.mark.parametrize("response", [
    b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nbytes\r\n\r\nto the end", b"HTTP/1.0 200\n\nbytes to the end",
], ids=["1.1", "1.0"])
def test_a_response_may_end_with_the_connection(opened, response):
    near, connection = opened()
    near.sendall(get(SERVER))
    receive(connection.sock)
    connection.send(response)
    connection.close()
    head, body = rest(near).split(b"\r\n\r\n", 1)
    assert b"Connection: close" in head and response.endswith(b"\n\n" + body if b"\r" not in response else body)


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_connection_that_the_proxy_has_kept_may_end(opened, proxy, end):
    """Before the next request, or when it comes: a GET is sent again, and the client sees nothing of it."""
    near, connection = opened()
    near.sendall(get(SERVER, "/1"))
    receive(connection.sock)
    connection.send(DONE)
    assert receive(near, DONE) == DONE
    getattr(connection, end)()
    near.sendall(get(SERVER, "/2"))
    connection = proxy.accept()
    assert receive(connection.sock) == absolute(SERVER, "/2")
    connection.send(DONE)
    assert receive(near, DONE) == DONE
    # While the request is under way.
    near.sendall(get(SERVER, "/3"))
    receive(connection.sock)
    getattr(connection, end)()
    connection = proxy.accept()
    assert receive(connection.sock) == absolute(SERVER, "/3")
    connection.send(DONE)
    assert receive(near, DONE) == DONE
    # Not twice, as nobody knows what became of the first one. Browsers do it: where a kept connection has ended, but not
    # behind a 502.
    near.sendall(POST.encode() + b"Content-Length: 0\r\n\r\n")
    receive(connection.sock)
    getattr(connection, end)()
    with pytest.raises(ConnectionResetError):
        rest(near)
    assert not proxy.pending()


def test_an_upgrade_becomes_a_tunnel(opened, server):
    """101: then bytes, each side ending for itself."""
    near, connection = opened(server)
    near.sendall(get("x", "/chat", "Connection: Upgrade\r\nUpgrade: websocket\r\n"))
    head = receive(connection.sock)
    assert head == absolute(literal(server), "/chat", "Connection: Upgrade\r\nUpgrade: websocket\r\n")
    answer = b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    connection.send(answer + b"early")
    assert receive(near, b"early") == answer + b"early"
    near.sendall(b"up")
    assert connection.sock.recv(100) == b"up"
    near.shutdown(socket.SHUT_WR)
    assert connection.sock.recv(100) == b""
    connection.send(b"down")
    assert near.recv(100) == b"down"
    connection.close()
    assert near.recv(100) == b""


@pytest.mark.parametrize("line", [b"SSH-2.0-client\r\n", b"PRI * HTTP/2.0\r\n", b"USER me 0 * :me\r\n"], ids=["ssh", "h2", "irc"])
def test_what_is_no_http_gets_a_tunnel(opened, server, proxy, line):
    near, _unused = opened(server)
    near.sendall(line)
    connection = proxy.accept_request()
    assert connection.target == f"{literal(server)}:80"
    connection.send(OK + b"SSH-2.0-server\r\n")
    assert receive(near, b"\n") == b"SSH-2.0-server\r\n"
    assert receive(connection.sock, b"\n") == line
    near.shutdown(socket.SHUT_WR)
    assert connection.sock.recv(100) == b""
    connection.send(b"bye")
    connection.close()
    assert rest(near) == b"bye"


def test_what_is_no_http_is_reset_where_there_is_no_tunnel(gateway, client, proxy):
    """And counted, and said once."""
    daemon = gateway(*ALWAYS)
    for _ in range(3):
        near = client.connect(SERVER, 80)
        unused = proxy.accept()
        near.sendall(b"\x16\x03\x01")
        proxy.open(reply(403)).close()
        with pytest.raises(ConnectionResetError):
            near.recv(100)
        assert unused.sock.recv(100) == b""
    assert daemon.log().count("no tunnel for what is no HTTP") == 1
    assert daemon.summary()["flows refused"] == 3


def test_wrong_credentials_are_sent_and_said_once(gateway, client, proxy):
    """The client gets a 502; the proxy rests, and is sent no more of them."""
    daemon = gateway(*ALWAYS, upstreams=[upstream(user="me")])
    near = client.connect(SERVER, 80)
    connection = proxy.accept()
    near.sendall(get(SERVER))
    assert b"\r\nProxy-Authorization: Basic " in receive(connection.sock)
    connection.send(WRONG)
    assert rest(near).startswith(b"HTTP/1.1 502 ")
    assert connection.sock.recv(100) == b""
    for port in 80, 443, 80:
        assert client.connect_errno(SERVER, port) == errno.EHOSTUNREACH
    assert not proxy.pending()
    assert daemon.log().count("WARN  tcp_over_http::upstream") == 1
    assert daemon.status()["upstreams"][0]["state"] == "resting"


def test_requests_follow_one_another(opened, server, proxy):
    """Pipelined by the client, one at a time for the proxy, and in order."""
    near, connection = opened(server)
    near.sendall(b"".join(get("x", f"/{number}") for number in range(3)) + get("x", "/end", "Connection: close\r\n"))
    for path in ("/0", "/1", "/2", "/end"):
        assert receive(connection.sock) == absolute(literal(server), path)
        connection.send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(path)}\r\n\r\n{path}".encode())
    assert [line for line in rest(near).decode().replace("HTTP", "\nHTTP").split() if "/" in line and "." not in line] == [
        "/0", "/1", "/2", "/end"]
    assert not proxy.pending()
