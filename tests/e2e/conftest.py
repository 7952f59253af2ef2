"""Fixtures: every test gets its own network, and its gateways are ended and checked after it."""

import contextlib
import os
import pathlib
import signal
import tempfile

import pytest

from lab import emulator, netns
from lab.capture import Capture, LeakCapture
from lab.configured import Configured
from lab.connections import open_tunnel
from lab.dnsservers import PORT, RECORDS, Dnsmasq, Unbound
from lab.faultproxy import FaultProxy
from lab.forward import ends, forward, hard, middles, strays  # noqa: F401
from lab.gateway import PATH, Gateway, upstream
from lab.netns import MACHINE6, PROXY, PROXY6, RESOLVER, ROUTER_LAN, ROUTER_LAN6, ROUTER_MACHINE6, SERVER, SERVER6
from lab.plain import opened  # noqa: F401
from lab.proxies import HonestProxy
from lab.servers import WebServer
from lab.wait import until

# The daemon's options to capture all.
CAPTURE_ALL = ("--auto-route", "1")


def pytest_configure(config):
    if os.geteuid() != 0:
        raise pytest.UsageError("the end-to-end tests need root (network namespaces)")
    # An ordinary kill lets fixtures clean up, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    netns.sweep()


def pytest_unconfigure():
    # An interrupt at a bad moment skips the fixtures' own end.
    netns.sweep(own=True)


def pytest_report_header():
    return f"path: {PATH}" + (f", under {' '.join(emulator.RUNNER)}" if emulator.RUNNER else "")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("long") and os.environ.get("TOH_LONG") != "1":
            item.add_marker(pytest.mark.skip(reason="minutes long: TOH_LONG=1"))
        for mark in item.iter_markers("once"):
            if PATH != "relay":
                item.add_marker(pytest.mark.skip(reason=f"runs with the relay path: {mark.kwargs['why']}"))
        for mark in item.iter_markers("native"):
            if emulator.RUNNER:
                item.add_marker(pytest.mark.skip(reason=f"not under {emulator.RUNNER[0]}: {mark.kwargs['why']}"))
        for mark in item.iter_markers("path"):
            if PATH not in mark.args:
                item.add_marker(pytest.mark.skip(reason=f"not for the {PATH} path: {mark.kwargs['why']}"))


@pytest.fixture
def directory():
    """A temporary directory that also the accounts of the proxies can reach."""
    with tempfile.TemporaryDirectory(prefix="toh-") as name:
        os.chmod(name, 0o755)
        yield pathlib.Path(name)


@pytest.fixture
def network():
    network = netns.Network()
    yield network
    network.close()


@pytest.fixture
def client(network):
    return network.client


@pytest.fixture
def router(network):
    return network.router


@pytest.fixture
def internet(network):
    return network.internet


@pytest.fixture
def machine6(client, router):
    """The IPv6 address of a second machine in the LAN's /64."""
    client.run("ip", "link", "add", "lan2", "type", "veth", "peer", "name", "lan2", "netns", router.name)
    for space, own, other in ((client, MACHINE6, ROUTER_MACHINE6), (router, ROUTER_MACHINE6, MACHINE6)):
        space.run("ip", "link", "set", "lan2", "up")
        space.run("ip", "addr", "add", f"{own}/128", "dev", "lan2", "nodad", "preferred_lft", "0")
        space.run("ip", "route", "add", f"{other}/128", "dev", "lan2")
    client.run("ip", "route", "add", "default", "via", ROUTER_MACHINE6, "dev", "lan2", "table", "9")
    client.run("ip", "-6", "rule", "add", "from", MACHINE6, "table", "9")
    until(lambda: client.run("ping", "-c1", "-W0.2", "-I", MACHINE6, ROUTER_MACHINE6, check=False).returncode == 0,
          "it is there")
    return MACHINE6


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def server(request):
    """The address of a server, once of each family."""
    return SERVER if request.param == 4 else SERVER6


@pytest.fixture
def gateway(network, directory):
    """A function that starts a gateway: everything captured, the proxy on its usual address."""
    started = []

    def start(*options, upstreams=(upstream(),), routes=CAPTURE_ALL, log_level="debug", ready=True, **more):
        level = ("--log-level", log_level) if log_level else ()
        if emulator.RUNNER:
            assert routes in (CAPTURE_ALL, ()), "routes of its own need the `native` marker"
            routes = emulator.OPTIONS
        options = ("--path", PATH, *routes, *level, *options)
        for url in upstreams:
            options += ("--upstream", url)
        gateway = Gateway(network.router, directory, options, **more)
        started.append(gateway)
        return gateway.start(ready)

    yield start
    with contextlib.ExitStack() as stack:
        for gateway in started:
            if gateway.running():
                stack.callback(gateway.stop)
            stack.callback(gateway.assert_sane_log)
            stack.callback(print, "the end of the daemon's log:", *gateway.log().splitlines()[-40:], sep="\n")


@pytest.fixture
def fault_proxy(internet):
    """A scripted proxy on the usual address, and a function to make more."""
    made = []

    def make(address=PROXY, port=3128, space=internet, **options):
        made.append(FaultProxy(space, address, port, **options))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


@pytest.fixture
def proxy(fault_proxy):
    return fault_proxy()


@pytest.fixture
def honest(internet, directory):
    """A real proxy that says what became of its own connect."""
    return HonestProxy(internet, directory)


@pytest.fixture
def configured(gateway, directory):
    """A gateway with a configuration file, not started yet."""
    return Configured(gateway, directory)


@pytest.fixture
def lan(router, directory):
    """dnsmasq for the LAN, in front of our resolver, as on a router."""
    return Dnsmasq(router, directory, [ROUTER_LAN, ROUTER_LAN6], [f"127.0.0.1#{PORT}"])


@pytest.fixture
def far(internet, directory):
    """The resolver that proxies ask."""
    return Unbound(internet, directory, [RESOLVER, "127.0.0.1"], RECORDS)


@pytest.fixture
def page(internet, directory):
    """A web server whose page says "this is it"."""
    root = directory / "www"
    root.mkdir()
    (root / "index.html").write_text("this is it")
    web = WebServer(internet, SERVER, root)
    yield web
    web.close()


@pytest.fixture
def tunnel(proxy, gateway, client, server):
    """A function that opens a connection through the gateway: (the client's socket, the far end's)."""
    gateway()
    opened_ends = []

    def another(port=4000):
        near, connection = open_tunnel(client, proxy, server, port)
        opened_ends.extend((near, connection.sock))
        return near, connection.sock

    yield another
    # Both: a gateway that is told to end gives those that go on some time.
    for end in opened_ends:
        end.close()


@pytest.fixture
def capture(network):
    """A function that captures on an interface; see Capture."""
    made = []

    def start(space, interface, expression):
        made.append(Capture(space, interface, expression))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def leaks(network):
    """Captures what leaves the router around the proxy."""
    capture = LeakCapture(network, [(PROXY, 3128), (PROXY6, 3128)])
    yield capture
    capture.close()
