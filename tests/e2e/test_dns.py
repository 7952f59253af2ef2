"""Names: fake addresses that stand for them, resolvers asked through the proxy, and nothing that leaks."""

import errno
import ipaddress
import socket
import struct
import threading

import pytest

from dnsservers import PLAIN, Dnsmasq, Unbound, dig, dig_full, framed, getaddrinfo, is_truncated, query, rcode, read_framed, with_resolver
from faultproxy import OK, reply
from gateway import PATH, upstream
from netns import CLIENT_OTHER, NOBODY, PROXY, PROXY6, PROXY_OTHER, RESOLVER, ROUTER_LAN, ROUTER_LAN6, SERVER, SERVER6, SERVER_OTHER, connecting, finish_connect
from proxies import HonestProxy, Squid, StrictSquid, Tinyproxy
from servers import WebServer
from test_reload import Configured
from wait import WAIT, until

pytestmark = pytest.mark.native(why="names need marked sockets")

PORT = 5453
RANGE, RANGE6 = ipaddress.ip_network("198.18.0.0/15"), ipaddress.ip_network("fd45:3a::/64")
# A resolver that clients ask on their own; nobody in these networks has the address.
ELSEWHERE, ELSEWHERE6 = "8.8.8.8", "2001:4860:4860::8888"
NAME = "www.corp.example"


@pytest.fixture
def fakeip(gateway, directory):
    """A gateway that answers names with fake addresses."""

    def start(*options, **more):
        return gateway("--dns", "fakeip", "--fakeip-file", directory / "names", *options, **more)

    return start


def resolve(router, name, kind="A"):
    """What our resolver says on the router itself."""
    return dig(router, "127.0.0.1", name, kind, port=PORT)


def is_fake(address):
    address = ipaddress.ip_address(address)
    range = RANGE if address.version == 4 else RANGE6
    return address in range and address not in (range.network_address, range.broadcast_address)


def test_fake_addresses(fakeip, router, leaks):
    """The same name has the same address, over UDP and TCP, from both of the resolver's addresses."""
    fakeip()
    v4, = resolve(router, NAME)
    v6, = resolve(router, NAME, "AAAA")
    assert is_fake(v4) and is_fake(v6)
    assert dig(router, "::1", "WWW.Corp.Example", "A", "+tcp", port=PORT) == [v4]
    assert dig(router, "::1", NAME, "AAAA", port=PORT) == [v6]
    other, = resolve(router, "other.example")
    assert is_fake(other) and other != v4
    assert dig(router, "127.0.0.1", "-x", v4, port=PORT) == [f"{NAME}."]
    for kind in ("HTTPS", "SVCB"):
        full = dig_full(router, "127.0.0.1", NAME, kind, port=PORT)
        assert "status: NOERROR" in full and "ANSWER: 0," in full
    leaks.assert_none()


def test_no_ipv6(fakeip, router):
    fakeip("--ipv6", "0")
    assert is_fake(resolve(router, NAME)[0])
    full = dig_full(router, "127.0.0.1", NAME, "AAAA", port=PORT)
    assert "status: NOERROR" in full and "ANSWER: 0," in full


@pytest.mark.parametrize("kind", ["A", "AAAA"])
def test_connect_carries_the_name(fakeip, proxy, client, router, kind, leaks):
    fakeip()
    address, = resolve(router, NAME, kind)
    for space in (client, router):
        near = space.begin_connect(address, 443)
        connection = proxy.open()
        assert connection.target == f"{NAME}:443"
        assert finish_connect(near) == 0
        near.sendall(b"question")
        assert connection.sock.recv(100) == b"question"
        near.close()
        connection.close()
    leaks.assert_none()


@pytest.mark.parametrize("address", ["198.18.77.77", "198.19.255.254", "fd45:3a::7777", "fd45:3a:0:0:ffff::1"])
def test_an_address_without_a_name_is_refused(fakeip, proxy, client, router, address, leaks):
    fakeip()
    for space in (client, router):
        assert space.connect_errno(address, 443) == errno.ECONNREFUSED
    assert not proxy.pending()
    leaks.assert_none()


def test_fake_addresses_are_captured_whatever_is_bypassed(fakeip, proxy, client, router, leaks):
    fakeip("--bypass", "198.18.0.0/16", "--bypass", "198.0.0.0/8", "--bypass", "fd00::/8", routes=())
    router.run("ip", "route", "add", "198.18.0.0/15", "via", "100.64.0.2")
    for kind in ("A", "AAAA"):
        near = client.begin_connect(resolve(router, NAME, kind)[0], 443)
        connection = proxy.open()
        assert connection.target == f"{NAME}:443"
        assert finish_connect(near) == 0
    leaks.assert_none()


