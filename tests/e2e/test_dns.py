"""Resolvers that are asked through the proxy, or directly: answers are right, and nothing leaks."""

import socket
import struct
import threading

import pytest

from lab.dnsservers import (
    ELSEWHERE,
    ELSEWHERE6,
    NAME,
    PORT,
    Unbound,
    answer_to,
    dig,
    dig_full,
    framed,
    getaddrinfo,
    is_truncated,
    query,
    rcode,
    read_framed,
    with_resolver,
)
from lab.faultproxy import OK, reply
from lab.netns import CLIENT_OTHER, NOBODY, PLAIN, RESOLVER, ROUTER_LAN, ROUTER_LAN6, SERVER, SERVER6, SERVER_OTHER
from lab.proxies import HonestProxy, Squid, StrictSquid, Tinyproxy
from lab.wait import WAIT, until


@pytest.fixture
def forwarding(gateway):
    """A gateway that asks resolvers through the proxy."""

    def start(*options, servers=(RESOLVER,), **more):
        servers = [option for server in servers for option in ("--dns-server", server)]
        return gateway("--dns", "proxy", *servers, *options, **more)

    return start


def bridge(space, address=RESOLVER, port=53):
    """A handler for FaultProxy.serve that connects to where the CONNECT wants, or to address."""

    def handle(connection):
        far = space.connect(address, port)
        connection.send(OK)
        there = threading.Thread(target=pump, args=(connection.sock, far), daemon=True)
        there.start()
        pump(far, connection.sock)

    return handle


def pump(source, sink):
    try:
        source.settimeout(None)
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.mark.parametrize("kind", [Squid, Tinyproxy, HonestProxy], ids=["squid", "tinyproxy", "honest"])
def test_forwarding_through_proxies(forwarding, kind, far, lan, client, router, internet, directory, leaks):
    """Every type of record comes through every proxy, also long ones, whoever is asked."""
    kind(internet, directory)
    forwarding()
    for server in (ROUTER_LAN, ROUTER_LAN6, ELSEWHERE, ELSEWHERE6):
        assert dig(client, server, NAME) == [SERVER]
        assert dig(client, server, NAME, "AAAA") == [SERVER6]
        assert dig(client, server, "text.corp.example", "TXT") == ['"hello"']
        assert dig(client, server, "corp.example", "MX") == ["10 mail.corp.example."]
        assert len(dig(client, server, "big.corp.example", "TXT")) == 20
        assert "status: NXDOMAIN" in dig_full(client, server, "nowhere.corp.example")
    assert getaddrinfo(client, with_resolver(directory, ROUTER_LAN), NAME) == sorted([SERVER, SERVER6])
    leaks.assert_none()


def test_pages_by_address_of_a_forwarded_name(forwarding, far, lan, page, client, internet, directory, leaks):
    """With dns 'proxy' names have their real addresses, and these go into CONNECT."""
    squid = Squid(internet, directory)
    forwarding()
    prefix = with_resolver(directory, ROUTER_LAN)
    assert "this is it" in client.run(*prefix, "curl", "-4sS", "-m", "30", f"http://{NAME}:{page.port}/", env=PLAIN).stdout
    until(lambda: f"CONNECT {SERVER}:{page.port}" in squid.log(), "the address in squid's log")
    leaks.assert_none()


def test_long_answers_are_truncated_and_had_over_tcp(forwarding, proxy, far, client, router, internet):
    proxy.serve(bridge(internet))
    forwarding()
    for space, server, port in ((router, "127.0.0.1", PORT), (client, ELSEWHERE, 53), (client, ELSEWHERE6, 53)):
        sock = space.socket(server, socket.SOCK_DGRAM)
        sock.settimeout(WAIT)
        for edns, limit in ((None, 512), ((1232, False), 1232), ((4096, True), 1232)):
            sock.sendto(query("big.corp.example", 16, edns=edns), (server, port))
            answer = sock.recv(65535)
            assert is_truncated(answer) and len(answer) <= limit and rcode(answer) == 0
        stream = space.connect(server, port)
        stream.sendall(framed(query("big.corp.example", 16)))
        answer = read_framed(stream)
        assert not is_truncated(answer) and len(answer) > 4000


