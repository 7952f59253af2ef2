"""Plain HTTP as requests in absolute form: proxies that answer badly, early or not at all, and clients that give up."""

import contextlib
import errno
import select
import socket
import threading
import time
from pathlib import Path

import pytest

from lab.faultproxy import OK, reply, reset
from lab.gateway import upstream
from lab.netns import CLIENT_OTHER, PROXY_OTHER, RESOLVER, SERVER, literal
from lab.plain import ALWAYS, DONE, WRONG, absolute, get, receive, rest
from lab.wait import WAIT

POST = f"POST / HTTP/1.1\r\nHost: {SERVER}\r\n"
EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_connection_that_waits_for_its_first_request_may_end(opened, proxy, end):
    """A browser connects in advance, and proxies wait as long as they like: whatever comes is sent on a new one."""
    for request in get(SERVER), f"{POST}Content-Length: 0\r\n\r\n".encode():
        near, connection = opened()
        getattr(connection, end)()
        near.sendall(request)
        connection = proxy.accept()
        assert receive(connection.sock).split(b"\r\n")[1] == f"Host: {SERVER}".encode()
        connection.send(DONE)
        assert receive(near, DONE) == DONE
        near.close()
    # While its request is under way: a GET is sent again, once.
    near, connection = opened()
    near.sendall(get(SERVER))
    for _ in range(2):
        receive(connection.sock)
        getattr(connection, end)()
        with contextlib.suppress(AssertionError):
            connection = proxy.accept(1)
    assert rest(near).startswith(b"HTTP/1.1 502 ")
    assert not proxy.pending()


def test_a_response_that_nobody_asked_for_belongs_to_nobody(opened, proxy):
    """Whether it comes along with another one or later."""
    near, connection = opened()
    near.sendall(get(SERVER, "/1"))
    receive(connection.sock)
    connection.send(DONE + EVIL)
    assert receive(near, DONE) == DONE
    near.sendall(get(SERVER, "/2"))
    connection = proxy.accept()
    assert receive(connection.sock) == absolute(SERVER, "/2")
    connection.send(DONE)
    assert receive(near, DONE) == DONE
    connection.send(EVIL)
    near.sendall(get(SERVER, "/3"))
    connection = proxy.accept()
    assert receive(connection.sock) == absolute(SERVER, "/3")
    connection.send(DONE)
    assert receive(near, DONE) == DONE


def test_a_response_of_two_lengths_ends_where_its_chunks_do(opened, proxy):
    """And its connection carries nothing more."""
    near, connection = opened()
    near.sendall(get(SERVER))
    receive(connection.sock)
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
    whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    assert receive(near, b"0\r\n\r\n") == whole
    near.sendall(get(SERVER))
    assert receive(proxy.accept().sock) == absolute(SERVER)
    assert connection.sock.recv(1) == b""


@pytest.mark.parametrize("response", [
    b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999999\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nX: " + b"y" * 17_000,
    b"\x15\x03\x01\x00\x02\x02\x46",
    b"HTTP/1.1 20",
    b"",
], ids=["101", "negative", "huge", "long", "tls", "cut", "none"])
def test_what_is_no_response_is_a_502(opened, response):
    near, connection = opened()
    near.sendall(f"{POST}Content-Length: 0\r\n\r\n".encode())
    receive(connection.sock)
    connection.send(response)
    connection.sock.shutdown(socket.SHUT_WR)
    answer = rest(near)
    assert answer.startswith(b"HTTP/1.1 502 ") and answer.endswith(b"Content-Length: 0\r\n\r\n")
    with contextlib.suppress(ConnectionResetError):
        assert connection.sock.recv(1) == b""


@pytest.mark.parametrize("body", [
    b"ffffffffffffffff\r\nab", b"-1\r\nab", b"0x2\r\nab\r\n", b"2\r\nabc\r\n", b"2;" + b"x" * 5000 + b"\r\n", b"2\r\na",
], ids=["huge", "negative", "prefix", "long", "extension", "cut"])
def test_a_broken_body_is_no_whole_one(opened, body):
    """Behind a head that has gone out only a reset tells."""
    near, connection = opened()
    near.sendall(get(SERVER))
    receive(connection.sock)
    connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    connection.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionResetError):
        rest(near)