@pytest.mark.parametrize("server", [ELSEWHERE, ELSEWHERE6])
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_hijack(fakeip, proxy, client, router, server, transport, leaks):
    """Whatever resolver a client asks, ours answers."""
    fakeip()
    for space in (client, router):
        address, = dig(space, server, NAME, "A", transport)
        assert is_fake(address)
        assert [address] == resolve(router, NAME)
    assert not proxy.pending()
    leaks.assert_none()


def test_no_hijack(fakeip, client, internet, directory):
    fakeip("--dns-hijack", "0")
    Unbound(internet, directory, [RESOLVER], [f"{NAME}. 60 IN A {SERVER}"])
    assert dig(client, RESOLVER, NAME, "A") == [SERVER]


def test_without_dns_nothing_is_touched(gateway, client, router, internet, directory):
    gateway()
    Unbound(internet, directory, [RESOLVER], [f"{NAME}. 60 IN A {SERVER}"])
    assert dig(client, RESOLVER, NAME, "A") == [SERVER]
    assert not [line for line in router.run("ss", "-Hlnu").stdout.splitlines() if f":{PORT}" in line]


# --- through real proxies, from real clients ---


@pytest.fixture
def lan(router, directory):
    """dnsmasq for the LAN, in front of our resolver, as on a router."""
    return Dnsmasq(router, directory, [ROUTER_LAN, ROUTER_LAN6], [f"127.0.0.1#{PORT}"])


@pytest.fixture
def far(internet, directory):
    """The resolver that proxies ask."""
    return Unbound(internet, directory, [RESOLVER, "127.0.0.1"], RECORDS)


RECORDS = [
    f"{NAME}. 300 IN A {SERVER}",
    f"{NAME}. 300 IN AAAA {SERVER6}",
    "v4.corp.example. 300 IN A 203.0.113.10",
    'text.corp.example. 300 IN TXT "hello"',
    *(f'big.corp.example. 300 IN TXT "{number:03}{"x" * 200}"' for number in range(20)),
    "corp.example. 300 IN MX 10 mail.corp.example.",
    "corp.example. 300 IN SOA ns.corp.example. root.corp.example. 1 3600 600 86400 60",
]


class NamedHonest(HonestProxy):
    """HonestProxy that asks the resolver of the tests."""

    def configure(self, **options):
        return [*with_resolver(self.directory, RESOLVER), *super().configure(**options)]


class NamedTinyproxy(Tinyproxy):
    def configure(self):
        return [*with_resolver(self.directory, RESOLVER), *super().configure()]


@pytest.mark.parametrize("kind", [Squid, NamedTinyproxy, NamedHonest], ids=["squid", "tinyproxy", "honest"])
@pytest.mark.parametrize("path", [ROUTER_LAN, ROUTER_LAN6, ELSEWHERE], ids=["dnsmasq", "dnsmasq6", "hijacked"])
def test_a_page_by_its_name(fakeip, kind, path, lan, far, client, internet, directory, leaks):
    """The proxy resolves, and a page arrives that is only known by name."""
    kind(internet, directory)
    fakeip()
    root = directory / "www"
    root.mkdir()
    (root / "index.html").write_text("this is it")
    web = WebServer(internet, SERVER, root)
    prefix = with_resolver(directory, path)
    for host in (NAME, "v4.corp.example"):
        result = client.run(*prefix, "curl", "-sS", "-m", "30", f"http://{host}:{web.port}/", env=PLAIN)
        assert "this is it" in result.stdout
    assert (NAME, "A") in far.queries()
    web.close()
    leaks.assert_none()


@pytest.mark.parametrize("kind", [Squid, NamedTinyproxy, NamedHonest], ids=["squid", "tinyproxy", "honest"])
def test_a_name_that_does_not_exist(fakeip, kind, far, client, router, internet, directory):
    """It gets an address, and the connection says the truth."""
    kind(internet, directory)
    fakeip()
    address, = resolve(router, "nowhere.corp.example")
    assert client.connect_errno(address, 443) in (errno.EHOSTUNREACH, errno.ECONNREFUSED)