def test_one_connection_carries_all(forwarding, proxy, far, client, router, internet, leaks):
    """Queries are pipelined, answers cached, and a client's connection serves for many."""
    proxy.serve(bridge(internet))
    forwarding()
    stream = client.connect(ELSEWHERE, 53)
    names = [f"{number}.nowhere.corp.example" for number in range(50)]
    stream.sendall(b"".join(framed(query(name, number=number)) for number, name in enumerate(names)))
    answers = {struct.unpack("!H", answer[:2])[0]: answer for answer in (read_framed(stream) for _ in names)}
    assert sorted(answers) == list(range(50)) and all(rcode(answer) == 3 for answer in answers.values())
    assert len(proxy.connections) == 1
    asked = len(far.queries())
    for _ in range(5):
        assert dig(router, "127.0.0.1", NAME, port=PORT) == [SERVER]
        assert "status: NXDOMAIN" in dig_full(router, "127.0.0.1", names[0], port=PORT)
    assert len(far.queries()) == asked + 1, "the rest came from the cache"
    # The client has said all it wanted to say, and still gets its answers.
    stream = client.connect(ELSEWHERE, 53)
    stream.sendall(framed(query("more.corp.example")))
    stream.shutdown(socket.SHUT_WR)
    assert rcode(read_framed(stream)) == 3
    assert stream.recv(1) == b""
    leaks.assert_none()


@pytest.mark.once(why="how names are answered knows no path")
def test_equal_queries_share_an_answer(forwarding, proxy, client, internet):
    forwarding()
    socks = [client.socket(ELSEWHERE, socket.SOCK_DGRAM) for _ in range(5)]
    for number, sock in enumerate(socks):
        sock.settimeout(WAIT)
        sock.sendto(query("WWW.corp.example" if number % 2 else NAME, number=number), (ELSEWHERE, 53))
    connection = proxy.open()
    assert connection.target == f"{RESOLVER}:53"
    asked = read_framed(connection.sock)
    connection.send(framed(answer_to(asked, SERVER)))
    for number, sock in enumerate(socks):
        answer = sock.recv(1000)
        assert answer[:2] == struct.pack("!H", number) and answer.endswith(socket.inet_aton(SERVER))
        assert (b"WWW" in answer) == bool(number % 2), "each has its own spelling"
    connection.sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        connection.sock.recv(1)


@pytest.mark.once(why="how names are answered knows no path")
def test_a_connection_that_ends_is_made_again(forwarding, proxy, client):
    """The resolver may close at any time: the next query, and one that waits, get a new connection."""
    forwarding()
    sock = client.socket(ELSEWHERE, socket.SOCK_DGRAM)
    sock.settimeout(WAIT)
    for number in range(3):
        sock.sendto(query(f"{number}.example"), (ELSEWHERE, 53))
        connection = proxy.open()
        asked = read_framed(connection.sock)
        if number == 2:
            connection.close()  # without an answer
            connection = proxy.open()
            assert read_framed(connection.sock) == asked
        connection.send(framed(answer_to(asked, SERVER)))
        assert sock.recv(1000).endswith(socket.inet_aton(SERVER))
        connection.close()


@pytest.mark.once(why="how names are answered knows no path")
def test_failover_between_resolvers(forwarding, proxy, client):
    """Who can't be connected, is silent or ends without an answer, makes way for the next one, who stays."""
    forwarding(servers=("192.0.2.1", "192.0.2.2:5300"))
    sock = client.socket(ELSEWHERE, socket.SOCK_DGRAM)
    sock.settimeout(WAIT)

    def ask(number, *steps):
        sock.sendto(query(f"{number}.example"), (ELSEWHERE, 53))
        for target, step in steps:
            connection = proxy.accept_request()
            assert connection.target == target
            step(connection)
        assert sock.recv(1000).endswith(socket.inet_aton(SERVER))
        return connection

    def answers(connection):
        connection.send(OK)
        connection.send(framed(answer_to(read_framed(connection.sock), SERVER)))

    one, two = "192.0.2.1:53", "192.0.2.2:5300"
    ask(1, (one, lambda connection: connection.send(reply(503))), (two, answers)).close()
    ask(2, (two, answers)).close()
    ask(3, (two, lambda connection: (connection.send(OK), connection.close())), (one, answers)).close()
    ask(4, (one, lambda connection: connection.send(OK)), (two, answers)).close()  # silent for 4 s
    ask(5, (two, lambda connection: None), (one, answers)).close()  # the proxy is silent


@pytest.mark.once(why="how names are answered knows no path")
def test_nobody_answers(forwarding, proxy, client):
    """The client is told soon, and the next one at once."""
    forwarding()
    sock = client.socket(ELSEWHERE, socket.SOCK_DGRAM)
    sock.settimeout(WAIT)
    sock.sendto(query("a.example"), (ELSEWHERE, 53))
    proxy.open(reply(503)).close()
    assert rcode(sock.recv(1000)) == 2
    sock.sendto(query("b.example"), (ELSEWHERE, 53))
    assert rcode(sock.recv(1000)) == 2
    assert not proxy.pending()


