"""The uplink: its address changes, its neighbours, and what is there instead of one."""

import pytest

from lab.connections import assert_carries, assert_proxied, open_tunnel
from lab.faultproxy import OK
from lab.gateway import PATH, is_relayed, upstream
from lab.netns import (
    INTERNET,
    INTERNET6,
    PROXY,
    PROXY6,
    ROUTER_WAN,
    ROUTER_WAN6,
    SERVER,
    finish_connect,
)
from lab.wait import until

# By the family of the way to the proxy: the proxy, the router's address towards it, another one, the next hop.
WAYS = {
    "v4": (PROXY, f"{ROUTER_WAN}/30", "100.64.0.6/29", INTERNET),
    "v6": (PROXY6, f"{ROUTER_WAN6}/64", "2001:db8:a::7/64", INTERNET6),
}
# What a reset may take, as against the minutes that the kernel repeats.
SOON = 8


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


@pytest.fixture
def renumber(network, way):
    """A function: the router's address on the uplink goes, and another comes."""
    _, old, new, hop = way

    def change(new=new):
        router, number = network.router, "-6" if ":" in hop else "-4"
        router.run("ip", "addr", "del", old, "dev", "wan")
        router.run("ip", "addr", "add", new, "dev", "wan", *(["nodad"] if ":" in hop else []))
        router.run("ip", number, "route", "replace", "default", "via", hop)
        network.internet.run("ip", number, "route", "replace", new.split("/")[0], "dev", "wan")

    return change


def test_another_address_of_the_uplink(gateway, fault_proxy, client, server, way, renumber):
    """What went through the old one is reset on both sides of the gateway, soon; new connections work."""
    proxy = fault_proxy(way[0])
    gateway(upstreams=(upstream(way[0]),))
    near, _ = open_tunnel(client, proxy, server)
    renumber()
    if PATH == "forward" and (":" in server) == (":" in way[0]):
        near.sendall(b"anyone there?")  # it is the kernel that forgets, and says so when asked
    near.settimeout(SOON)
    with pytest.raises(ConnectionResetError):
        near.recv(1)
    near.close()
    assert_proxied(client, proxy, server, 81)


def test_a_dial_while_the_address_changes(gateway, fault_proxy, client, server, way, renumber):
    """The proxy is asked again from the new one: the client does not wait for what can't come."""
    proxy = fault_proxy(way[0])
    gateway(upstreams=(upstream(way[0]),))
    near = client.begin_connect(server, 80)
    proxy.accept_request()
    renumber()
    proxy.accept(SOON).read_request()
    proxy.connections[-1].send(OK)
    assert finish_connect(near) == 0
    assert_carries(near, proxy.connections[-1].sock)


def test_an_address_that_comes_back(gateway, fault_proxy, client, server, way, renumber):
    """Within a second, as when a lease is renewed: relayed connections go on."""
    if PATH == "forward" and (":" in server) == (":" in way[0]):
        pytest.skip("the kernel's NAT is quicker to forget")
    proxy = fault_proxy(way[0])
    gateway(upstreams=(upstream(way[0]),))
    near, connection = open_tunnel(client, proxy, server)
    renumber(way[1])
    near.settimeout(3)
    with pytest.raises(TimeoutError):
        near.recv(1)
    near.settimeout(20)
    assert_carries(near, connection.sock)
