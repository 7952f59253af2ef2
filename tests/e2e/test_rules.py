"""Rules: what becomes of a connection by its name or address, port and client."""

import errno

import pytest

from lab.connections import assert_carries, assert_direct, assert_proxied, open_tunnel
from lab.dnsservers import ELSEWHERE, NAME, dig
from lab.faultproxy import OK
from lab.gateway import NFT_TABLE, TUN
from lab.netns import (
    CLIENT,
    CLIENT6,
    CLIENT6_OTHER,
    CLIENT_OTHER,
    PROXY,
    PROXY_OTHER,
    RESOLVER,
    ROUTER_WAN,
    ROUTER_WAN6,
    SERVER,
    SERVER6,
    SERVER_OTHER,
)

pytestmark = pytest.mark.native(why="marks")

SECTION = f"config upstream other\noption host {PROXY_OTHER}\noption port 3128"


def fakeip(directory):
    return f"option dns fakeip\noption fakeip_file {directory / 'names'}\nlist direct_server {RESOLVER}"


@pytest.fixture
def ruled(configured, router):
    """Starts a gateway with rules, each a few lines of its section."""

    def text(*rules, main=""):
        return "\n".join((f"option log_level debug\n{main}", SECTION, *(f"config rule\n{rule}" for rule in rules)))

    def start(*rules, main="", **more):
        configured.write(text(*rules, main=main)).start(**more)
        return configured

    start.text, start.router = text, router
    return start


@pytest.fixture
def pair(fault_proxy):
    """Two proxies that open everything and say which one they are."""
    return [fault_proxy(address).serve(lambda connection, name=name: connection.send(OK + name))
            for address, name in ((PROXY, b"1"), (PROXY_OTHER, b"2"))]


def proxy_of(client, server, port=80, source=None):
    near = client.connect(server, port, source=source)
    name = near.recv(1)
    near.close()
    return name


def test_an_upstream_by_address_port_and_client(ruled, pair, client):
    ruled(f"list dest {SERVER_OTHER}\noption upstream other",
          "list port 8000-8100\noption upstream other",
          f"list client {CLIENT_OTHER}\noption upstream other",
          "list port 81\noption enabled 0\noption upstream other")
    assert proxy_of(client, SERVER) == b"1"
    assert proxy_of(client, SERVER6) == b"1"
    assert proxy_of(client, SERVER, 81) == b"1"
    assert proxy_of(client, SERVER_OTHER) == b"2"
    assert proxy_of(client, SERVER, 8080) == b"2"
    assert proxy_of(client, SERVER, source=CLIENT_OTHER) == b"2"


def test_an_upstream_of_a_rule_has_no_stand_in(ruled, fault_proxy, client):
    fault_proxy().serve(lambda connection: connection.send(OK + b"1"))
    ruled(f"list dest {SERVER_OTHER}\noption upstream other")
    assert client.connect_errno(SERVER_OTHER, 80) not in (0, errno.ETIMEDOUT)
    assert proxy_of(client, SERVER) == b"1"


def test_a_rule_beats_the_choice(ruled, pair, client):
    daemon = ruled(f"list dest {SERVER_OTHER}\noption upstream other").daemon
    daemon.command("use", f"{PROXY}:3128")
    assert proxy_of(client, SERVER_OTHER) == b"2"
    assert proxy_of(client, SERVER) == b"1"


def test_reject(ruled, proxy, client, server, leaks):
    """At once, and neither the proxy nor the uplink hears of it."""
    ruled(f"list dest {server}\nlist port 80\noption reject 1")
    assert client.connect_errno(server, 80) == errno.ECONNREFUSED
    assert not proxy.pending()
    assert_proxied(client, proxy, server, 81)
    leaks.assert_none()


def mac_of(client):
    return client.ip("link", "show", "dev", "lan")[0]["address"]


