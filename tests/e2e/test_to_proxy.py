"""Clients that want the proxy itself."""

import errno

import pytest

from lab.connections import assert_carries
from lab.faultproxy import OK
from lab.gateway import upstream
from lab.netns import PROXY, PROXY6, SERVER, finish_connect, with_mounts


@pytest.fixture(params=[PROXY, PROXY6], ids=["v4", "v6"])
def address(request):
    return request.param


def assert_reaches(space, proxy, address):
    """A client that is configured for the proxy talks to it as it is."""
    near = space.begin_connect(address, proxy.port)
    connection = proxy.accept()
    assert finish_connect(near) == 0
    near.sendall(b"CONNECT www.example:443 HTTP/1.1\r\n\r\n")
    connection.read_request()
    assert connection.target == "www.example:443"
    connection.send(OK)
    assert near.recv(100) == OK
    assert_carries(near, connection.sock)
    near.close()


@pytest.mark.parametrize("space", ["client", "router"])
def test_it_is_reached(gateway, fault_proxy, network, address, space, leaks):
    proxy = fault_proxy(address)
    gateway(upstreams=(upstream(address),))
    assert_reaches(getattr(network, space), proxy, address)
    leaks.assert_none()


def test_only_its_own_port(gateway, fault_proxy, client, address):
    """Others of its machine are servers like any."""
    proxy = fault_proxy(address)
    gateway(upstreams=(upstream(address),))
    near = client.begin_connect(address, 80)
    assert proxy.open().port == 80
    assert finish_connect(near) == 0


def test_refused_if_so_wished(gateway, fault_proxy, client, address, leaks):
    proxy = fault_proxy(address)
    gateway("--to-proxy", "reject", upstreams=(upstream(address),))
    assert client.connect_errno(address, proxy.port) in (errno.EHOSTUNREACH, errno.EACCES)
    assert not proxy.pending()
    leaks.assert_none()


def test_a_closed_one_refuses(gateway, fault_proxy, client, address):
    """As it would without us: at once, and with a reset."""
    fault_proxy(address)
    gateway(upstreams=(upstream(address, port=9), upstream(address)))
    assert client.connect_errno(address, 9) == errno.ECONNREFUSED


def test_by_name(gateway, proxy, client, directory):
    """Once its address is known."""
    hosts = directory / "hosts"
    hosts.write_text(f"{PROXY} proxy.test\n")
    gateway(upstreams=(upstream("proxy.test"),), prefix=with_mounts(f"mount --bind {hosts} /etc/hosts"))
    near = client.begin_connect(SERVER, 443)
    proxy.open()
    assert finish_connect(near) == 0
    assert_reaches(client, proxy, PROXY)
