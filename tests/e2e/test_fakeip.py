"""Fake addresses that stand for names: CONNECT carries the name, the proxy resolves, and nothing leaks."""

import errno
import ipaddress
import pathlib
import socket
import struct
import subprocess
import sys
import tempfile
import time

import pytest

from lab.connections import assert_carries, open_tunnel
from lab.dnsservers import ELSEWHERE, ELSEWHERE6, NAME, PORT, Unbound, dig, dig_full, getaddrinfo, query, rcode, with_resolver
from lab.gateway import upstream
from lab.netns import (
    CLIENT,
    CLIENT6_OTHER,
    CLIENT_OTHER,
    PLAIN,
    PROXY,
    PROXY6,
    RESOLVER,
    ROUTER_LAN,
    ROUTER_LAN6,
    SERVER,
    connecting,
    finish_connect,
)
from lab.proxies import HonestProxy, Squid, StrictSquid, Tinyproxy
from lab.wait import WAIT, until

pytestmark = pytest.mark.native(why="their rules, and marks")

LAB = pathlib.Path(__file__).parent / "lab"
ATTACK, LOAD = LAB / "attack.py", LAB / "load.py"
RANGE, RANGE6 = ipaddress.ip_network("198.18.0.0/15"), ipaddress.ip_network("2001:2::/64")


@pytest.fixture
def fakeip(gateway, directory):
    """A gateway that answers names with fake addresses, of both families since its proxies are."""

    def start(*options, upstreams=(upstream(), upstream(PROXY6)), **more):
        options = ("--dns", "fakeip", "--fakeip-file", directory / "names", *options)
        return gateway(*options, upstreams=upstreams, **more)

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


@pytest.mark.once(why="how names are answered knows no path")
def test_no_ipv6(fakeip, router):
    fakeip("--ipv6", "0")
    assert is_fake(resolve(router, NAME)[0])
    full = dig_full(router, "127.0.0.1", NAME, "AAAA", port=PORT)
    assert "status: NOERROR" in full and "ANSWER: 0," in full


@pytest.mark.path("forward", why="a relay joins any two families")
@pytest.mark.parametrize("address, kind, other", [(PROXY, "A", "AAAA"), (PROXY6, "AAAA", "A")], ids=["v4", "v6"])
def test_addresses_are_of_the_proxys_family(fakeip, fault_proxy, client, router, address, kind, other):
    """What is of the other one would have to be relayed."""
    proxy = fault_proxy(address)
    daemon = fakeip(upstreams=(upstream(address),))
    full = dig_full(router, "127.0.0.1", NAME, other, port=PORT)
    assert "status: NOERROR" in full and "ANSWER: 0," in full
    near, connection = open_tunnel(client, proxy, resolve(router, NAME, kind)[0], 443)
    assert connection.target == f"{NAME}:443"
    assert_carries(near, connection.sock)
    assert daemon.summary()["flows forwarded"] == 1


@pytest.mark.parametrize("kind", ["A", "AAAA"])
def test_connect_carries_the_name(fakeip, proxy, client, router, kind, leaks):
    fakeip()
    address, = resolve(router, NAME, kind)
    for space in (client, router):
        near, connection = open_tunnel(space, proxy, address, 443)
        assert connection.target == f"{NAME}:443"
        assert_carries(near, connection.sock)
        near.close()
        connection.close()
    leaks.assert_none()


@pytest.mark.parametrize("address", ["198.18.77.77", "198.19.255.254", "2001:2::7777", "2001:2:0:0:ffff::1"])
def test_an_address_without_a_name_is_refused(fakeip, proxy, client, router, address, leaks):
    fakeip()
    for space in (client, router):
        assert space.connect_errno(address, 443) == errno.ECONNREFUSED
    assert not proxy.pending()
    leaks.assert_none()


def test_fake_addresses_are_captured_whatever_is_bypassed(fakeip, proxy, client, router, leaks):
    fakeip("--bypass", "198.18.0.0/16", "--bypass", "198.0.0.0/8", "--bypass", "2001::/16", routes=())
    router.run("ip", "route", "add", "198.18.0.0/15", "via", "100.64.0.2")
    for kind in ("A", "AAAA"):
        _near, connection = open_tunnel(client, proxy, resolve(router, NAME, kind)[0], 443)
        assert connection.target == f"{NAME}:443"
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


# --- through real proxies, from real clients ---


class NamedHonest(HonestProxy):
    """HonestProxy that asks the resolver of the tests."""

    def configure(self, **options):
        return [*with_resolver(self.directory, RESOLVER), *super().configure(**options)]