@pytest.mark.parametrize("rule", ["dest", "port", "client", "mac", "interface", "bypass", "client_bypass"])
def test_the_kernel_lets_go_what_is_direct(ruled, proxy, client, internet, server, capture, rule):
    """By itself: none of it enters the TUN, and the server hears of the client. All else does, and comes to the proxy."""
    listener = internet.listen(server)
    port = listener.getsockname()[1]
    other = SERVER6 if server == SERVER else SERVER
    source, second = (CLIENT, CLIENT_OTHER) if server == SERVER else (CLIENT6, CLIENT6_OTHER)
    conditions = {"dest": f"list dest {server}", "port": f"list port {port}", "client": f"list client {source}",
                  "mac": f"list client {mac_of(client).upper()}\nlist port {port}",
                  "interface": f"list interface lan\nlist port {port}"}
    if rule in conditions:
        ruled(f"{conditions[rule]}\noption direct 1", f"list dest {server}\nlist port {port}\noption reject 1")
    else:
        ruled(main=f"list {rule} {server if rule == 'bypass' else source}")
    inside = capture(ruled.router, TUN, f"host {server} and tcp port {port}")
    near = client.connect(server, port, source=source)
    far, peer = listener.accept()
    assert peer[0] == source
    assert_carries(near, far)
    assert not inside.packets() and not proxy.pending()
    outside = {"dest": (other, port, None), "bypass": (other, port, None), "client": (server, port + 1, second),
               "client_bypass": (server, port + 1, second)}.get(rule, (server, port + 1, source))
    seen = capture(ruled.router, TUN, f"host {outside[0]} and tcp port {outside[1]}")
    _near, connection = open_tunnel(client, proxy, *outside)
    assert seen.packets(), "a control: what is proxied is seen there"
    connection.close()


@pytest.mark.parametrize("condition", ["port", "mac", "interface"])
def test_a_name_that_is_not_direct_for_all(ruled, proxy, far, client, internet, directory, condition):
    """It has a fake address; the daemon resolves it, and connects for those that go there directly."""
    listener = internet.listen(SERVER)
    port = listener.getsockname()[1]
    conditions = {"port": f"list port {port}", "mac": f"list client {mac_of(client)}", "interface": "list interface lan"}
    ruled(f"list domain corp.example\n{conditions[condition]}\noption direct 1", main=fakeip(directory))
    (fake,) = dig(client, ELSEWHERE, NAME)
    assert fake != SERVER
    near = client.connect(fake, port)
    carried, peer = listener.accept()
    assert peer[0] == ROUTER_WAN
    assert_carries(near, carried)
    assert not proxy.pending()
    _near, connection = open_tunnel(client, proxy, dig(client, ELSEWHERE, "www.example")[0], port)
    assert connection.target == f"www.example:{port}"


@pytest.mark.parametrize("kind", ["A", "AAAA"])
def test_a_direct_domain(ruled, proxy, far, client, internet, directory, capture, kind):
    """Its real addresses, and connections to them that never enter the TUN; not even once the firewall is made anew."""
    gateway = ruled("list domain corp.example\noption direct 1", main=fakeip(directory))
    (address,) = dig(client, ELSEWHERE, NAME, kind)
    assert address in (SERVER, SERVER6)
    listener = internet.listen(address)
    inside = capture(ruled.router, TUN, f"host {address}")
    near = client.connect(*listener.getsockname()[:2])
    carried, _ = listener.accept()
    assert_carries(near, carried)
    ruled.router.nft(f"delete table ip{'6' if kind == 'AAAA' else ''} {NFT_TABLE}")
    gateway.daemon.wait_log("restored")
    assert_direct(client, listener, proxy)
    more = ruled.text("list domain corp.example\noption direct 1", "list port 81\noption reject 1", main=fakeip(directory))
    gateway.reload("reload: changed rules; connections go on", main=more)
    assert_direct(client, listener, proxy)
    assert_carries(near, carried)
    assert not inside.packets()
    gateway.reload("reload: changed rules; connections go on", main=ruled.text(main=fakeip(directory)))
    assert_carries(near, carried)
    assert_proxied(client, proxy, address, listener.getsockname()[1])
    assert inside.packets(), "a control"


