"""A proxy whose own connections are captured: found, ended, and said."""

import contextlib
import errno
import time

import pytest

from lab.connections import assert_proxied
from lab.faultproxy import OK, reply
from lab.gateway import upstream
from lab.netns import CLIENT, CLIENT6, CLIENT6_OTHER, CLIENT_OTHER, ROUTER_LAN, SERVER, SERVER6, finish_connect
from lab.wait import until
from lab.wire import TCP, Wire

# Of a refused loop, as against minutes.
SOON = 15


def connecting_proxy(proxy, space, source=None):
    """Has a proxy do what proxies do: connect to what it is asked for, and say how that went."""

    def handler(connection):
        host, _, port = connection.target.rpartition(":")
        address = host.strip("[]")
        try:
            far = space.connect(address, int(port), source=source, timeout=60)
        except OSError as error:
            connection.send(reply(502 if error.errno == errno.ECONNREFUSED else 503))
            connection.close()
            return
        connection.send(OK)
        far.close()

    return proxy.serve(handler)


@pytest.mark.native(why="it is about the rules")
@pytest.mark.parametrize("where", ["lan-v4", "lan-v6", "router"])
def test_a_proxy_that_is_captured(gateway, fault_proxy, network, where):
    """It connects out from another address than it is known by, or from the router itself."""
    router, client = network.router, network.client
    space = router if where == "router" else client
    address, server = (ROUTER_LAN, SERVER) if where == "router" else (CLIENT, SERVER6 if where == "lan-v6" else SERVER)
    source = {"lan-v4": "10.1.0.4", "lan-v6": CLIENT6_OTHER, "router": None}[where]
    client.run("ip", "addr", "add", "10.1.0.4/24", "dev", "lan")
    connecting_proxy(fault_proxy(address, space=space), space, source)
    daemon = gateway(upstreams=(upstream(address),))
    # Of all who use the LAN, somebody else.
    begun = time.monotonic()
    error = client.connect_errno(server, 443, CLIENT6 if ":" in server else CLIENT_OTHER, SOON)
    assert error in (errno.ECONNREFUSED, errno.EHOSTUNREACH) and time.monotonic() - begun < SOON
    daemon.wait_log("set local '0'" if where == "router" else f"client_bypass '{source}'")
    until(lambda: daemon.status()["flows"]["held"] == 0, "nothing of it is left")
    assert daemon.status()["flows"]["looped"]


def test_a_client_that_guesses(gateway, proxy, client, router):
    """It opens what looks like a loop, and then connects in another's name to all addresses that the proxy may be asked for."""
    daemon = gateway(log_level="info")
    wire = Wire(client, router, SERVER)
    for port in range(16):
        wire.send(wire.ip() / TCP(sport=40_000 + port, dport=443, flags="S", seq=1))
    asked = [proxy.accept_request().target for _ in range(17)]
    nonce = int(next(target for target in asked if not target.startswith(SERVER)).split(":")[0].split(".")[3])
    wire.source = CLIENT_OTHER
    for last in [*range(nonce - 9 if nonce > 8 else nonce + 9, nonce, 1 if nonce > 8 else -1), nonce]:
        wire.server = f"198.51.100.{last}"
        wire.send(wire.ip() / TCP(sport=50_000 + last, dport=443, flags="S", seq=1))
    assert [proxy.accept_request().target for _ in range(10)][-1] == f"198.51.100.{nonce}:443"
    assert daemon.status()["flows"]["looped"] == 0


def test_a_busy_client_is_none(gateway, proxy, client, server):
    """Who opens many connections to one server gets them all, however long the proxy takes."""
    daemon = gateway()
    near = [client.begin_connect(server, 443) for _ in range(60)]
    connections = [proxy.accept_request() for _ in range(61)]  # and the test
    for connection in connections:
        connection.send(OK if connection.target.startswith((SERVER, f"[{SERVER6}]")) else reply(502))
    assert [finish_connect(sock) for sock in near] == [0] * 60
    status = daemon.status()
    assert status["flows"]["looped"] == 0
    # Nobody asked for what the proxy refuses.
    assert status["upstreams"][0]["refused_5xx"] == 0 and "refuses with status" not in daemon.log()
    for sock in near:
        with contextlib.suppress(OSError):
            sock.close()
    assert_proxied(client, proxy, server, 80)