class NamedTinyproxy(Tinyproxy):
    def configure(self):
        return [*with_resolver(self.directory, RESOLVER), *super().configure()]


@pytest.mark.parametrize("kind", [Squid, NamedTinyproxy, NamedHonest], ids=["squid", "tinyproxy", "honest"])
@pytest.mark.parametrize("path", [ROUTER_LAN, ROUTER_LAN6, ELSEWHERE], ids=["dnsmasq", "dnsmasq6", "hijacked"])
def test_a_page_by_its_name(fakeip, kind, path, lan, far, page, client, internet, directory, leaks):
    """The proxy resolves, and a page arrives that is only known by name."""
    kind(internet, directory)
    fakeip()
    prefix = with_resolver(directory, path)
    for host in (NAME, "v4.corp.example"):
        result = client.run(*prefix, "curl", "-sS", "-m", "30", f"http://{host}:{page.port}/", env=PLAIN)
        assert "this is it" in result.stdout
    assert (NAME, "A") in far.queries()
    leaks.assert_none()


@pytest.mark.once(why="how names are answered knows no path")
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


# --- names that are not given fake addresses ---


@pytest.mark.once(why="how names are answered knows no path")
def test_other_types_beside_fake_addresses(fakeip, far, client, internet, directory, leaks):
    """They are asked for through the proxy."""
    Squid(internet, directory)
    fakeip("--dns-server", RESOLVER)
    assert is_fake(dig(client, ELSEWHERE, NAME)[0])
    assert dig(client, ELSEWHERE, "text.corp.example", "TXT") == ['"hello"']
    assert dig(client, ELSEWHERE, "corp.example", "MX") == ["10 mail.corp.example."]
    leaks.assert_none()


@pytest.mark.once(why="how names are answered knows no path")
def test_other_types_where_the_proxy_forbids_to_ask(fakeip, client, internet, directory, leaks):
    """There are none, then."""
    StrictSquid(internet, directory)
    fakeip()
    for _ in range(3):
        full = dig_full(client, ELSEWHERE, "text.corp.example", "TXT")
        assert "status: NOERROR" in full and "ANSWER: 0," in full
    leaks.assert_none()


@pytest.mark.once(why="how names are answered knows no path")
def test_direct_domains(fakeip, proxy, far, client):
    """They have their real addresses, all others fake ones."""
    fakeip("--direct-domain", "corp.example", "--direct-server", RESOLVER)
    assert dig(client, ELSEWHERE, NAME) == [SERVER]
    assert is_fake(dig(client, ELSEWHERE, "www.notcorp.example")[0])
    assert not proxy.pending()


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
    _near, connection = open_tunnel(client, proxy, dig(client, ELSEWHERE, NAME)[0], 443)
    assert connection.target == f"{NAME}:443"
    assert {asked for asked, _ in far.queries()} == {name}


@pytest.mark.once(why="how names are answered knows no path")
def test_the_proxys_own_name_with_nobody_to_resolve_it(gateway, client, directory):
    """The machine's resolver is ours: that is said, and not asked around in a circle."""
    daemon = gateway("--dns", "fakeip", "--fakeip-file", directory / "names", upstreams=["http://proxy.corp.example:3128"])
    assert "status: SERVFAIL" in dig_full(client, ELSEWHERE, "proxy.corp.example")
    daemon.wait_log("list resolver")


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
        _near, connection = open_tunnel(client, proxy, address, 443)
        assert connection.target == f"{name}:443"
        connection.close()
    assert {name: resolve(router, name)[0] for name in addresses} == addresses
    assert not list(directory.glob("names.*")), "no half-written file is left"


@pytest.mark.once(why="how names are answered knows no path")
def test_a_damaged_file_does_no_harm(fakeip, proxy, client, router, directory):
    lines = b"198.18.0.9 kept.example\n198.18.0.9\xff x\nnonsense\n1.2.3.4 alien.example\n"
    (directory / "names").write_bytes(lines + bytes(100))
    fakeip()
    near = client.begin_connect("198.18.0.9", 443)
    assert proxy.open().target == "kept.example:443"
    near.close()
    assert is_fake(resolve(router, NAME)[0])


def test_more_names_than_the_table_has(fakeip, proxy, client, router):
    """10,000 names through a table of 1,000; a name that a connection uses keeps its address."""
    fakeip("--fakeip-names", "1000", log_level="info")
    address, = resolve(router, NAME)
    near, connection = open_tunnel(client, proxy, address, 443)
    assert connection.target == f"{NAME}:443"
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