def test_a_domain_in_a_short_form(ruled, proxy, far, client, internet, directory, capture):
    ruled(main=f"{fakeip(directory)}\nlist direct_domain corp.example")
    inside = capture(ruled.router, TUN, f"host {SERVER}")
    assert dig(client, ELSEWHERE, NAME) == [SERVER]
    assert_direct(client, internet.listen(SERVER), proxy)
    assert not inside.packets()
    assert_proxied(client, proxy, SERVER_OTHER)


def test_an_upstream_by_mac_and_device(ruled, pair, client, server):
    ruled(f"list client {mac_of(client)}\nlist port 81\noption upstream other",
          "list client 02:00:00:00:00:01\nlist port 82\noption upstream other",
          "list interface lan\nlist port 83\noption upstream other",
          "list interface wan\nlist port 84\noption upstream other")
    assert [proxy_of(client, server, port) for port in (80, 81, 82, 83, 84)] == [b"1", b"2", b"1", b"2", b"1"]


def test_what_the_router_itself_sends(ruled, proxy, internet, server):
    """Where policy rules capture, its connections have an address of the TUN's by then: the daemon makes others for them."""
    router = ruled.router
    listener = internet.listen(server)
    port = listener.getsockname()[1]
    ruled(f"list dest {server}\nlist port {port}\noption direct 1")
    near = router.connect(server, port)
    far, peer = listener.accept()
    assert peer[0] in (ROUTER_WAN, ROUTER_WAN6) and not proxy.pending()
    assert_carries(near, far)
    assert_proxied(router, proxy, server, port + 1)


def test_a_reload_lets_live_connections_where_they_are(ruled, proxy, client, internet, server):
    """What is carried stays so when a rule would have it direct, and what is direct when no rule does any more."""
    listener = internet.listen(server)
    port = listener.getsockname()[1]
    gateway = ruled()
    near, connection = open_tunnel(client, proxy, server, port)
    gateway.reload("reload: changed rules; connections go on", main=ruled.text(f"list dest {server}\noption direct 1"))
    assert_carries(near, connection.sock)
    direct = client.connect(server, port)
    carried, _ = listener.accept()
    assert_carries(direct, carried)
    gateway.reload("reload: changed rules; connections go on", main=ruled.text())
    assert_carries(direct, carried)
    assert_carries(near, connection.sock)
    assert_proxied(client, proxy, server, port)


def test_a_route_into_the_device_counts_for_more(configured, proxy, client, router):
    """What no other way leads to is proxied, rather than sent round in a circle."""
    configured.write(f"option log_level debug\noption auto_route 0\nconfig rule\nlist dest {SERVER}\noption direct 1").start()
    router.ip("route", "add", SERVER, "dev", TUN)
    assert_proxied(client, proxy, SERVER)


def test_names(ruled, pair, far, client, directory):
    """Direct ones have their real addresses; others are decided by their names."""
    names = directory / "list"
    names.write_text("# a list\nrejected.example\n")
    ruled("list domain =exact.example\noption upstream other", "list domain corp.example\noption direct 1",
          f"list domain_file {names}\noption reject 1", main=fakeip(directory))
    assert dig(client, ELSEWHERE, NAME) == [SERVER]
    for name, expected in (("exact.example", b"2"), ("www.exact.example", b"1"), ("www.example", b"1")):
        assert proxy_of(client, dig(client, ELSEWHERE, name)[0]) == expected, name
    assert client.connect_errno(dig(client, ELSEWHERE, "www.rejected.example")[0], 80) == errno.ECONNREFUSED


def test_reload_keeps_connections(ruled, pair, client):
    """Other rules are for new connections; wrong ones change nothing."""
    gateway = ruled()
    near = client.connect(SERVER, 80)
    assert near.recv(1) == b"1"
    gateway.reload("reload: changed rules; connections go on", main=ruled.text("option upstream other"))
    assert proxy_of(client, SERVER) == b"2"
    gateway.reload("there is no upstream 'nobody'; nothing is changed", main=ruled.text("option upstream nobody"))
    gateway.reload("/gone: No such file", main=ruled.text("list dest_file /gone\noption reject 1"))
    assert proxy_of(client, SERVER) == b"2"
    near.setblocking(False)
    with pytest.raises(BlockingIOError):
        near.recv(1)
