"""Path MTU: a link that takes less than its clients promise."""

import threading

import pytest

from lab.capture import LeakCapture
from lab.connections import open_tunnel
from lab.forward import read
from lab.gateway import is_relayed, upstream
from lab.netns import CLIENT, CLIENT6, ROUTER_WAN, Namespace, batch


@pytest.fixture
def mesh(network):
    """A client behind another router of the LAN, on a link of 1300 bytes; and a proxy behind one of the internet's."""
    space = Namespace(f"{network.client.name}-mesh")
    network.namespaces.insert(0, space)
    network.client.sysctl("net.ipv4.ip_forward", 1)
    network.client.sysctl("net.ipv6.conf.all.forwarding", 1)
    batch(
        network.client,
        f"link add mesh mtu 1300 type veth peer name mesh mtu 1300 netns {space.name}",
        "addr add 10.1.2.1/24 dev mesh",
        "addr add fd01:2::1/64 dev mesh nodad",
        "link set mesh up",
    )
    batch(
        space,
        "addr add 10.1.2.2/24 dev mesh",
        "addr add fd01:2::2/64 dev mesh nodad",
        "link set mesh mtu 1300 up",
        "route add default via 10.1.2.1",
        "route add default via fd01:2::1",
    )
    batch(network.router, f"route add 10.1.2.0/24 via {CLIENT}", f"route add fd01:2::/64 via {CLIENT6}")
    batch(network.internet, f"route add 10.1.2.0/24 via {ROUTER_WAN}", "route add fd01:2::/64 via 2001:db8:a::1")
    return space


def big(space, proxy, server, size=300_000):
    near, connection = open_tunnel(space, proxy, server, 443)
    for one, other in ((near, connection.sock), (connection.sock, near)):
        threading.Thread(target=one.sendall, args=(bytes(size),), daemon=True).start()
        assert read(other, size) == bytes(size)
    near.close()
    connection.close()


def spoil(space, device):
    """SYNs promise segments for a link of 1500 bytes whatever its own takes."""
    for number, size in (("-4", 1460), ("-6", 1440)):
        for route in space.ip(number, "route", "show", "default"):
            space.run("ip", number, "route", "change", "default", "via", route["gateway"], "dev", device, "advmss", size)


@pytest.fixture
def errors(network, server):
    """Asserts that errors about what a relay sends don't leave; of what is forwarded they get to the proxy."""
    capture = LeakCapture(network, [], "tcp port 3128")
    yield
    if is_relayed(server):
        capture.assert_none()
    capture.close()


@pytest.mark.native(why="it is about the rules")
def test_a_small_link_behind_the_router(gateway, proxy, mesh, server, errors):
    """A router of the LAN says that segments are too big."""
    spoil(mesh, "mesh")
    gateway()
    big(mesh, proxy, server)


@pytest.mark.native(why="it is about the rules")
def test_the_routers_own_link_is_small(gateway, proxy, client, router, server, errors):
    """The link between router and client takes 1300, and the client's SYN promises more."""
    router.run("ip", "link", "set", "lan", "mtu", "1300")
    # What the client sends must fit: longer segments get through only where two of them make a super-packet.
    client.run("ip", "link", "set", "lan", "mtu", "1300")
    spoil(client, "lan")
    gateway()
    big(client, proxy, server)


@pytest.mark.path("forward", why="it is about the other one")
def test_a_small_link_towards_the_proxy(gateway, fault_proxy, network, client, ends, strays):
    """A long request, and then 300,000 bytes both ways, over a link of 1300."""
    address, via, net = ("fd02::2", "fd02::1", "64") if ":" in ends.proxy else ("192.0.3.2", "192.0.3.1", "24")
    space = Namespace(f"{network.client.name}-far")
    network.namespaces.insert(0, space)
    extra = " nodad" if net == "64" else ""
    batch(network.internet, f"link add far mtu 1300 type veth peer name far mtu 1300 netns {space.name}",
          f"addr add {via}/{net} dev far{extra}", "link set far up")
    network.internet.sysctl("net.ipv4.ip_forward", 1)
    network.internet.sysctl("net.ipv6.conf.all.forwarding", 1)
    batch(space, f"addr add {address}/{net} dev far{extra}", "link set far up", f"route add default via {via}")
    spoil(space, "far")
    strays.close()
    proxy = fault_proxy(address, space=space)
    gateway(upstreams=(f"{upstream(address).replace('http://', 'http://' + 'u' * 60 + ':' + 'p' * 1500 + '@')}",))
    big(client, proxy, ends.server)
