"""What is compared: each class knows how one gateway is installed, configured and started.

Every peer runs with the best of its documented settings that we found; where there is a choice, the
variants stand side by side.
"""

import json
import subprocess
from pathlib import Path

import install
from lab import CLIENT_LINK, PROXY, SERVER_NET, Lab, file_limit

REDIRECT_PORT = 12345
PROXY_URL = f"http://{PROXY[0]}:{PROXY[1]}"


class Gateway:
    """A way from the client to the servers."""

    # As in `--only`, in tables and in results.
    name = ""
    # One of: limit, ours, kernel (redirect or tproxy), tun.
    kind = ""
    note = ""
    # Whether the client itself asks the proxy.
    via_proxy = False
    binary: Path | None = None

    def install(self) -> str:
        """Sees to it that the program is there; returns its version. Raises install.Missing."""
        return ""

    def start(self, lab: Lab) -> subprocess.Popen | None:
        """Starts it in the router. None: there is no process."""
        return None


class Plain(Gateway):
    name = "plain"
    kind = "limit"
    note = "plain forwarding, no proxy"

    def start(self, lab):
        lab.open_router()


class Straight(Gateway):
    name = "straight"
    kind = "limit"
    note = "client straight to the proxy"
    via_proxy = True


class TcpOverHttp(Gateway):
    """This project; `path` as in its option of that name."""

    kind = "ours"

    def __init__(self, path: str):
        self.name = f"tcp-over-http-{path}"
        self.note = f"tcp-over-http, {path} path"
        self.path = path

    def install(self):
        self.binary = install.daemon()
        usage = subprocess.run([self.binary, "--help"], capture_output=True, text=True, check=True).stdout
        if self.path not in usage:
            raise install.Missing(f"this build has no path '{self.path}'")
        return install.version([self.binary, "--version"])

    def start(self, lab):
        # Two sockets a flow, and some files for the rest.
        flows = min(65_000, (file_limit() - 192) // 2)
        (lab.dir / "empty").touch()
        argv = [self.binary, "run", "--config", "empty", "--upstream", PROXY_URL, "--route", SERVER_NET]
        argv += ["--max-flows", flows, "--log-level", "warn", "--path", self.path]
        return lab.spawn("router", argv)


class Redsocks(Gateway):
    """Debian's redsocks, behind the kernel's redirect."""

    kind = "kernel"

    def __init__(self, splice: bool):
        self.splice = splice
        self.name = "redsocks-splice" if splice else "redsocks-copy"
        self.note = f"redsocks, splice = {str(splice).lower()}"

    def install(self):
        self.binary = install.debian("redsocks", "redsocks")
        return install.version([self.binary, "-v"])

    def start(self, lab):
        files = file_limit()
        per_connection = 6 if self.splice else 2
        (lab.dir / "redsocks.conf").write_text(f"""
base {{ log_debug = off; log_info = off; log = stderr; daemon = off; redirector = iptables;
  rlimit_nofile = {files}; redsocks_conn_max = {(files - 100) // per_connection}; }}
redsocks {{ local_ip = 0.0.0.0; local_port = {REDIRECT_PORT}; ip = {PROXY[0]}; port = {PROXY[1]};
  type = http-connect; listenq = 4096; splice = {str(self.splice).lower()}; }}
""")
        _redirect(lab)
        return lab.spawn("router", [self.binary, "-c", "redsocks.conf"])


class SingBox(Gateway):
    """sing-box with one kind of inbound: a stack of its TUN, redirect or tproxy."""

    def __init__(self, inbound: str, mtu: int = 65_535):
        self.inbound = inbound
        self.mtu = mtu
        self.kind = "kernel" if inbound in ("redirect", "tproxy") else "tun"
        self.name = f"sing-box-{inbound}"
        self.note = f"sing-box, {inbound}" if self.kind == "kernel" else f"sing-box, tun, {inbound} stack"

    def install(self):
        self.binary = install.go("sing-box", "github.com/sagernet/sing-box/cmd/sing-box", "with_gvisor")
        return install.go_version(self.binary)

    def start(self, lab):
        host, port = PROXY
        if self.kind == "kernel":
            inbound = {"type": self.inbound, "listen": "0.0.0.0", "listen_port": REDIRECT_PORT}
            if self.inbound == "tproxy":
                inbound["network"] = "tcp"
                _tproxy(lab)
            else:
                _redirect(lab)
        else:
            inbound = {
                "type": "tun",
                "interface_name": "tun0",
                "address": ["172.19.0.1/30"],
                "mtu": self.mtu,
                "stack": self.inbound,
                "auto_route": False,
            }
        config = {
            "log": {"level": "error"},
            "inbounds": [inbound],
            "outbounds": [{"type": "http", "server": host, "server_port": port}],
        }
        (lab.dir / "sing-box.json").write_text(json.dumps(config))
        process = lab.spawn("router", [self.binary, "run", "-c", "sing-box.json"])
        if self.kind == "tun":
            _route(lab, "tun0")
        return process


class Tun2proxy(Gateway):
    """tun2proxy of crates.io."""

    name = "tun2proxy"
    kind = "tun"
    note = "tun2proxy"

    def install(self):
        self.binary = install.cargo("tun2proxy", "tun2proxy-bin")
        return install.version([self.binary, "--version"])

    def start(self, lab):
        argv = [self.binary, "--tun", "tun0", "--proxy", PROXY_URL, "--dns", "direct", "--verbosity", "error"]
        process = lab.spawn("router", [*argv, "--max-sessions", 65_000])
        _route(lab, "tun0")
        return process


class Tun2socks(Gateway):
    """tun2socks of xjasonlyu."""

    name = "tun2socks"
    kind = "tun"
    note = "tun2socks (Go, gVisor)"

    def install(self):
        release = "v2.6.0"
        self.binary = install.go_module("tun2socks", "github.com/xjasonlyu/tun2socks/v2", release)
        return f"tun2socks {release}"

    def start(self, lab):
        argv = [self.binary, "-device", "tun://tun0", "-proxy", PROXY_URL, "-loglevel", "error"]
        process = lab.spawn("router", [*argv, "-tcp-auto-tuning"])
        _route(lab, "tun0")
        return process


class Mihomo(Gateway):
    """mihomo (Clash Meta) with one kind of inbound: a stack of its TUN, or tproxy."""

    def __init__(self, inbound: str):
        self.inbound = inbound
        self.kind = "kernel" if inbound == "tproxy" else "tun"
        self.name = f"mihomo-{inbound}"
        self.note = f"mihomo, {inbound}" if self.kind == "kernel" else f"mihomo, tun, {inbound} stack"

    def install(self):
        release = "v1.19.13"
        module = "github.com/metacubex/mihomo"
        self.binary = install.go_module("mihomo", module, release, "with_gvisor")
        return f"mihomo {release}"

    def start(self, lab):
        host, port = PROXY
        config = {
            "log-level": "error",
            "mode": "rule",
            "ipv6": False,
            "find-process-mode": "off",
            "dns": {"enable": False},
            "proxies": [{"name": "proxy", "type": "http", "server": host, "port": port}],
            "rules": ["MATCH,proxy"],
        }
        if self.kind == "kernel":
            config |= {"tproxy-port": REDIRECT_PORT, "allow-lan": True, "bind-address": "*"}
            _tproxy(lab)
        else:
            config["tun"] = {
                "enable": True,
                "stack": self.inbound,
                "device": "tun0",
                "auto-route": False,
                "auto-detect-interface": False,
                "mtu": 65_535,
            }
        # JSON is YAML.
        (lab.dir / "mihomo.yaml").write_text(json.dumps(config))
        process = lab.spawn("router", [self.binary, "-d", lab.dir, "-f", "mihomo.yaml"])
        if self.kind == "tun":
            _route(lab, "tun0")
        return process


def every() -> list[Gateway]:
    """All gateways, in the order of the tables."""
    return [
        Plain(),
        Straight(),
        TcpOverHttp("forward"),
        TcpOverHttp("relay"),
        Redsocks(splice=True),
        Redsocks(splice=False),
        SingBox("redirect"),
        SingBox("tproxy"),
        SingBox("system"),
        SingBox("gvisor"),
        SingBox("mixed"),
        Mihomo("tproxy"),
        Mihomo("system"),
        Mihomo("gvisor"),
        Tun2socks(),
        Tun2proxy(),
    ]


def _route(lab: Lab, device: str):
    """Leads the servers' addresses into a TUN as soon as there is one."""
    lab.wait_until(lambda: device in lab.run("router", ["ip", "-br", "link"]), f"{device} exists")
    lab.run("router", ["ip", "link", "set", device, "up"])
    lab.run("router", ["ip", "route", "replace", SERVER_NET, "dev", device])


def _prerouting(lab: Lab, chain: str):
    """Loads the router's chain for what comes from the client, with these rules."""
    rules = f"table ip bench {{\n  chain prerouting {{\n{chain}\n  }}\n}}\n"
    lab.run("router", ["nft", "-f", "-"], rules)


def _redirect(lab: Lab):
    _prerouting(
        lab,
        f"""
    type nat hook prerouting priority dstnat
    iifname {CLIENT_LINK} ip daddr {SERVER_NET} tcp dport 1-65535 redirect to :{REDIRECT_PORT}""",
    )


def _tproxy(lab: Lab):
    _prerouting(
        lab,
        f"""
    type filter hook prerouting priority mangle
    meta l4proto tcp socket transparent 1 meta mark set 1 accept
    iifname {CLIENT_LINK} ip daddr {SERVER_NET} meta l4proto tcp tproxy to :{REDIRECT_PORT} \\
      meta mark set 1 accept""",
    )
    lab.run("router", ["ip", "rule", "add", "fwmark", "1", "lookup", "100"])
    lab.run("router", ["ip", "route", "add", "local", "default", "dev", "lo", "table", "100"])