@pytest.mark.parametrize("hold", [0, 2100], ids=["asks", "holds"])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["v4", "v6"])
@pytest.mark.parametrize("is_behind", [False, True], ids=["captured", "dnsmasq"])
def test_one_client_leaves_names_to_others(fakeip, client, machine6, internet, lan, is_behind, family, hold):
    """One asks for new names without end, and has connections to many; another's new names are good."""
    if family == socket.AF_INET:
        resolver, attacker, other = (ROUTER_LAN if is_behind else ELSEWHERE), CLIENT_OTHER, CLIENT
    else:
        resolver, attacker, other = (ROUTER_LAN6 if is_behind else ELSEWHERE6), CLIENT6_OTHER, machine6
    far = internet.popen(sys.executable, LOAD, "proxy", PROXY, "3128")
    fakeip(log_level="info")
    attack = client.popen(sys.executable, ATTACK, attacker, resolver, hold, stdout=subprocess.PIPE, text=True)
    assert int(attack.stdout.readline().split()[1]) >= 0.5 * hold
    good, names = 0, 60
    with client.enter():
        asking = socket.socket(family, socket.SOCK_DGRAM)
    asking.bind((other, 0))
    asking.settimeout(1)
    kind, length = (1, 4) if family == socket.AF_INET else (28, 16)  # A, AAAA
    for number in range(names):
        time.sleep(0.05)
        reply = ask_again(asking, resolver, query(f"w{number}.corp.example", kind, number=number))
        if reply:
            good += client.connect_errno(socket.inet_ntop(family, reply[-length:]), 443, source=other) == 0
    asking.close()
    client.stop(attack)
    internet.stop(far)
    assert good >= 0.9 * names, f"{good} of {names}"


def ask_again(asking, resolver, message):
    """The answer, if there is a good one; asks for three seconds, as clients do. dnsmasq refuses queries beyond 150 at once,
    at once: on a busy machine three of them in a row."""
    end = time.monotonic() + 3
    while time.monotonic() < end:
        asking.sendto(message, (resolver, 53))
        try:
            while (reply := asking.recv(1500))[:2] != message[:2]:
                pass
        except TimeoutError:
            continue
        if reply[3] & 15 == 0:
            return reply
        time.sleep(0.1)


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


# --- a running daemon ---


@pytest.mark.once(why="how names are answered knows no path")
def test_names_survive_a_crash(gateway, router):
    """dnsmasq may go on to hand them out."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        daemon = gateway("--dns", "fakeip", "--fakeip-file", f"{folder}/names")
        before = resolve(router, NAME)
        saved = pathlib.Path(folder) / "names"
        until(lambda: saved.exists() and NAME in saved.read_text(), "it is saved")
        daemon.kill()
        daemon.start()
        resolve(router, "another.example")
        name, = dig(router, "127.0.0.1", "-x", before[0], port=PORT)
        assert name == f"{NAME}."


def test_reload_keeps_names(configured, proxy, client, router, directory, leaks):
    """A change that needs another run keeps the process, and who has an address gets to the same name."""
    fakeip = f"option dns fakeip\noption fakeip_file {directory}/names"
    daemon = configured.write(fakeip).start()
    address, = resolve(router, NAME)
    before = daemon.process.pid
    configured.restart(main=f"{fakeip}\noption ping answer")
    _near, connection = open_tunnel(client, proxy, address, 443)
    assert connection.target == f"{NAME}:443"
    assert daemon.process.pid == before and resolve(router, NAME) == [address]
    assert client.run("ping", "-c1", "-W20", address).returncode == 0
    configured.restart(main="option dns off")
    assert not [line for line in router.run("ss", "-Hlnu").stdout.splitlines() if f":{PORT}" in line]
    leaks.assert_none()


@pytest.mark.once(why="how names are answered knows no path")
def test_reload_of_proxies(configured, fault_proxy, client, internet, directory):
    """Other proxies, live: their names are resolved directly from then on."""
    Unbound(internet, directory, [RESOLVER], [f"proxy.corp.example. 300 IN A {PROXY}"])
    proxy = fault_proxy()
    main = f"option dns fakeip\noption fakeip_file {directory}/names\nlist resolver {RESOLVER}"
    configured.write(main).start()
    assert is_fake(dig(client, ELSEWHERE, "proxy.corp.example")[0])
    configured.reload("changed", main=main, upstreams=("http://proxy.corp.example:3128",))
    until(lambda: dig(client, ELSEWHERE, "proxy.corp.example") == [PROXY], "the proxy's name is resolved")
    _near, connection = open_tunnel(client, proxy, dig(client, ELSEWHERE, NAME)[0], 443)
    assert connection.target == f"{NAME}:443"


@pytest.mark.once(why="how names are answered knows no path")
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
