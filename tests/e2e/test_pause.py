"""A pause lets traffic out directly, as long as it was asked for and no longer, whatever becomes of the daemon."""

import functools
import json
import re

import pytest

from lab.capture import LeakCapture
from lab.connections import assert_carries, assert_proxied, open_tunnel
from lab.dnsservers import NAME, RECORDS, Unbound, dig, dig_full
from lab.dnsservers import PORT as PORT_OF_DNS
from lab.gateway import NFT_TABLE
from lab.netns import (
    CLIENT,
    CLIENT6,
    CLIENT6_OTHER,
    CLIENT_OTHER,
    PROXY,
    PROXY6,
    RESOLVER,
    ROUTER_LAN,
    SERVER,
    SERVER6,
    connecting,
    retransmits,
)
from lab.slow_nft import SlowNft
from lab.wait import until

pytestmark = pytest.mark.native(why="it is about the rules")

PORT = 4000


@pytest.fixture
def pausing(gateway, proxy):
    """A function that starts a gateway which may pause."""
    return lambda *options, **more: gateway("--pause", "1", *options, **more)


@pytest.fixture
def echo(internet, server):
    """A server that is reached directly: (address, listener)."""
    listener = internet.listen(server, PORT)
    yield listener
    listener.close()


def pauses(daemon):
    return {pause["client"]: pause["seconds_left"] for pause in daemon.status()["pauses"]}


def source(server, other=False):
    return (CLIENT6_OTHER if other else CLIENT6) if ":" in server else (CLIENT_OTHER if other else CLIENT)


def is_open(router):
    """Whether the firewall lets anybody out."""
    listing = [router.run("nft", "list", "table", family, NFT_TABLE, check=False).stdout for family in ("ip", "ip6")]
    return any("expires" in text.partition("set paused")[2].partition("chain")[0] for text in listing)


def pause(daemon, *argv):
    daemon.command("pause", *argv)
    until(lambda: is_open(daemon.router), "the firewall lets somebody out")


def resume(daemon, *argv):
    daemon.command("resume", *argv)
    until(lambda: not is_open(daemon.router), "the firewall lets nobody out")


def connect_direct(client, listener, server, **more):
    """A connection that goes directly: (near, far)."""
    near = client.connect(server, PORT, **more)
    far, _ = listener.accept()
    return near, far


def assert_cut_off(near):
    """What had begun in a pause is reset with its next packets."""
    near.settimeout(0.1)

    def is_reset():
        try:
            near.sendall(b"late")
            near.recv(1)
        except TimeoutError:
            return False
        except OSError:
            return True
        raise AssertionError("it goes on")

    until(is_reset, "it is reset")


def test_all_clients(pausing, proxy, client, server, echo, network):
    """During: directly, but for what the proxy has; after: nothing leaves, not even of what had begun."""
    daemon = pausing()
    near_proxied, tunnel = open_tunnel(client, proxy, server, 2000)
    assert json.loads(daemon.command("pause", "10m", "--json").stdout)["done"] == "all directly for 600 s"
    until(lambda: is_open(daemon.router), "the firewall lets everybody out")
    assert 590 < pauses(daemon)["all"] <= 600
    assert json.loads(daemon.command("upstreams", "--json").stdout)["pauses"][0]["client"] == "all"
    control = LeakCapture(network, [(PROXY, 3128), (PROXY6, 3128)])
    near, far = connect_direct(client, echo, server)
    assert_carries(near, far)
    assert len(control.packets()) > 3, "the capture sees what goes directly"
    control.close()
    assert_carries(near_proxied, tunnel.sock)
    resume(daemon)
    leaks = LeakCapture(network, [(PROXY, 3128), (PROXY6, 3128)])
    assert_cut_off(near)
    assert_proxied(client, proxy, server)
    assert_carries(near_proxied, tunnel.sock)
    leaks.assert_none()
    leaks.close()
    assert pauses(daemon) == {}
    for end in (near, far, near_proxied):
        end.close()


def test_one_client(pausing, proxy, client, server, echo):
    """The others have no part in it."""
    daemon = pausing()
    its, others = source(server), source(server, other=True)
    pause(daemon, "1h", "--client", its)
    near, far = connect_direct(client, echo, server, source=its)
    assert_carries(near, far)
    other, _ = open_tunnel(client, proxy, server, source=others)
    assert daemon.command("resume", "--client", others, check=False).returncode == 1
    resume(daemon, "--client", its)
    assert_proxied(client, proxy, server)
    for end in (near, far, other):
        end.close()


@pytest.mark.parametrize("how", ["by itself", "killed"])
def test_it_ends(pausing, proxy, client, server, echo, network, how):
    """A daemon that is killed ends nothing: the kernel does."""
    daemon = pausing()
    pause(daemon, "5s")
    near, far = connect_direct(client, echo, server)
    if how == "killed":
        daemon.kill()
        again, _ = connect_direct(client, echo, server)
        again.close()
    until(lambda: not is_open(daemon.router), "the pause is over")
    leaks = LeakCapture(network, [(PROXY, 3128), (PROXY6, 3128)])
    if how == "killed":
        near.sendall(b"late")
        trial = client.begin_connect(server, PORT)
        until(lambda: retransmits(trial) or not connecting(trial), "it is refused, or gets no answer")
        trial.close()
    else:
        assert_cut_off(near)
        assert_proxied(client, proxy, server)
        until(lambda: pauses(daemon) == {}, "the daemon knows")
    leaks.assert_none()
    leaks.close()
    near.close()
    far.close()
    if how == "killed":
        daemon.command("unblock")


