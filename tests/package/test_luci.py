"""LuCI's page held against the daemon: its options, its words, its rights, its package."""

import functools
import gzip
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import re
import subprocess

import pytest

from packages import ARCHS, EPOCH, ROOT, members, mkpkg_stand_in, pack, package_version, parts, version

APP = ROOT / "openwrt/luci-app-tcp-over-http"
VIEWS = sorted((APP / "htdocs").rglob("*.js"))
LANGUAGES = {"de": "de", "zh_Hans": "zh-cn"}


def load_translations():
    loader = importlib.machinery.SourceFileLoader("translations", str(ROOT / "scripts/translations"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("translations", loader))
    loader.exec_module(module)
    return module


translations = load_translations()


@functools.cache
def table():
    """The daemon's options by section, of the table itself: no binary is needed."""
    text = (ROOT / "src/config/table.rs").read_text()
    sections = re.findall(r"pub static (MAIN|UPSTREAM|RULE)(.*?)^\];", text, re.M | re.S)
    return {name.lower(): re.findall(r'^    (?:live|restart)\("(\w+)"', body, re.M) for name, body in sections}


def words_of_settings():
    """[option, title, sentence] as the view has them, by the names of its lists."""
    text = (APP / "htdocs/luci-static/resources/view/tcp-over-http/settings.js").read_text()
    names = ("FIRST", "PROXY", "PROXY_MORE", "RULE", "MATCHES", "OUTCOMES", "TABS")
    lists = {name: re.search(rf"^const {name} = \[(.*?)^\];", text, re.M | re.S)[1] for name in names}
    string = r"""_\(('(?:[^'\\]|\\.)+'|"(?:[^"\\]|\\.)+")\)"""
    return {name: re.findall(rf"\[ '(\w+)', {string}, {string} \]", body) for name, body in lists.items()}


def test_each_option_is_on_the_page_and_each_of_the_page_is_an_option():
    words = words_of_settings()
    main = [name for name, *_ in words["FIRST"] + words["TABS"]]
    assert sorted(main) == sorted(table()["main"])
    assert sorted(name for name, *_ in words["PROXY"] + words["PROXY_MORE"]) == sorted(table()["upstream"])
    assert sorted(name for name, *_ in words["RULE"] + words["MATCHES"] + words["OUTCOMES"]) == sorted(table()["rule"])


def test_each_option_has_a_title_and_one_sentence():
    for name, title, sentence in (words for words in words_of_settings().values() for words in words):
        assert title and not title[1:-1].endswith("."), name
        assert sentence[1:-1].endswith("."), name


def test_choices_and_reasons_have_words():
    common = (APP / "htdocs/luci-static/resources/tcp-over-http/common.js").read_text()
    reasons = re.findall(r'=> "([^"]+)"', (ROOT / "src/rewrite/verdict.rs").read_text())
    names = re.findall(r'^    \w+ = "(\w+)",$', (ROOT / "src/rewrite/verdict.rs").read_text(), re.M)
    assert len(names) > 10
    for name in names:
        assert re.search(rf"^\t{name}: _\(", common, re.M) or name in ("not_tcp", "address", "repeated_syn"), name
    changes = re.findall(r'Self::\w+ => "([^"]+)"', (ROOT / "src/upstream/history.rs").read_text())
    assert changes and not [one for one in changes + reasons if f"'{one}':" not in common]
    refusal = re.search(r'refuse\("(nothing may go directly.*?)"\)', (ROOT / "src/daemon/event_loop/requests.rs").read_text())[1]
    assert f'"{refusal}":' in common
    states = re.findall(r'\(?"(ok|resting|confirming|holding|uplink_down)"', (ROOT / "src/daemon/report/status.rs").read_text())
    assert set(states) == set(re.findall(r"^\t(\w+): \[ _\(", common, re.M))


# Our own words, and lists.
OURS = (r"_\(|E\(|chosen \? _\(|bad \? _\(|' — ' \+ _\(|words\)"
        r"|(?:status\.\w+|names|history|pauses|lines?|sorted|told|\(told)\b.*map\(|this\.blank")


def test_what_comes_from_the_router_is_never_html():
    """E() takes a string for HTML: all that it is given are our own, in quotes, or lists."""
    for path in VIEWS:
        for child in re.findall(r"E\('\w+', \{[^{}]*\}, ([^\[\s][^\n]*)", path.read_text()):
            ours = re.match(OURS, child)
            assert ours, f"{path.name}: {child}"


def test_the_acl_grants_the_calls_that_are_made():
    acl = json.loads((APP / "root/usr/share/rpcd/acl.d/luci-app-tcp-over-http.json").read_text())
    assert list(acl) == ["luci-app-tcp-over-http"]
    acl = acl["luci-app-tcp-over-http"]
    granted = {access: {(name, method) for name, methods in acl[access]["ubus"].items() for method in methods}
               for access in ("read", "write")}
    made = {call for path in VIEWS for call in re.findall(r"object: '([\w-]+)', method: '(\w+)'", path.read_text())}
    assert granted["read"] | granted["write"] == made and not granted["read"] & granted["write"]
    assert granted["read"] == {("luci-rpc", "getHostHints")} | {
        ("tcp-over-http", method) for method in ("clients", "history", "settings", "status")}
    # Not to be read: it would give the passwords.
    assert acl["write"]["uci"] == ["tcp-over-http"] and "uci" not in acl["read"]
    source = "".join(path.read_text() for path in VIEWS)
    assert not re.search(r"'require (fs|uci)\b|\beval\(|innerHTML", source)


def test_the_menu_leads_to_views_that_there_are():
    menu = json.loads((APP / "root/usr/share/luci/menu.d/luci-app-tcp-over-http.json").read_text())
    assert menu["admin/services/tcp-over-http"]["depends"]["acl"] == ["luci-app-tcp-over-http"]
    paths = {entry["action"]["path"] for entry in menu.values() if "path" in entry["action"]}
    assert paths == {f"tcp-over-http/{path.stem}" for path in VIEWS if path.parent.parent.name == "view" and path.stem[0] != "7"}


def test_all_strings_are_in_the_template_and_translated():
    """scripts/translations brings them up to date."""
    # LuCI looks for a string without the spaces around it.
    assert not [text for text in translations.strings() if text != " ".join(text.split())]
    for path, text in translations.files().items():
        assert path.read_text() == text, f"{path.name}: run scripts/translations"
    for language in LANGUAGES:
        for text, translated in translations.read(translations.po(language)).items():
            assert translated, f"{language}: {text}"
            if text:
                assert re.findall(r"%\w", text) == re.findall(r"%\w", translated), f"{language}: {text}"
    assert set(translations.languages()) == set(LANGUAGES)


def lookup(data, text):
    """What LuCI finds in a compiled translation."""
    at = int.from_bytes(data[-4:], "big")
    words = [int.from_bytes(data[place : place + 4], "big") for place in range(at, len(data) - 4, 4)]
    entries = [words[place : place + 4] for place in range(0, len(words), 4)]
    assert entries == sorted(entries)
    offset, length = next(entry[2:] for entry in entries if entry[0] == translations.sfh(text.encode()))
    return data[offset : offset + length].decode()


def test_hashes_are_those_of_luci():
    # As LuCI's cbi.js computes them.
    for text, value in HASHES.items():
        assert translations.sfh(text.encode()) == value, text


HASHES = {"a": 0x115EA782, "ab": 0x516B8B44, "abc": 0xD2BE198A, "Under way…": 0xE8F70296, "Übersicht über alles": 0x8B416E4B}


@pytest.fixture(scope="module")
def ipk(tmp_path_factory):
    dist = tmp_path_factory.mktemp("dist")
    pack("ipk", dist)
    return dist / f"all/luci-app-tcp-over-http_{package_version()}_all.ipk"


def expected():
    files = {}
    for folder, root in (("htdocs", "www/"), ("root", "")):
        for path in (APP / folder).rglob("*"):
            if path.is_file():
                files[root + path.relative_to(APP / folder).as_posix()] = path.read_bytes()
    return files


def test_the_package_holds_the_page_and_its_languages(ipk):
    data, control = parts(ipk)
    found, _ = members(data)
    files = {name.removeprefix("./"): content for name, (info, content) in found.items() if info.isfile()}
    for language, name in LANGUAGES.items():
        compiled = files.pop(f"usr/lib/lua/luci/i18n/tcp-over-http.{name}.lmo")
        assert lookup(compiled, "Proxies") == translations.read(translations.po(language))["Proxies"]
    assert files == expected()
    assert {(info.mode, info.uid, info.mtime) for info, _ in found.values() if info.isfile()} == {(0o644, 0, EPOCH)}
    found, _ = members(control)
    assert sorted(found) == [".", *(f"./{name}" for name in ("control", "postinst", "postinst-pkg", "postrm", "prerm"))]
    fields = dict(line.split(": ", 1) for line in found["./control"][1].decode().splitlines())
    assert (fields["Package"], fields["Architecture"], fields["Section"]) == ("luci-app-tcp-over-http", "all", "luci")
    assert fields["Depends"] == "luci-base, tcp-over-http" and int(fields["Installed-Size"]) == len(gzip.decompress(data))
    assert ipk.stat().st_size < 40_000


def test_apk_is_given_the_same(tmp_path):
    pack("apk", tmp_path / "dist", APK=str(mkpkg_stand_in(tmp_path)))
    (package,) = (tmp_path / "dist/all/noarch").glob("*.apk")
    assert package.name == f"luci-app-tcp-over-http-{package_version()}.apk"
    arguments = package.read_text().splitlines()
    assert {"info arch:noarch", "info depends:luci-base tcp-over-http", "script post-install"} <= set(arguments)
    assert f"./www/luci-static/resources/tcp-over-http/common.js 644 0 0 {EPOCH}" in arguments


def test_its_script_has_rpcd_and_luci_look_anew(ipk, tmp_path):
    script = members(parts(ipk)[1])[0]["./postinst-pkg"][1]
    (tmp_path / "postinst").write_bytes(script)
    assert b"/tmp/luci-indexcache" in script and b"rpcd reload" in script
    subprocess.run(["sh", tmp_path / "postinst"], env=os.environ | {"IPKG_INSTROOT": str(tmp_path)}, check=True)


def test_the_makefile_is_that_of_a_luci_app():
    text = (APP / "Makefile").read_text()
    assert text.startswith("# SPDX-License-Identifier: MIT\n")
    for line in ("LUCI_PKGARCH:=all", "LUCI_DEPENDS:=+luci-base +tcp-over-http", f"PKG_VERSION:={version()}", "PKG_LICENSE:=MIT"):
        assert f"\n{line}\n" in text, line
    # luci.mk would have csstidy minify the stylesheet, which leaves no grid and no @media of it.
    assert "\nLUCI_MINIFY_CSS:=0\n" in text.split("include $(TOPDIR)/feeds/luci/luci.mk")[0]
    assert "include $(TOPDIR)/feeds/luci/luci.mk" in text and "call BuildPackage" in text
    assert all(pathlib.Path(path).read_text().startswith("// SPDX") for path in VIEWS)
    assert len(ARCHS) == 2