@pytest.mark.once(why="how names are answered knows no path")
def test_a_proxy_that_forbids_port_53(forwarding, client, internet, directory, leaks):
    """Squid as Debian ships it: the log says what to do, once, and clients are told at once."""
    StrictSquid(internet, directory)
    daemon = forwarding()
    assert "status: SERVFAIL" in dig_full(client, ELSEWHERE, "first.example")
    # All in a moment, as it says it again after 10 s.
    sock = client.socket(ELSEWHERE, socket.SOCK_DGRAM)
    sock.settimeout(WAIT)
    for number in range(10):
        sock.sendto(query(f"{number}.example"), (ELSEWHERE, 53))
        assert rcode(sock.recv(1000)) == 2
    lines = [line for line in daemon.log().splitlines() if "forbids CONNECT to port 53" in line]
    assert len(lines) == 1 and "403" in lines[0] and "SSL_ports" in lines[0] and "dns 'fakeip'" in lines[0]
    leaks.assert_none()


def test_without_dns_nothing_is_touched(gateway, client, router, internet, directory):
    gateway()
    Unbound(internet, directory, [RESOLVER], [f"{NAME}. 60 IN A {SERVER}"])
    assert dig(client, RESOLVER, NAME, "A") == [SERVER]
    assert not [line for line in router.run("ss", "-Hlnu").stdout.splitlines() if f":{PORT}" in line]


@pytest.mark.once(why="how names are answered knows no path")
def test_a_port_that_is_taken(gateway, router, directory):
    """The start fails with a word about it, and nothing is captured or left."""
    taken = router.listen("127.0.0.1", PORT)
    daemon = gateway("--dns", "proxy", ready=False)
    assert daemon.wait() == 1
    assert f"127.0.0.1:{PORT}" in daemon.log()
    daemon.assert_clean()
    taken.close()


# --- domains that are resolved directly ---


def test_direct_domains(gateway, proxy, far, client, router):
    """They go to their own resolver, past the proxy; over TCP if need be."""
    gateway("--dns", "proxy", "--direct-domain", "corp.example", "--direct-server", RESOLVER)
    assert dig(client, ELSEWHERE, NAME) == [SERVER]
    assert dig(client, ELSEWHERE, "corp.example", "MX") == ["10 mail.corp.example."]
    assert len(dig(client, ELSEWHERE, "big.corp.example", "TXT")) == 20
    assert "status: NXDOMAIN" in dig_full(client, ELSEWHERE, "nowhere.corp.example")
    assert len(far.queries()) >= 5
    assert not proxy.pending()
    asked = len(far.queries())
    assert dig(router, "127.0.0.1", NAME, port=PORT) == [SERVER]
    assert len(far.queries()) == asked, "from the cache"


@pytest.mark.once(why="how names are answered knows no path")
def test_a_direct_server_that_is_silent(gateway, client, directory):
    """The next one is asked; if there is none, the client is told."""
    gateway("--dns", "proxy", "--direct-domain", "corp.example", "--direct-server", NOBODY)
    assert "status: SERVFAIL" in dig_full(client, ELSEWHERE, NAME)


@pytest.mark.once(why="how names are answered knows no path")
def test_a_direct_server_that_refuses(gateway, far, client, internet, directory):
    """The next one is asked; if there is none, the client is told."""
    zone = 'server:\n    local-zone: "corp.example." always_refuse'
    refusing = Unbound(internet, directory, [SERVER_OTHER], [], name="refusing", extra=zone)
    direct = ("--dns", "proxy", "--direct-domain", "corp.example", "--direct-server", SERVER_OTHER)
    daemon = gateway(*direct, "--direct-server", RESOLVER)
    assert dig(client, ELSEWHERE, NAME) == [SERVER]
    assert refusing.log() and far.queries()
    daemon.stop()
    gateway(*direct)
    assert "status: REFUSED" in dig_full(client, ELSEWHERE, NAME)


# --- bounds ---


