"""Rules: what becomes of a connection by its name or address, port and client."""

import errno

import pytest

from lab.connections import assert_direct, assert_proxied
from lab.dnsservers import ELSEWHERE, NAME, dig
from lab.faultproxy import OK
from lab.gateway import upstream
from lab.netns import CLIENT_OTHER, PROXY, PROXY_OTHER, RESOLVER, SERVER, SERVER6, SERVER_OTHER

pytestmark = pytest.mark.native(why="marks")

SECTION = f"config upstream other\noption host {PROXY_OTHER}\noption port 3128"


@pytest.fixture
def ruled(configured):
    """Starts a gateway with rules, each a few lines of its section."""

    def text(*rules, main=""):
        return "\n".join((f"option log_level debug\n{main}", SECTION, *(f"config rule\n{rule}" for rule in rules)))

    def start(*rules, main="", **more):
        configured.write(text(*rules, main=main)).start(**more)
        return configured

    start.text = text
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


def test_direct(ruled, proxy, client, internet, server, capture):
    """The server hears of it without a proxy; the first rule that matches counts."""
    listener = internet.listen(server)
    port = listener.getsockname()[1]
    seen = capture(internet, "wan", f"host {server} and tcp port {port}")
    ruled(f"list dest {server}\nlist port {port}\noption direct 1", f"list dest {server}\noption reject 1")
    assert_direct(client, listener, proxy)
    assert seen.packets()
    assert client.connect_errno(server, port + 1) == errno.ECONNREFUSED


def test_names(ruled, pair, far, client, directory):
    """Direct ones have their real addresses; others are decided by their names."""
    lines = f"option dns fakeip\noption fakeip_file {directory / 'names'}\nlist direct_server {RESOLVER}"
    names = directory / "list"
    names.write_text("# a list\nrejected.example\n")
    ruled("list domain =exact.example\noption upstream other", "list domain corp.example\noption direct 1",
          f"list domain_file {names}\noption reject 1", main=lines)
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