def test_it_ends_although_nft_fails(pausing, proxy, client, server, echo, directory):
    """Once, when it is asked to end it: it is asked again."""
    nft = SlowNft(directory)
    daemon = pausing(env=nft.env)
    pause(daemon, "10m")
    nft.path.unlink()
    offset = len(daemon.log())
    daemon.command("resume")
    daemon.wait_log("ERROR.*run nft", offset)
    nft.be_there()
    until(lambda: not is_open(daemon.router), "the firewall lets nobody out")
    assert_proxied(client, proxy, server)


@pytest.mark.parametrize("option", ["option log_level debug\nlist bypass 10.9.0.0/24", "option log_level debug\noption mtu 1400"])
def test_a_reload_keeps_it(configured, proxy, client, server, echo, option):
    """One that is applied, and one for which another run comes."""
    daemon = configured.write("option pause 1").start()
    pause(daemon, "500s")
    connect_direct(client, echo, server)[0].close()
    offset = configured.reload("reload: changed", main=f"option pause 1\n{option}")
    if "mtu" in option:
        daemon.wait_ready(offset)
    assert 400 < pauses(daemon)["all"] <= 500
    connect_direct(client, echo, server)[0].close()
    configured.reload("reload: changed pause", main=option)
    assert pauses(daemon) == {}, "it is no longer allowed"
    until(lambda: not is_open(daemon.router), "the firewall knows")
    assert_proxied(client, proxy, server)


def test_tables_that_others_delete_come_back_with_it(pausing, client, router, server, echo, proxy):
    daemon = pausing()
    pause(daemon, "600s")
    family = "ip6" if ":" in server else "ip"
    router.run("nft", "delete", "table", family, "tcp_over_http_toh0")
    daemon.wait_log("deleted from outside: restored")
    near, far = connect_direct(client, echo, server)
    assert_carries(near, far)


@pytest.fixture
def uplink(internet, directory):
    """The resolver of a hotel, and the page that it leads to."""
    return Unbound(internet, directory, [RESOLVER], [*RECORDS, f"other.corp.example. 300 IN A {SERVER}"])


@pytest.fixture
def naming(pausing, directory):
    """A gateway that may pause, with fake addresses."""
    return pausing("--dns", "fakeip", "--fakeip-file", directory / "names", "--resolver", RESOLVER)


def test_names_have_real_addresses_meanwhile(naming, proxy, client, router, internet, uplink, lan):
    """dnsmasq and clients keep them for seconds only; then they are fake again."""
    resolve = functools.partial(dig, router, "127.0.0.1", port=PORT_OF_DNS)
    before, = resolve(NAME)
    assert before.startswith("198.1")
    pause(naming, "10m")
    assert (resolve(NAME), resolve(NAME, "AAAA")) == ([SERVER], [SERVER6])
    ttl, = re.findall(rf"{NAME}\.\s+(\d+)", dig_full(router, "127.0.0.1", NAME, "A", "+noall", "+answer", port=PORT_OF_DNS))
    assert int(ttl) <= 10
    assert resolve("printer.local") == [], "this is nobody's business there"
    listener = internet.listen(SERVER, PORT)
    near, far = connect_direct(client, listener, dig(client, ROUTER_LAN, "other.corp.example")[0])
    assert_carries(near, far)
    resume(naming)
    assert resolve(NAME) == [before]
    assert ("printer.local", "A") not in uplink.queries()
    near.close()
    far.close()


def test_fake_addresses_in_caches(naming, proxy, client, router, internet, uplink):
    """Who still has one gets where the name leads to, from whoever is paused; at the end that is cut off."""
    fake, = dig(router, "127.0.0.1", NAME, port=PORT_OF_DNS)
    listener = internet.listen(SERVER, PORT)
    pause(naming, "10m", "--client", CLIENT)
    assert dig(router, "127.0.0.1", NAME, port=PORT_OF_DNS) == [fake], "the others have no part in it"
    near, far = connect_direct(client, listener, fake, source=CLIENT)
    assert_carries(near, far)
    other, connection = open_tunnel(client, proxy, fake, source=CLIENT_OTHER)
    assert f"CONNECT {NAME}:".encode() in connection.request
    resume(naming)
    assert_cut_off(near)
    opened, connection = open_tunnel(client, proxy, fake, source=CLIENT)
    assert f"CONNECT {NAME}:".encode() in connection.request
    for end in (near, far, other, opened):
        end.close()


def test_what_can_not_be(gateway, router):
    daemon = gateway()

    def refusal(*argv):
        result = daemon.command(*argv, check=False)
        return result.returncode, result.stderr

    assert refusal("pause", "10m") == (1, "nothing may go directly (on_failure 'block'): to pause, set option pause '1'\n")
    for duration in ("0", "61m", "2h", "x", "-5", ""):
        code, text = refusal("pause", duration)
        assert code == 2 and "pause needs a duration of at most 1h" in text, duration
    assert refusal("resume")[0] == 1
    daemon.stop()
    daemon = gateway("--on-failure", "direct")
    assert refusal("pause", "10m", "--client", "x y") == (1, "the client is no IP address\n")
    assert refusal("resume") == (1, "there is no such pause\n")
    daemon.command("pause", "10m")
