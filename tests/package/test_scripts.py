"""The scripts for the router, as far as reading them tells."""

import pathlib
import re
import subprocess

import pytest

FILES = pathlib.Path(__file__).resolve().parents[2] / "openwrt/files"
SCRIPTS = sorted(
    path for path in FILES.rglob("*") if path.is_file() and re.match(rb"#!/bin/sh|# shellcheck shell", path.read_bytes())
)
# What OpenWrt's busybox has not, and what it never had.
LACKING = """
    timeout stat realpath nproc install comm sha1sum base64 od nohup diff getopt pkill bash python3 perl jq curl ip6tables
    iptables
""".split()


@pytest.fixture(params=SCRIPTS, ids=lambda path: str(path.relative_to(FILES)))
def script(request):
    return request.param


def test_there_are_scripts():
    assert len(SCRIPTS) >= 4


def test_stock_applets_are_enough(script):
    code = "\n".join(line for line in script.read_text().splitlines() if not line.lstrip().startswith("#"))
    assert not re.findall(rf"(?<![\w/$-])({'|'.join(LACKING)})(?![\w=.-])", code)
    # busybox's sleep takes whole seconds.
    assert not re.search(r"\bsleep \d*\.", code)


def test_values_come_from_the_program(script):
    """`config --shell` knows defaults and what is valid; of the configuration uci would tell neither."""
    assert not re.search(r"config_get(_bool)? \w+ main\b|uci (-q )?get tcp-over-http", script.read_text())


def test_ash_reads_it(script):
    subprocess.run(["busybox", "ash", "-n", script], check=True)


def test_includes_of_the_firewall_match_nothing_while_nothing_runs():
    includes = sorted(FILES.glob("usr/share/nftables.d/**/*.nft"))
    assert len(includes) == 2
    for path in includes:
        # nft takes only a pattern that matches no file.
        assert re.fullmatch(r'include "/var/run/tcp-over-http/\w+\*\.nft"\n', path.read_text()), path