@pytest.mark.once(why="how names are answered knows no path")
def test_garbage_does_no_harm(forwarding, proxy, far, client, router, internet):
    """Queries cut off, changed, repeated; connections that say nothing, too much, or break off."""
    proxy.serve(bridge(internet))
    daemon = forwarding()
    whole = query(NAME, edns=(1232, True))
    for server, port, space in (("127.0.0.1", PORT, router), (ELSEWHERE, 53, client)):
        sock = space.socket(server, socket.SOCK_DGRAM)
        for length in range(len(whole)):
            sock.sendto(whole[:length], (server, port))
            sock.sendto(whole[:length] + b"\xff" + whole[length + 1:], (server, port))
        sock.sendto(bytes(5000) if port == PORT else bytes(1400), (server, port))
        for sent in (b"\0", b"\xff\xff" + bytes(100), b"\0\0\0\0", framed(whole)[:-1], framed(b"x" * 5000), framed(whole) * 3):
            stream = space.connect(server, port)
            stream.sendall(sent)
            stream.close()
    assert dig(router, "127.0.0.1", NAME, port=PORT) == [SERVER]
    assert daemon.running()


@pytest.mark.once(why="how names are answered knows no path")
def test_more_connections_than_are_kept(forwarding, proxy, far, router, internet):
    """One more ends one that is idle; all who ask get answers."""
    proxy.serve(bridge(internet))
    forwarding()
    streams = []
    for number in range(100):
        stream = router.connect("127.0.0.1", PORT)
        stream.sendall(framed(query(NAME, number=number)))
        assert read_framed(stream)[:2] == struct.pack("!H", number)
        streams.append(stream)
    ended = until(lambda: sum(has_ended(stream) for stream in streams) >= 36, "connections beyond 64 are ended")
    assert ended and not has_ended(streams[-1])


@pytest.mark.once(why="how names are answered knows no path")
def test_more_connections_that_wait_than_are_kept(forwarding, proxy, router):
    """One that is ended is closed at once, not when its answer comes: it is a file, and these are numbered."""
    forwarding()
    streams = []
    for number in range(100):
        streams.append(router.connect("127.0.0.1", PORT))
        streams[-1].sendall(framed(query(f"{number}.example")))
    proxy.accept()
    # Queries are given up after 10 s, and connections that are idle end after 15 s.
    until(lambda: sum(has_ended(stream) for stream in streams) >= 36, "connections beyond 64 are ended", timeout=6)


def has_ended(stream):
    stream.settimeout(0)
    try:
        return stream.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.mark.once(why="how names are answered knows no path")
def test_a_client_that_takes_no_answers(forwarding, proxy, far, client, router, internet):
    """It is not read from any more, and others are served."""
    proxy.serve(bridge(internet))
    forwarding()
    greedy = router.socket("127.0.0.1")
    greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    greedy.connect(("127.0.0.1", PORT))
    greedy.settimeout(0)
    asked = framed(query("big.corp.example", 16))

    sent = 0

    def is_stuck():
        nonlocal sent
        before = sent
        try:
            while True:
                sent += greedy.send(asked * 10)
        except BlockingIOError:
            return sent == before

    until(is_stuck, "no more is read", interval=0.2)
    assert dig(client, ELSEWHERE, NAME) == [SERVER]


@pytest.mark.once(why="how names are answered knows no path")
def test_a_client_that_asks_for_too_much(forwarding, proxy, client, router):
    """Whatever number of connections it has, there is room for others."""
    forwarding()
    greedy = []
    for number in range(4):
        stream = client.connect(ELSEWHERE, 53)
        stream.sendall(b"".join(framed(query(f"{number}-{n}.example", number=n)) for n in range(100)))
        greedy.append(stream)
    # The others of its connections are refused.
    assert [rcode(read_framed(stream)) for stream in greedy[1:]] == [2, 2, 2]
    connection = proxy.open()
    sock = router.socket("127.0.0.1", socket.SOCK_DGRAM)
    sock.settimeout(WAIT)

    def answer(name):
        asked = read_framed(connection.sock)
        while name not in asked:
            asked = read_framed(connection.sock)
        connection.send(framed(answer_to(asked, SERVER)))

    sock.sendto(query(NAME), ("127.0.0.1", PORT))
    answer(b"corp")
    assert sock.recv(1000).endswith(socket.inet_aton(SERVER))
    other = client.connect(ELSEWHERE, 53, source=CLIENT_OTHER)
    other.sendall(framed(query("other.example")))
    answer(b"other")
    assert read_framed(other).endswith(socket.inet_aton(SERVER))
    # However it asks, it is the same one.
    sock = client.socket(ELSEWHERE, socket.SOCK_DGRAM)
    sock.settimeout(WAIT)
    sock.sendto(query("more.example"), (ELSEWHERE, 53))
    assert rcode(sock.recv(1000)) == 2