@pytest.mark.parametrize("server", [ROUTER_LAN, ROUTER_LAN6, ELSEWHERE, ELSEWHERE6])
def test_resolvers_of_clients(fakeip, proxy, lan, client, directory, server, leaks):
    """dig, drill, glibc and busybox agree."""
    fakeip()
    v4, = dig(client, server, NAME)
    v6, = dig(client, server, NAME, "AAAA")
    assert is_fake(v4) and is_fake(v6)
    drill = client.run("drill", f"@{server}", NAME, "AAAA", env=PLAIN).stdout
    assert v6 in drill and "rcode: NOERROR" in drill
    assert getaddrinfo(client, with_resolver(directory, server), NAME) == sorted([v4, v6])
    assert getaddrinfo(client, with_resolver(directory, server, options="use-vc edns0 trust-ad"), NAME) == sorted([v4, v6])
    prefix = with_resolver(directory, server)
    assert v4 in client.run(*prefix, "busybox", "nslookup", NAME, env=PLAIN).stdout
    leaks.assert_none()


# --- resolvers asked through the proxy ---


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


def test_pages_by_address_of_a_forwarded_name(forwarding, far, lan, client, internet, directory, leaks):
    """With dns 'proxy' names have their real addresses, and these go into CONNECT."""
    squid = Squid(internet, directory)
    forwarding()
    root = directory / "www"
    root.mkdir()
    (root / "index.html").write_text("this is it")
    web = WebServer(internet, SERVER, root)
    prefix = with_resolver(directory, ROUTER_LAN)
    assert "this is it" in client.run(*prefix, "curl", "-4sS", "-m", "30", f"http://{NAME}:{web.port}/", env=PLAIN).stdout
    until(lambda: f"CONNECT {SERVER}:{web.port}" in squid.log(), "the address in squid's log")
    web.close()
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


def answer_to(asked, address):
    """A reply with an A record."""
    end = asked.index(b"\0", 12) + 5
    record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 300, 4) + socket.inet_aton(address)
    return asked[:2] + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0) + asked[12:end] + record


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


def test_failover_between_resolvers(forwarding, proxy, client):
    """Who can't be connected, is silent or ends without an answer, makes way for the next one, who stays."""
    forwarding(servers=("192.0.2.1", "192.0.2.2:5300"))
    sock = client.socket(ELSEWHERE, socket.SOCK_DGRAM)
    sock.settimeout(WAIT)

    def ask(number, *steps):
        sock.sendto(query(f"{number}.example"), (ELSEWHERE, 53))
        for target, step in steps:
            connection = proxy.accept()
            connection.read_request()
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


def test_other_types_beside_fake_addresses(fakeip, far, client, internet, directory, leaks):
    """They are asked for through the proxy."""
    Squid(internet, directory)
    fakeip("--dns-server", RESOLVER)
    assert is_fake(dig(client, ELSEWHERE, NAME)[0])
    assert dig(client, ELSEWHERE, "text.corp.example", "TXT") == ['"hello"']
    assert dig(client, ELSEWHERE, "corp.example", "MX") == ["10 mail.corp.example."]
    leaks.assert_none()


def test_other_types_where_the_proxy_forbids_to_ask(fakeip, client, internet, directory, leaks):
    """There are none, then."""
    StrictSquid(internet, directory)
    fakeip()
    for _ in range(3):
        full = dig_full(client, ELSEWHERE, "text.corp.example", "TXT")
        assert "status: NOERROR" in full and "ANSWER: 0," in full
    leaks.assert_none()


# --- domains that are resolved directly ---


@pytest.mark.parametrize("mode", ["fakeip", "proxy"])
def test_direct_domains(gateway, mode, proxy, far, client, router, internet, directory):
    """They go to their own resolver, past the proxy; over TCP if need be."""
    gateway(
        "--dns", mode, "--direct-domain", "corp.example", "--direct-server", RESOLVER, "--fakeip-file", directory / "names"
    )
    assert dig(client, ELSEWHERE, NAME) == [SERVER]
    assert dig(client, ELSEWHERE, "corp.example", "MX") == ["10 mail.corp.example."]
    assert len(dig(client, ELSEWHERE, "big.corp.example", "TXT")) == 20
    assert "status: NXDOMAIN" in dig_full(client, ELSEWHERE, "nowhere.corp.example")
    assert len(far.queries()) >= 5
    assert not proxy.pending()
    asked = len(far.queries())
    assert dig(router, "127.0.0.1", NAME, port=PORT) == [SERVER]
    assert len(far.queries()) == asked, "from the cache"
    if mode == "fakeip":
        assert is_fake(dig(client, ELSEWHERE, "www.notcorp.example")[0])


