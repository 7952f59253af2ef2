"""The doctor: a healthy set-up is all ok, and each fault is found and named."""

import pytest

from lab.dnsservers import PORT, dig
from lab.faultproxy import reply
from lab.gateway import PATH, TUN, upstream
from lab.netns import PROXY, SERVER, with_mounts
from lab.proxies import StrictSquid
from lab.wait import until

pytestmark = pytest.mark.native(why="it misses the rules, rightly")

ROOM = "each forwarded connection is one, and new ones are dropped when it is full: raise net.netfilter.nf_conntrack_max"
BASIC = b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n"


def examine(daemon, target=SERVER):
    """The exit code, and the lines by kind."""
    done = daemon.command("doctor", "--target", target, check=False)
    found = {"ok": [], "warn": [], "FAIL": []}
    for line in done.stdout.splitlines():
        kind, _, text = line.partition(" ")
        found[kind].append(text.strip())
    assert not done.stderr, done.stderr
    assert done.returncode == (1 if found["FAIL"] else 0), done.stdout
    return found


def only(lines, *wanted):
    """There is a line for each of the texts, and no other."""
    assert len(lines) == len(wanted) and all(text in line for text, line in zip(wanted, lines)), lines


@pytest.fixture
def gateway_unused(gateway):
    return gateway.unused


@pytest.fixture
def gateway(gateway, client):
    """One that a client has used already."""

    def start(*options, **more):
        daemon = gateway(*options, **more)
        client.begin_connect(SERVER, 443).close()
        until(lambda: daemon.status()["flows"]["from_lan"] or not more.get("routes", True), "the client's SYN comes")
        return daemon

    start.unused = gateway
    return start


@pytest.fixture
def answering(proxy):
    """A proxy that answers each port as told, and others with 200."""

    def answer(**statuses):
        def handler(connection):
            status = statuses.get(f"port_{connection.port}", 200)
            connection.send(status if isinstance(status, bytes) else reply(status))

        return proxy.serve(handler)

    return answer


@pytest.mark.parametrize("target", [SERVER, "example.com"])
def test_healthy(gateway, answering, target):
    """All is well, whether ports are open at the target or not."""
    proxy = answering(port_53=503, port_22=502)
    daemon = gateway()
    found = examine(daemon, target)
    assert not found["FAIL"] and not found["warn"], found
    tables = ("the firewall's tables",) if PATH == "forward" else ()
    only(found["ok"], "/dev/net/tun", "daemon answers", "has 10.45.39.1", "has fd45:39::1", "rules and routes", *tables,
         "ipv4 gets from toh0", "ipv6 gets from toh0", "port 443", "port 80", "port 53", "port 22")
    wanted = {f"{target}:{port}" for port in (443, 80, 53, 22)}
    assert {connection.target for connection in proxy.connections} == wanted | {f"{SERVER}:443"}


@pytest.mark.once(why="this check knows no path")
def test_no_daemon(gateway, answering):
    answering()
    daemon = gateway()
    daemon.stop()
    only(examine(daemon)["FAIL"], "the daemon answers: start it")


@pytest.mark.parametrize("verdict", ["drop", "reject", "reject with tcp reset"])
def test_input_rejects(gateway, answering, router, verdict):
    """As the zones of a router do by default. The daemon says so by itself, too, and when it is over."""
    answering()
    daemon = gateway()
    router.nft(f"""
table inet fw {{
    chain input {{
        type filter hook input priority 0; ct state established accept
        iifname {TUN} meta l4proto tcp {verdict}
    }}
}}
""")
    only(examine(daemon)["FAIL"], "ipv4 gets from toh0 to the listener: the firewall's input", "ipv6 gets from toh0")
    daemon.wait_log(r"WARN.*ipv4: connections do not get from the TUN to the listener")
    assert daemon.status()["listener"]["ipv4"] is False
    router.run("nft", "delete", "table", "inet", "fw")
    assert not examine(daemon)["FAIL"]
    daemon.wait_log(r"INFO.*ipv4: connections get to the listener again")


@pytest.mark.path("relay", why="the other needs none")
def test_routes_are_gone(gateway, answering):
    answering()
    daemon = gateway()
    # What is taken away comes back at once: so others than there are.
    daemon.options = (*daemon.options, "--rule-priority", "1900")
    only(examine(daemon)["FAIL"], "rules and routes are there: somebody")


@pytest.mark.once(why="this check knows no path")
def test_proxy_is_down(gateway):
    daemon = gateway(upstreams=(upstream("192.0.2.10", 3129),))
    only(examine(daemon)["FAIL"], "upstream 192.0.2.10:3129: Connection refused")


@pytest.mark.once(why="this check knows no path")
def test_proxy_is_no_proxy(gateway, answering):
    answering(port_443=b"SSH-2.0-OpenSSH_9.2\r\n")
    only(examine(gateway())["FAIL"], "check the port")


@pytest.mark.once(why="this check knows no path")
def test_unknown_name(gateway, router):
    daemon = gateway("--resolver", "127.0.0.1:5", upstreams=("http://proxy.invalid:3128",))
    only(examine(daemon)["FAIL"], "upstream proxy.invalid:3128: no resolver answers: list resolver")


@pytest.mark.once(why="this check knows no path")
@pytest.mark.parametrize("user, text", [(None, "wants credentials, none configured"), ("me", "refuses the credentials")])
def test_authentication(gateway, answering, user, text):
    answering(port_443=BASIC)
    only(examine(gateway(upstreams=(upstream(user=user),)))["FAIL"], f"407: {text}: check username and password")


