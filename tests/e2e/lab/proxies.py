"""Real proxies, each with its smallest configuration, in a namespace and a temporary directory.

Each has .port, .log() (what it says about its CONNECTs) and runs as a process of the namespace.
"""

import hashlib
import os
import pwd
import shutil
import sys

from lab.gateway import PASSWORD, PROJECT
from lab.netns import PROXY, PROXY6, command
from lab.wait import until


class Proxy:
    """A proxy process that listens on the proxy's addresses, v4 and v6."""

    port = 3128
    # The account that the proxy's own start drops to; it must reach its files.
    account = None

    def __init__(self, space, directory, **options):
        self.space = space
        self.directory = directory / type(self).__name__.lower()
        self.directory.mkdir()
        self.log_path = self.directory / "access.log"
        argv = self.configure(**options)
        if self.account:
            self.give_to(self.account)
        with open(self.directory / "output", "wb") as output:
            self.process = space.popen(*argv, stdout=output, stderr=output)
        until(self.listens, f"{type(self).__name__} listens")

    def configure(self, **options):
        """Writes the configuration; returns the command line."""
        raise NotImplementedError

    def listens(self):
        assert self.process.poll() is None, (self.directory / "output").read_text() + self.log()
        for address in (PROXY, PROXY6):
            try:
                self.space.connect(address, self.port).close()
            except OSError:
                return False
        return True

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def stop(self):
        self.space.stop(self.process)

    def write(self, name, text):
        path = self.directory / name
        path.write_text(text)
        return path

    def give_to(self, account):
        """Lets an unprivileged account into the directory."""
        user = pwd.getpwnam(account)
        for path in (self.directory, *self.directory.iterdir()):
            os.chown(path, user.pw_uid, user.pw_gid)
        for parent in self.directory.parents:
            if parent.owner() == "root" and parent.stat().st_mode & 0o1 == 0:
                parent.chmod(parent.stat().st_mode | 0o1)


class Squid(Proxy):
    account = "proxy"

    def configure(self, user=None, scheme="basic"):
        auth = ""
        if user and scheme == "digest":
            # As `htdigest`.
            secret = hashlib.md5(f"{user}:squid, they say:{PASSWORD}".encode()).hexdigest()
            users = self.write("users", f"{user}:squid, they say:{secret}\n")
            helper = shutil.which("digest_file_auth", path="/usr/lib/squid:/usr/libexec/squid")
            auth = (f"auth_param digest program {helper} -c {users}\nauth_param digest realm squid, they say\n"
                    "acl known proxy_auth REQUIRED\nhttp_access deny !known\n")
        elif user:
            # As `htpasswd -bm`, without apache2-utils.
            salted = command("openssl", "passwd", "-apr1", PASSWORD).stdout.strip()
            users = self.write("users", f"{user}:{salted}\n")
            helper = shutil.which("basic_ncsa_auth", path="/usr/lib/squid:/usr/libexec/squid")
            auth = f"auth_param basic program {helper} {users}\nacl known proxy_auth REQUIRED\nhttp_access deny !known\n"
        config = self.write("squid.conf", f"""
http_port {PROXY}:{self.port}
http_port [{PROXY6}]:{self.port}
{auth}http_access allow all
# The default allows CONNECT only to 443.
pid_filename {self.directory}/squid.pid
access_log stdio:{self.log_path}
cache_log {self.directory}/cache.log
cache_store_log none
cache deny all
cache_mem 8 MB
coredump_dir {self.directory}
dns_nameservers 127.0.0.1
shutdown_lifetime 0 seconds
pinger_enable off
client_db off
netdb_filename none
max_filedescriptors 4096
""")
        return ["squid", "-N", "-f", config, "-n", f"toh{os.getpid()}"]


class StrictSquid(Squid):
    """Squid with the ports of Debian's default configuration: CONNECT to 443 only."""

    def configure(self):
        argv = super().configure()
        path = self.directory / "squid.conf"
        rules = "acl SSL_ports port 443\nacl CONNECT method CONNECT\nhttp_access deny CONNECT !SSL_ports\n"
        path.write_text(rules + path.read_text())
        return argv


class Tinyproxy(Proxy):
    account = "tinyproxy"

    def configure(self):
        config = self.write("tinyproxy.conf", f"""
User tinyproxy
Group tinyproxy
Port {self.port}
Listen {PROXY}
Listen {PROXY6}
Timeout 600
MaxClients 500
LogFile "{self.log_path}"
LogLevel Connect
""")
        self.log_path.touch()
        return ["tinyproxy", "-d", "-c", config]


class Privoxy(Proxy):
    account = "privoxy"

    def configure(self):
        config = self.write("config", f"""
listen-address {PROXY}:{self.port}
listen-address [{PROXY6}]:{self.port}
confdir {self.directory}
logdir {self.directory}
actionsfile match.action
debug 1
debug 4096
toggle 1
socket-timeout 600
max-client-connections 500
""")
        self.write("match.action", "{+limit-connect{-}}\n/\n")
        # In the foreground it writes its log to stderr, whatever the configuration says.
        self.log_path = self.directory / "output"
        return ["privoxy", "--no-daemon", "--user", "privoxy", config]


class Apache(Proxy):
    account = "www-data"

    def configure(self):
        modules = "/usr/lib/apache2/modules"
        config = self.write("apache.conf", f"""
ServerRoot {self.directory}
ServerName proxy.test
PidFile {self.directory}/pid
DefaultRuntimeDir {self.directory}
Mutex file:{self.directory}
User www-data
Group www-data
Listen {PROXY}:{self.port}
Listen [{PROXY6}]:{self.port}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule proxy_module {modules}/mod_proxy.so
LoadModule proxy_connect_module {modules}/mod_proxy_connect.so
ErrorLog {self.directory}/error.log
LogFormat "%r %>s" request
CustomLog {self.log_path} request
Timeout 600
ProxyRequests On
AllowCONNECT 1-65535
<Proxy *>
    Require all granted
</Proxy>
""")
        return ["apache2", "-f", config, "-DFOREGROUND"]


# Of HonestProxy, in seconds: longer than a busy machine takes to connect.
CONNECT_TIMEOUT = 8


class HonestProxy(Proxy):
    """Ours: connect errors as statuses that tell them apart."""

    def configure(self):
        script = PROJECT / "tests" / "e2e" / "lab" / "honestproxy.py"
        self.log_path = self.directory / "output"
        return [sys.executable, script, self.port, CONNECT_TIMEOUT, PROXY, PROXY6]