def test_a_direct_server_that_is_silent(gateway, client, directory):
    """The next one is asked; if there is none, the client is told."""
    gateway("--dns", "proxy", "--direct-domain", "corp.example", "--direct-server", NOBODY)
    assert "status: SERVFAIL" in dig_full(client, ELSEWHERE, NAME)


def test_a_direct_server_that_refuses(gateway, far, client, internet, directory):
    """The next one is asked; if there is none, the client is told."""
    refusing = Unbound(internet, directory, [SERVER_OTHER], [], name="refusing", extra='server:\n    local-zone: "corp.example." always_refuse')
    direct = ("--dns", "proxy", "--direct-domain", "corp.example", "--direct-server", SERVER_OTHER)
    daemon = gateway(*direct, "--direct-server", RESOLVER)
    assert dig(client, ELSEWHERE, NAME) == [SERVER]
    assert refusing.log() and far.queries()
    daemon.stop()
    gateway(*direct)
    assert "status: REFUSED" in dig_full(client, ELSEWHERE, NAME)


@pytest.mark.parametrize("name", ["proxy.corp.example", "corp.example"])
def test_the_proxys_own_name(gateway, fault_proxy, client, router, internet, directory, name):
    """It has to be resolved directly, also when the machine's resolver is ours; nothing else has, not even below."""
    far = Unbound(internet, directory, [RESOLVER], [f"{name}. 300 IN A {PROXY}"])
    proxy = fault_proxy()
    gateway(
        "--dns", "fakeip", "--fakeip-file", directory / "names", "--resolver", RESOLVER,
        upstreams=[f"http://{name}:3128"],
    )
    assert dig(client, ELSEWHERE, name) == [PROXY]
    near = client.begin_connect(dig(client, ELSEWHERE, NAME)[0], 443)
    assert proxy.open().target == f"{NAME}:443"
    assert finish_connect(near) == 0
    assert {asked for asked, _ in far.queries()} == {name}


# --- the table ---


def test_names_survive_a_restart(fakeip, proxy, client, router, directory):
    """Who has kept an address over a restart gets to the same name; also if the daemon was asked in mid-use."""
    daemon = fakeip()
    addresses = {name: resolve(router, name)[0] for name in (f"{number}.corp.example" for number in range(20))}
    address6, = resolve(router, "7.corp.example", "AAAA")
    daemon.stop()
    assert "7.corp.example" in (directory / "names").read_text()
    daemon.start()
    for name, address in [*list(addresses.items())[::5], ("7.corp.example", address6)]:
        near = client.begin_connect(address, 443)
        connection = proxy.open()
        assert connection.target == f"{name}:443"
        assert finish_connect(near) == 0
        connection.close()
    assert {name: resolve(router, name)[0] for name in addresses} == addresses
    assert not list(directory.glob("names.*")), "no half-written file is left"


def test_a_damaged_file_does_no_harm(fakeip, proxy, client, router, directory):
    (directory / "names").write_bytes(b"198.18.0.9 kept.example\n198.18.0.9\xff x\nnonsense\n1.2.3.4 alien.example\n" + bytes(100))
    fakeip()
    near = client.begin_connect("198.18.0.9", 443)
    assert proxy.open().target == "kept.example:443"
    near.close()
    assert is_fake(resolve(router, NAME)[0])


def test_more_names_than_the_table_has(fakeip, proxy, client, router):
    """10,000 names through a table of 1,000; a name that a connection uses keeps its address."""
    fakeip("--fakeip-names", "1000", log_level="info")
    address, = resolve(router, NAME)
    near = client.begin_connect(address, 443)
    connection = proxy.open()
    assert connection.target == f"{NAME}:443"
    assert finish_connect(near) == 0
    sock = router.socket("127.0.0.1", socket.SOCK_DGRAM)
    sock.settimeout(WAIT)
    given, refused = {}, 0
    for number in range(10_000):
        sock.sendto(query(f"{number}.corp.example", number=number), ("127.0.0.1", PORT))
        answer = sock.recv(1000)
        assert answer[:2] == struct.pack("!H", number)
        if rcode(answer) == 0:
            given[number] = socket.inet_ntoa(answer[-4:])
        else:
            assert rcode(answer) == 2, "full of names that clients may still use"
            refused += 1
    assert all(is_fake(one) and one != address for one in given.values())
    assert resolve(router, NAME) == [address]
    near.sendall(b"still here")
    assert connection.sock.recv(100) == b"still here"
    # The address of the last name leads to that, and that of one long gone nowhere: never to another.
    last = max(given)
    for number in (0, 1, last):
        sock = client.begin_connect(given[number], 443)
        until(lambda: proxy.waits() or not connecting(sock), "it comes to the proxy, or is refused")
        if not connecting(sock):
            assert finish_connect(sock) == errno.ECONNREFUSED
            continue
        assert proxy.open().target == f"{number}.corp.example:443"
        assert finish_connect(sock) == 0