def test_extensions_of_chunks_stay_behind(opened):
    near, connection = opened()
    near.sendall(get(SERVER))
    receive(connection.sock)
    connection.send(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a="b;c"\r\nok\r\n0;x\r\nT: u\r\n\r\n')
    assert receive(near, b"T: u\r\n\r\n").endswith(b"\r\n\r\n2\r\nok\r\n0\r\nT: u\r\n\r\n")


def test_a_client_that_has_said_all_still_gets_its_responses(opened):
    near, connection = opened()
    near.sendall(get(SERVER, "/1") + get(SERVER, "/2"))
    near.shutdown(socket.SHUT_WR)
    for path in "/1", "/2":
        assert receive(connection.sock) == absolute(SERVER, path)
        connection.send(DONE)
    received = rest(near)
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 2 and received.endswith(b"ok")
    assert connection.sock.recv(1) == b""


def test_a_client_that_leaves_takes_its_request_along(opened):
    """The proxy need not go on for nobody."""
    near, connection = opened()
    near.sendall(f"{POST}Content-Length: 9\r\n\r\nhalf".encode())
    receive(connection.sock, b"half")
    near.close()
    with contextlib.suppress(ConnectionResetError):
        assert connection.sock.recv(1) == b""


@pytest.mark.parametrize("waiting", ["nothing", "requests"])
def test_a_client_that_is_reset_takes_its_request_along(opened, waiting):
    """Also one that has said all, or more than is read before there is a response."""
    near, connection = opened()
    near.sendall(get(SERVER) * (1 if waiting == "nothing" else 99))
    receive(connection.sock)
    if waiting == "nothing":
        near.shutdown(socket.SHUT_WR)
        connection.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.sock.recv(1)
        connection.sock.settimeout(WAIT)
    reset(near)
    with contextlib.suppress(ConnectionResetError):
        assert connection.sock.recv(1) == b""


def test_a_response_may_begin_before_its_request_has_ended(opened):
    """Each goes on as it comes."""
    near, connection = opened()
    near.sendall(f"{POST}Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n".encode())
    receive(connection.sock, b"ab\r\n")
    connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nAB\r\n")
    receive(near, b"AB\r\n")
    near.sendall(b"2\r\ncd\r\n0\r\n\r\n")
    assert receive(connection.sock, b"0\r\n\r\n") == b"2\r\ncd\r\n0\r\n\r\n"
    connection.send(b"2\r\nCD\r\n0\r\n\r\n")
    assert rest(near) == b"2\r\nCD\r\n0\r\n\r\n"


@pytest.mark.parametrize("scheme", ["basic", "digest"])
def test_a_long_body_waits_until_the_proxy_knows_who_sends_it(gateway, client, proxy, scheme):
    """What has gone out can't be sent again: so not all goes before the proxy may have asked for other credentials."""
    gateway(*ALWAYS, upstreams=[upstream(user="me")])
    body = bytes(300_000)
    for number in range(2):
        near = client.connect(SERVER, 80)
        connection = proxy.accept()
        sending = threading.Thread(
            target=near.sendall, args=(f"{POST}Content-Length: {len(body)}\r\n\r\n".encode() + body,), daemon=True)
        sending.start()
        head = receive(connection.sock)
        if scheme == "digest":
            assert (b"Authorization: Basic" in head) == (number == 0)
            assert b"Digest" not in head
            connection.sock.settimeout(1)
            with contextlib.suppress(TimeoutError):
                rest(connection.sock)
            connection.send(b'HTTP/1.1 407 No\r\nProxy-Authenticate: Digest realm="r", nonce="n", qop="auth"\r\n'
                            b"Content-Length: 0\r\n\r\n")
            connection.close()
            connection = proxy.accept()
            assert b"Authorization: Digest" in receive(connection.sock)
        received = 0
        while received < len(body):
            received += len(connection.sock.recv(65536))
        connection.send(DONE)
        near.settimeout(WAIT)
        assert receive(near, DONE) == DONE
        sending.join(WAIT)
        near.close()


DIGEST = b'HTTP/1.1 407 No\r\nProxy-Authenticate: Digest realm="r", nonce="n", qop="auth"\r\nContent-Length: 0\r\n\r\n'


@pytest.mark.parametrize("scheme", ["basic", "digest"])
def test_a_password_is_right_once_the_response_begins(gateway, client, proxy, scheme):
    """Then others come at once, however long that response takes; and a login does not wait for itself."""
    gateway(*ALWAYS, upstreams=[upstream(user="me")])
    near = client.connect(SERVER, 80)
    connection = proxy.accept()
    near.sendall(get(SERVER))
    receive(connection.sock)
    begun = time.monotonic()
    if scheme == "digest":
        connection.send(DIGEST)
        connection = proxy.accept()
        assert b"Authorization: Digest" in receive(connection.sock)
    connection.send(DONE[:-1])
    assert receive(near, DONE[:-1]) == DONE[:-1]
    for _ in range(3):
        client.connect(SERVER, 80)
        proxy.accept()
    assert time.monotonic() < begun + 1.5


def test_who_connects_in_advance_sends_no_password(gateway, client, proxy):
    """So nobody waits for what becomes of it; each request asks, and goes on once the first one is answered."""
    gateway(*ALWAYS, upstreams=[upstream(user="me")])
    opened = [(client.connect(SERVER, 80), proxy.accept()) for _ in range(6)]
    for near, _ in opened[1:]:
        near.sendall(get(SERVER))
    ready, _, _ = select.select([connection.sock for _, connection in opened], [], [], WAIT)
    assert len(ready) == 1
    [first] = [connection for _, connection in opened if connection.sock is ready[0]]
    receive(first.sock)
    first.send(DONE)
    for near, connection in opened[1:]:
        if connection is not first:
            assert b"Proxy-Authorization: Basic " in receive(connection.sock)
            connection.send(DONE)
        assert receive(near, DONE) == DONE


def assert_one_sends_the_password(opened):
    """Of requests on all of these connections the proxy gets one, and refuses its password: all fail."""
    for near, _ in opened:
        near.sendall(get(SERVER))
    [ready], _, _ = select.select([connection.sock for _, connection in opened], [], [], WAIT)
    receive(ready)
    ready.sendall(WRONG)
    for near, connection in opened:
        assert rest(near).startswith(b"HTTP/1.1 502 ")
        with contextlib.suppress(ConnectionResetError):
            assert connection.sock.recv(1) == b""


def test_a_wrong_password_is_sent_once_by_requests_too(gateway, client, proxy):
    gateway(*ALWAYS, upstreams=[upstream(user="me")])
    opened = [(client.connect(SERVER, 80), proxy.accept()) for _ in range(6)]
    assert_one_sends_the_password(opened)
    assert not proxy.pending()


@pytest.mark.once(why="how proxies are judged knows no path")
def test_a_port_is_refused_before_anybody_looks_at_the_password(gateway, client, proxy):
    """As squid's default does it: so this doesn't tell that the password is right, and a wrong one is sent once."""
    gateway(upstreams=[upstream(user="me")])
    near = client.begin_connect(SERVER, 80)
    proxy.open(reply(403)).close()
    opened = [(near, proxy.accept())]
    near.setblocking(True)
    near.settimeout(WAIT)
    for _ in range(3):
        opened.append((client.connect(SERVER, 80), proxy.accept()))
    assert_one_sends_the_password(opened)
    assert {client.connect_errno(SERVER, port) for port in (80, 443)} == {errno.EHOSTUNREACH}
    assert not proxy.pending()


def test_a_request_behind_one_that_was_cut_off_is_sent(opened, router, proxy):
    """The proxy has answered before it took all of a body, and is gone: the next request is another's."""
    router.sysctl("net.ipv4.tcp_wmem", "4096 8192 8192")  # so that a part of both is still on its way
    proxy.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    near, connection = opened()
    body, page = bytes(40_000), bytes(range(250)) * 440
    near.sendall(f"{POST}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    receive(connection.sock)
    time.sleep(0.3)  # nothing tells that all has been read
    connection.send(f"HTTP/1.1 403 No\r\nContent-Length: {len(page)}\r\n\r\n".encode() + page)
    time.sleep(0.3)
    connection.close()  # what it has not read makes this a reset
    time.sleep(0.3)
    head = receive(near)
    received = b""
    while len(received) < len(page):
        received += near.recv(65536)
    assert received == page
    if b"Connection: close" in head:  # it had not read all of the body yet: the machine is busy
        assert near.recv(1) == b""
        return
    near.sendall(get(SERVER))
    connection = proxy.accept()
    assert receive(connection.sock) == absolute(SERVER)
    connection.send(DONE)
    assert receive(near, DONE) == DONE


@pytest.mark.parametrize("fault", ["close", "407"])
def test_another_proxy_gets_what_one_has_failed(gateway, client, fault_proxy, fault):
    """One that closes without a response, or refuses the password, rests as if it had been asked for a tunnel."""
    bad, good = fault_proxy(), fault_proxy(PROXY_OTHER)
    daemon = gateway(*ALWAYS, upstreams=[upstream(user="me"), upstream(PROXY_OTHER)])
    near = client.connect(SERVER, 80)
    near.sendall(get(SERVER))
    for _ in range(2 if fault == "close" else 1):
        connection = bad.accept()
        receive(connection.sock)
        if fault == "407":
            connection.send(WRONG)
        connection.close()
    for _ in range(2):
        connection = good.accept()
        assert receive(connection.sock) == absolute(SERVER)
        connection.send(DONE)
        assert receive(near, DONE) == DONE
        near = client.connect(SERVER, 80)
        near.sendall(get(SERVER))
    assert not bad.pending()
    assert daemon.status()["upstreams"][0]["state"] == "resting"
    assert daemon.log().count("WARN  tcp_over_http::upstream") == 1


def test_a_request_is_moved_once(gateway, client, fault_proxy):
    """However many proxies there are, and one that must not be sent twice never."""
    proxies = [fault_proxy(), fault_proxy(PROXY_OTHER)]
    gateway(*ALWAYS, upstreams=[upstream(), upstream(PROXY_OTHER)])
    near = client.connect(SERVER, 80)
    near.sendall(f"{POST}Content-Length: 0\r\n\r\n".encode())
    connection = proxies[0].accept()
    receive(connection.sock)
    connection.close()
    assert rest(near).startswith(b"HTTP/1.1 502 ")
    near = client.connect(SERVER, 80)
    near.sendall(get(SERVER))
    for proxy in proxies[0], proxies[0], proxies[1]:
        connection = proxy.accept()
        receive(connection.sock)
        connection.close()
    assert rest(near).startswith(b"HTTP/1.1 502 ")
    assert not any(proxy.pending() for proxy in proxies)


@pytest.mark.parametrize("side", ["requests", "responses"])
def test_what_is_kept_in_memory_is_bounded(gateway, client, proxy, side):
    """For each client, too: whoever makes it keep as much as it may leaves small messages to itself, and all to others."""
    daemon = gateway(*ALWAYS, upstreams=[upstream(user="me")])
    line = f"X: {'x' * 15_000}\r\n"

    def carry(more="", source=None):
        near = client.connect(SERVER, 80, source)
        whole = get(SERVER, more=more)
        near.sendall(whole[:10_000])
        time.sleep(0.05 if more else 0)  # so that the rest is read on its own
        near.sendall(whole[10_000:])
        connection = proxy.accept()
        receive(connection.sock)
        answer = DONE.replace(b"\r\n\r\n", f"\r\n{more}\r\n".encode())
        connection.send(answer[:10_000])
        time.sleep(0.05 if more else 0)
        connection.send(answer[10_000:])
        assert receive(near, answer[-20:]) == answer

    def kilobytes():
        status = Path(f"/proc/{daemon.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    carry()
    before, hogs = kilobytes(), []
    for _ in range(300):
        hogs.append(client.connect(SERVER, 80))
        if side == "requests":
            hogs[-1].sendall(f"{POST}{line}Content-Length: 50000\r\n\r\n{'x' * 49_000}".encode())
            proxy.accept()
        else:
            hogs[-1].sendall(get(SERVER))
            connection = proxy.accept()
            receive(connection.sock)
            connection.send(f"HTTP/1.1 200 OK\r\n{line}".encode())
    time.sleep(0.3)
    refused = [hog for hog in hogs if select.select([hog], [], [], 0)[0]]
    # A request's head that comes in pieces may be refused, too.
    status = 431 if side == "requests" else 502
    assert all(rest(hog).startswith(f"HTTP/1.1 {status} ".encode()) for hog in refused)
    assert side == "requests" or len(refused) in range(200, 250)
    assert kilobytes() < before + 5_000
    carry()
    carry(line, CLIENT_OTHER)


@pytest.mark.parametrize("end", ["client", "proxy", "bad"])
def test_nothing_is_lost_to_a_client_that_is_slow(opened, router, end):
    """Whoever ends the connection, and though the client's next request is refused."""
    router.sysctl("net.ipv4.tcp_wmem", "4096 8192 8192")  # so that the rest is still on its way
    near, connection = opened()
    near.sendall(get(SERVER, more="Connection: close\r\n" * (end == "client")) + b"GET / HTTP/1.1\r\n\r\n" * (end == "bad"))
    receive(connection.sock)
    body = bytes(range(250)) * 440
    length = f"Content-Length: {len(body)}\r\n" * (end != "proxy")
    connection.send(f"HTTP/1.1 200 OK\r\n{length}\r\n".encode() + body)
    if end == "proxy":
        connection.close()
    time.sleep(0.3)  # nothing tells what has come
    head = receive(near)
    received = bytearray()
    while len(received) < len(body):
        piece = near.recv(len(body) - len(received))
        assert piece, f"the end behind {len(received)} bytes and {head}"
        received += piece
    assert received == body
    answer = rest(near)
    assert answer.startswith(b"HTTP/1.1 400 ") if end == "bad" else answer == b""


@pytest.mark.parametrize("end", ["half-closed", "close"])
def test_what_the_kernel_has_yet_to_send_is_not_lost(opened, end):
    """However long the client takes for it."""
    near, connection = opened()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    near.sendall(get(SERVER, more="Connection: close\r\n" * (end == "close")))
    if end == "half-closed":
        near.shutdown(socket.SHUT_WR)
    receive(connection.sock)
    body = bytes(range(250)) * 2000
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    threading.Thread(target=connection.send, args=(head + body,), daemon=True).start()
    receive(near)
    received = bytearray()
    while len(received) < len(body) - 60_000:
        received += near.recv(4096)
    time.sleep(4)
    assert received + rest(near) == body


def test_a_refused_request_leaves_the_responses_before_it_alone(opened):
    near, connection = opened()
    near.sendall(get(SERVER))
    receive(connection.sock)
    connection.send(DONE)
    assert receive(near, DONE) == DONE
    near.sendall(b"GET / HTTP/1.1\r\nHost : x\r\n\r\n")
    assert rest(near).startswith(b"HTTP/1.1 400 ")


def test_a_silent_resolver_holds_up_a_request_for_a_moment(gateway, client, internet, proxy):
    """Then it is for the address; and the next one of the same name is not held up again."""
    silent = internet.socket(RESOLVER, socket.SOCK_DGRAM)
    silent.bind((RESOLVER, 53))
    gateway(*ALWAYS, "--resolver", RESOLVER)
    near = client.connect(SERVER, 80)
    connection = proxy.accept()
    for most in 3.5, 0.5:
        begun = time.monotonic()
        near.sendall(get("www.toh.test"))
        assert receive(connection.sock) == absolute(SERVER)
        assert time.monotonic() < begun + most
        connection.send(DONE)
        assert receive(near, DONE) == DONE
    silent.close()


@pytest.mark.parametrize("may_connect", [False, True], ids=["plain", "tunnel"])
def test_where_a_proxy_is_gone_another_one_gets_the_next_request(gateway, client, server, fault_proxy, may_connect):
    """As requests or, where it lets, by a tunnel, in which the client's bytes are as it sent them."""
    proxies = [fault_proxy(), fault_proxy(PROXY_OTHER)]
    daemon = gateway("--connect-timeout", "2", upstreams=[upstream(), upstream(PROXY_OTHER)])
    host = literal(server)
    near = client.begin_connect(server, 80)
    proxies[0].open(b"HTTP/1.1 403 No\r\n\r\n").close()
    connection = proxies[0].accept()
    near.setblocking(True)
    near.settimeout(WAIT)
    near.sendall(get(host, "/1"))
    assert receive(connection.sock) == absolute(host, "/1")
    connection.send(DONE)
    assert receive(near, DONE) == DONE
    proxies[0].listener.close()
    connection.close()
    request = f"POST /2 HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\n\r\nbody".encode()
    near.sendall(request)
    connection = proxies[1].accept_request()
    assert connection.target == f"{host}:80"
    if may_connect:
        connection.send(OK)
        assert receive(connection.sock, b"body") == request
    else:
        connection.send(b"HTTP/1.1 403 No\r\n\r\n")
        connection.close()
        connection = proxies[1].accept()
        assert receive(connection.sock, b"body") == request.replace(b" /2 ", f" http://{host}/2 ".encode())
    connection.send(DONE)
    assert receive(near, DONE) == DONE
    one, two = daemon.status()["upstreams"]
    assert [one["flows"], two["flows"]] == [0, 1]
    assert one["up"] > 50 and two["up"] > 50 and one["state"] == "resting"