@pytest.mark.once(why="this check knows no path")
@pytest.mark.parametrize("relay", ["auto", "never"])
def test_ports_that_are_refused(gateway, answering, relay):
    answering(port_80=403, port_53=403, port_22=405)
    found = examine(gateway("--http-relay", relay))
    assert not found["FAIL"]
    others = ("port 53: status 403: DNS over TCP", "port 22: status 405: ssh")
    if relay == "auto":
        only(found["warn"], *others)
        assert any("port 80: status 403: carried as HTTP requests" in line for line in found["ok"])
    else:
        only(found["warn"], "port 80: status 403: plain http", *others)


@pytest.mark.once(why="this check knows no path")
def test_https_is_refused(gateway, answering):
    answering(port_443=403)
    only(examine(gateway())["FAIL"], "port 443: status 403")


@pytest.mark.once(why="this check knows no path")
def test_target_is_not_reached(gateway, answering):
    answering(port_443=503)
    only(examine(gateway())["FAIL"], "port 443: status 503: it does not reach the target")


@pytest.mark.once(why="this check knows no path")
def test_nothing_is_reached(gateway, answering):
    """Then no port is well."""
    answering(port_443=503, port_80=503, port_53=503, port_22=502)
    found = examine(gateway())
    only(found["FAIL"], "port 443: status 503: it does not reach the target")
    only(found["warn"], *(f"{port}: status {status}: it does not reach" for port, status in ((80, 503), (53, 503), (22, 502))))


@pytest.mark.once(why="the device knows no path")
def test_another_instance(gateway_unused):
    gateway_unused()
    other = gateway_unused(ready=False)
    other.wait_log(r"ERROR.*toh0: create it: .*another tcp-over-http")


@pytest.mark.once(why="this check knows no path")
def test_real_squid(gateway, internet, directory):
    """With the ports of its default configuration."""
    StrictSquid(internet, directory)
    server = internet.listen(SERVER, 443)
    found = examine(gateway())
    assert not found["FAIL"]
    only(found["warn"], "port 53: status 403", "port 22: status 403")
    server.close()


@pytest.mark.once(why="this check knows no path")
def test_ipv6_leaks(gateway, answering):
    answering()
    found = examine(gateway("--ipv6", "0"))
    assert not found["FAIL"]
    only(found["warn"], "there is a default route for IPv6")


@pytest.mark.once(why="this check knows no path")
def test_fake_addresses_are_private(gateway, answering, directory):
    """Chrome's Local Network Access takes fc00::/7 for local, and 198.18.0.0/15 and 2001:2::/48 for public."""
    answering()
    options = ("--dns", "fakeip", "--fakeip-file", directory / "names")
    daemon = gateway(*options)
    assert not examine(daemon)["warn"]
    daemon.stop()
    only(examine(gateway(*options, "--fakeip-range6", "fd45:3a::/64"))["warn"], "fakeip_range6 fd45:3a::/64 is private")


@pytest.mark.once(why="how names are answered knows no path")
def test_time_servers(gateway, answering, directory, router):
    answering()
    daemon = gateway("--dns", "fakeip", "--fakeip-file", directory / "names")
    for name in ("dns.msftncsi.com", "www.example"):
        dig(router, "127.0.0.1", name, port=PORT)
    assert not examine(daemon)["warn"]
    dig(router, "127.0.0.1", "0.openwrt.pool.ntp.org", port=PORT)
    only(examine(daemon)["warn"], "fake addresses for time servers: their UDP can't go through the proxy")


def test_nothing_comes(answering, gateway_unused, router):
    """The firewall drops what is forwarded, as Docker has it. The machine's own connections are none of a client."""
    answering()
    daemon = gateway_unused()
    router.begin_connect(SERVER, 443).close()
    until(lambda: daemon.status()["flows"]["opened"], "its own SYN comes")
    only(examine(daemon)["warn"], "no connection of another machine has come yet")


@pytest.mark.once(why="this check knows no path")
def test_strict_filter(gateway, answering, router):
    answering()
    daemon = gateway()
    router.sysctl("net.ipv4.conf.wan.rp_filter", 1)
    only(examine(daemon)["warn"], "rp_filter of wan is strict")


@pytest.mark.once(why="this check knows no path")
@pytest.mark.parametrize("mark, advice", [("0", "set a mark"), ("0x74000000", "does its network overlap")])
def test_loop(gateway, answering, router, mark, advice):
    """Routes by hand, and no mark; or one that is no help."""
    answering()
    daemon = gateway("--mark", mark, "--path", "relay", routes=())
    router.run("ip", "route", "add", PROXY, "dev", TUN)
    found = examine(daemon)
    assert any("connections enter toh0: they would be captured" in line for line in found["FAIL"]), found


@pytest.mark.path("forward", why="relayed connections have sockets")
@pytest.mark.parametrize("count, most, is_warned", [(1, 2048, True), (15_000, 16_384, True), (9_000, 16_384, False)])
def test_room_in_conntrack(gateway, answering, directory, count, most, is_warned):
    """Forwarded connections need it: the doctor, and it alone, sees these numbers."""
    answering()
    daemon = gateway()
    for name, number in (("count", count), ("max", most)):
        (directory / name).write_text(f"{number}\n")
    mounts = [f"mount --bind {directory / name} /proc/sys/net/netfilter/nf_conntrack_{name}" for name in ("count", "max")]
    daemon.prefix = with_mounts(" && ".join(mounts))
    found = examine(daemon)["warn"]
    assert found == ([f"connection tracking has {count} of at most {most} entries: {ROOM}"] if is_warned else []), found


@pytest.mark.once(why="this check knows no path")
def test_configuration_is_wrong(gateway, answering, directory):
    answering()
    daemon = gateway()
    daemon.options = (*daemon.options, "--mtu", "1")
    assert any("configuration: command line: mtu" in line for line in examine(daemon)["FAIL"])