# --- what isn't TCP ---


@pytest.mark.parametrize("kind", ["A", "AAAA"])
def test_pings_of_fake_addresses(fakeip, client, router, kind, leaks):
    """Refused, with an error from us; or answered."""
    daemon = fakeip()
    address, = resolve(router, NAME, kind)
    for space in (client, router):
        result = space.run("ping", "-c1", "-W20", address, check=False, env=PLAIN)
        assert result.returncode == 1 and ("filtered" in result.stdout or "prohibited" in result.stdout), result.stdout
    daemon.stop()
    daemon.options += ("--ping", "answer")
    daemon.start()
    for space in (client, router):
        for size in (0, 56, 1400):
            result = space.run("ping", "-c2", "-i0.2", "-W20", "-s", size, address, env=PLAIN)
            assert "2 received" in result.stdout and (size < 16 or "ttl=6" in result.stdout)
    leaks.assert_none()


def test_pings_of_captured_addresses(gateway, client, leaks):
    gateway("--non-tcp", "reject", "--ping", "answer")
    for address in ("203.0.113.99", SERVER6):
        assert client.run("ping", "-c1", "-W20", address).returncode == 0
    leaks.assert_none()


@pytest.mark.parametrize("kind", ["A", "AAAA"])
def test_quic_to_fake_addresses_is_refused_at_once(fakeip, client, router, kind, capture, leaks):
    """1,200 bytes of a first QUIC packet: the sender's socket says so, and the error is as large as it may be."""
    lan = capture(client, "lan", "icmp[icmptype] = icmp-unreach or (icmp6 and ip6[40] = 1)")
    fakeip()
    address, = resolve(router, NAME, kind)
    for space in (client, router):
        sock = space.socket(address, socket.SOCK_DGRAM)
        sock.settimeout(WAIT)
        sock.connect((address, 443))
        sock.send(b"\xc0" + bytes(1199))
        with pytest.raises(OSError) as error:
            sock.recv(100)
        assert error.value.errno == errno.ECONNREFUSED
    packet, = lan.packets()
    assert len(packet) == (576 if kind == "A" else 1280)
    leaks.assert_none()


# --- bounds ---


def test_garbage_does_no_harm(fakeip, client, router):
    """Queries cut off, changed, repeated; connections that say nothing, too much, or break off."""
    daemon = fakeip()
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
    assert is_fake(resolve(router, NAME)[0])
    assert daemon.running()


def test_more_connections_than_are_kept(fakeip, client, router):
    """One more ends one that is idle; all who ask get answers."""
    fakeip()
    streams = []
    for number in range(100):
        stream = router.connect("127.0.0.1", PORT)
        stream.sendall(framed(query(NAME, number=number)))
        assert read_framed(stream)[:2] == struct.pack("!H", number)
        streams.append(stream)
    ended = until(lambda: sum(has_ended(stream) for stream in streams) >= 36, "connections beyond 64 are ended")
    assert ended and not has_ended(streams[-1])


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


def test_a_client_that_asks_for_too_much(forwarding, proxy, client, router):
    """Whatever number of connections it has, there is room for others."""
    forwarding()
    greedy = []
    for number in range(4):
        stream = client.connect(ELSEWHERE, 53)
        stream.sendall(b"".join(framed(query(f"{number}-{n}.example", number=n)) for n in range(100)))
        greedy.append(stream)
    connection = proxy.open()
    sock = router.socket("127.0.0.1", socket.SOCK_DGRAM)
    sock.settimeout(WAIT)
    until(lambda: all(rcode(read_framed(stream)) == 2 for stream in greedy[1:]), "the others of its connections are refused")

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


# --- a running daemon ---


@pytest.fixture
def configured(gateway, directory):
    return Configured(gateway, directory)


