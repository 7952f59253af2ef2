"""The binary under test for another processor, run by qemu's user-mode emulation: TOH_RUNNER="qemu-mips-static".

qemu passes neither policy rules (netlink) nor marks nor transparent sockets (setsockopt) on to the kernel. So such
a daemon gets none of them to set, and what its rules would do is done here, from outside: the same traffic goes
into the TUN, but for connections to the proxies and resolvers themselves, which here are told by their addresses.
Tests of the daemon's own rules, and of what qemu has not, are marked with `native`.
"""

import itertools
import os
import shlex

RUNNER = shlex.split(os.environ.get("TOH_RUNNER", ""))
# Options for the daemon.
OPTIONS = ("--auto-route", "0", "--mark", "0")
# Of the rules made here: before the main table, where the daemon's own would be.
PRIORITIES = range(900, 920) if RUNNER else ()
# The part of the internet that has the proxies and the resolvers, see netns.py.
PROXIES = {4: "192.0.2.0/24", 6: "2001:db8:c::/64"}


def capture(router, tun, table, options):
    """Routes what a daemon with these options would capture into its TUN."""
    options = [str(option) for option in options]
    pairs = list(itertools.pairwise(options))
    families = (4,) if ("--ipv6", "0") in pairs else (4, 6)
    selectors = ["iif lo ipproto tcp"]
    for device in ("lan", "lan2"):  # also if it does not exist
        selectors.append(f"iif {device} ipproto tcp")
        if ("--quic", "direct") not in pairs:
            selectors.append(f"iif {device} ipproto udp dport 443")
        if ("--non-tcp", "reject") in pairs:
            selectors.append(f"iif {device}")
        if "--dns" in options:
            selectors.append(f"iif {device} ipproto udp dport 53")
    for family in families:
        rules = ["lookup main suppress_prefixlength 0", f"iif lo to {PROXIES[family]} lookup main"]
        rules += [f"{selector} lookup {table}" for selector in selectors]
        release(router, family)
        router.run("ip", f"-{family}", "route", "replace", "default", "dev", tun, "table", table)
        lines = [f"rule add priority {number} {rule}" for number, rule in zip(PRIORITIES, rules)]
        router.run("ip", f"-{family}", "-batch", "-", input="\n".join(lines) + "\n")


def release(router, family=None):
    """Removes the rules; the routes go with the TUN."""
    for each in (family,) if family else (4, 6):
        for rule in router.ip(f"-{each}", "rule", "show"):
            if rule["priority"] in PRIORITIES:
                router.run("ip", f"-{each}", "rule", "del", "priority", rule["priority"])