def test_reload_keeps_names(configured, proxy, client, router, directory, leaks):
    """A change that needs another run keeps the process, and who has an address gets to the same name."""
    fakeip = f"option dns fakeip\noption fakeip_file {directory}/names"
    daemon = configured.write(fakeip).start()
    address, = resolve(router, NAME)
    before = daemon.process.pid
    configured.restart(main=f"{fakeip}\noption ping answer")
    near = client.begin_connect(address, 443)
    assert proxy.open().target == f"{NAME}:443"
    assert finish_connect(near) == 0
    assert daemon.process.pid == before and resolve(router, NAME) == [address]
    assert client.run("ping", "-c1", "-W20", address).returncode == 0
    configured.restart(main="option dns off")
    assert not [line for line in router.run("ss", "-Hlnu").stdout.splitlines() if f":{PORT}" in line]
    leaks.assert_none()


def test_reload_of_proxies(configured, fault_proxy, client, internet, directory):
    """Other proxies, live: their names are resolved directly from then on."""
    Unbound(internet, directory, [RESOLVER], [f"proxy.corp.example. 300 IN A {PROXY}"])
    proxy = fault_proxy()
    main = f"option dns fakeip\noption fakeip_file {directory}/names\nlist resolver {RESOLVER}"
    configured.write(main).start()
    assert is_fake(dig(client, ELSEWHERE, "proxy.corp.example")[0])
    configured.reload("changed", main=main, upstreams=("http://proxy.corp.example:3128",))
    until(lambda: dig(client, ELSEWHERE, "proxy.corp.example") == [PROXY], "the proxy's name is resolved")
    near = client.begin_connect(dig(client, ELSEWHERE, NAME)[0], 443)
    assert proxy.open().target == f"{NAME}:443"
    assert finish_connect(near) == 0


def test_reload_asks_through_the_new_proxy(configured, fault_proxy, client):
    """The connection that is kept to the resolver leads through the old one."""
    old, new = fault_proxy(), fault_proxy(PROXY_OTHER)
    main = f"option dns proxy\nlist dns_server {RESOLVER}"
    configured.write(main).start()
    sock = client.socket(ELSEWHERE, socket.SOCK_DGRAM)
    sock.settimeout(WAIT)

    def answer(connection):
        connection.send(framed(answer_to(read_framed(connection.sock), SERVER)))
        assert sock.recv(1000).endswith(socket.inet_aton(SERVER))

    sock.sendto(query("a.example"), (ELSEWHERE, 53))
    through_old = old.open()
    answer(through_old)
    sock.sendto(query("b.example"), (ELSEWHERE, 53))
    assert b"\x01b" in read_framed(through_old.sock)
    configured.reload("changed", main=f"{main}\noption reply_timeout 20")
    sock.sendto(query("0.example"), (ELSEWHERE, 53))
    answer(through_old)
    configured.reload("changed", main=main, upstreams=(upstream(PROXY_OTHER),))
    sock.sendto(query("c.example"), (ELSEWHERE, 53))
    # Who waits for an answer is asked for again.
    through_new = new.open()
    answer(through_new)
    answer(through_new)
    assert through_old.sock.recv(1000) == b"", "the old proxy is told nothing more"


def test_reload_tries_a_proxy_again_that_forbade_it(configured, far, client, internet, directory):
    """Names of other types than addresses are not given up for minutes."""
    strict = StrictSquid(internet, directory)
    main = f"option dns fakeip\noption fakeip_file {directory}/names\nlist dns_server {RESOLVER}"
    configured.write(main).start()
    assert dig(client, ELSEWHERE, "text.corp.example", "TXT") == []
    strict.stop()
    HonestProxy(internet, directory)
    configured.reload("changed", main=f"{main}\noption reply_timeout 20")
    assert dig(client, ELSEWHERE, "text.corp.example", "TXT") == ['"hello"']


def test_the_proxys_own_name_with_nobody_to_resolve_it(gateway, client, directory):
    """The machine's resolver is ours: that is said, and not asked around in a circle."""
    daemon = gateway("--dns", "fakeip", "--fakeip-file", directory / "names", upstreams=["http://proxy.corp.example:3128"])
    assert "status: SERVFAIL" in dig_full(client, ELSEWHERE, "proxy.corp.example")
    daemon.wait_log("list resolver")


def test_a_port_that_is_taken(gateway, router, directory):
    """The start fails with a word about it, and nothing is captured or left."""
    taken = router.listen("127.0.0.1", PORT)
    daemon = gateway("--dns", "proxy", ready=False)
    assert daemon.wait() == 1
    assert f"127.0.0.1:{PORT}" in daemon.log()
    daemon.assert_clean()
    taken.close()
