"""The pages in a browser, on a router that does something."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket

import pytest
from server import HINTS, translations

from lab.faultproxy import OK, reply
from lab.gateway import PATH
from lab.netns import PROXY, PROXY_OTHER, SERVER, command
from lab.wait import until

FIRST, SECOND = "first", "second"
SECRET = "hunter2-must-not-show"
LANGUAGES = ["de", "zh_Hans"]
PICTURES = os.environ.get("PICTURES")


def write(box, *main, sections=()):
    """A configuration: all that is captured goes through the proxies of the sections."""
    lines = ["option auto_route '1'", "option log_level 'debug'", f"option path '{PATH}'", *main]
    text = "config tcp-over-http 'main'\n" + "".join(f"\t{line}\n" for line in lines)
    for name, host, *options in sections:
        lines = [f"option host '{host}'", "option port '3128'", *options]
        text += f"\nconfig upstream '{name}'\n" + "".join(f"\t{line}\n" for line in lines)
    (box.root / "etc/config/tcp-over-http").write_text(text)


OFFICE = ("office", PROXY, "option username 'joe'", f"option password '{SECRET}'")
HOME = ("home", PROXY_OTHER)


def serve(box, *main, sections=(("first", PROXY), ("second", PROXY_OTHER)), rules=""):
    write(box, *main, sections=sections)
    with open(box.root / "etc/config/tcp-over-http", "a") as file:
        file.write(rules)
    offset = len(box.log())
    box.service("restart")
    box.wait_ready(offset)


def status(box):
    return json.loads(box.run("/usr/bin/tcp-over-http", "status", "--json").stdout)


def config(box):
    return (box.root / "etc/config/tcp-over-http").read_text()


def field(page, section, option):
    return page.locator(f'[data-field="cbid.json.{section}.{option}"]')


def save(page):
    page.locator(".cbi-page-actions .cbi-button-apply").first.click()


def is_seen(locator):
    """Where the page is scrolled to."""
    return locator.evaluate("""node => {
        const { top, bottom } = node.getBoundingClientRect();
        return top >= 0 && bottom <= window.innerHeight;
    }""")


def test_overview(box, visit, lab):
    serve(box)
    client = lab[0].client
    held = [client.connect(SERVER, 80) for _ in range(3)]
    page = visit("overview")
    page.locator(".toh-card").nth(1).wait_for()
    assert page.locator(".toh-card h4").all_inner_texts() == [FIRST, SECOND]
    assert "connections: 3" in page.locator(".toh-card").first.inner_text()
    assert [FIRST in text for text in page.locator(".toh-card", has_text="asked first").all_inner_texts()] == [True]
    assert re.search(r"Running. Uptime: .*; open connections: 3\.", page.locator(".toh-state").first.inner_text())
    assert client.connect(SERVER, 80).recv(5) == b"hello"
    # What is told again after 5 s.
    page.locator(".toh-wide svg path[d^=M]").first.wait_for(state="attached")
    assert re.match(r"laptop 10\.1\.0\.2\s*connections: [34]", page.locator(".toh-clients li").inner_text())
    assert "Dropped" not in page.inner_text("#view")
    # Whoever carries them, the daemon or the kernel.
    until(lambda: not re.search("total: ↓ 0 B", page.locator(".toh-wide").inner_text()), "bytes are counted")
    for sock in held:
        sock.close()


def test_what_is_carried_as_requests_counts(box, visit, lab, proxies):
    serve(box, "option http_relay 'always'", sections=[OFFICE])
    proxies[PROXY] = b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + bytes(100_000)
    near = lab[0].client.connect(SERVER, 80)
    near.sendall(f"GET / HTTP/1.1\r\nHost: {SERVER}\r\n\r\n".encode())
    near.recv(100_000, socket.MSG_WAITALL)
    page = visit("overview")
    page.get_by_text("open connections: 1.").wait_for()
    card = page.locator(".toh-card").inner_text()
    assert "connections: 1" in card and "↓ 97." in card and "answers in" in card, card
    page.locator(".toh-wide", has_text=re.compile(r"total: ↓ 9[78]\..*KiB")).wait_for()
    near.close()


def test_one_click_uses_a_proxy_and_another_none(box, visit):
    serve(box)
    page = visit("overview")
    page.locator(f'.toh-card[data-proxy="{SECOND}"] button').click()
    page.get_by_text("You have chosen one").wait_for()
    assert [one["chosen"] for one in status(box)["upstreams"]] == [False, True]
    page.locator("li", has_text=SECOND).filter(has_text="chosen").first.wait_for()
    # With the keyboard alone.
    page.get_by_role("button", name="Choose automatically").focus()
    page.keyboard.press("Enter")
    page.get_by_text("The first that works is used").wait_for()
    assert not any(one["chosen"] for one in status(box)["upstreams"])


def test_a_pause_and_its_end(box, visit):
    serve(box)
    page = visit("overview")
    page.get_by_role("button", name="Pause for 10 minutes").click()
    page.get_by_text("Pauses are not allowed yet").wait_for()
    serve(box, "option pause '1'")
    page = visit("overview")
    page.get_by_role("button", name="Pause for 10 minutes").click()
    page.get_by_text("Paused: connections go out directly (10 min left)").wait_for()
    assert status(box)["pauses"][0]["client"] == "all"
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("button", name="Pause for 10 minutes").wait_for()
    assert status(box)["pauses"] == []


def test_a_pause_of_one_client_and_its_end(box, visit):
    serve(box, "option pause '1'")
    box.run("/usr/bin/tcp-over-http", "pause", "10m", "--client=10.1.0.2")
    page = visit("overview")
    page.get_by_text("Paused for 10.1.0.2").wait_for()
    page.get_by_role("button", name="Pause for 10 minutes").wait_for()
    page.get_by_role("button", name="Resume").click()
    page.get_by_text("Paused for 10.1.0.2").wait_for(state="detached")
    assert status(box)["pauses"] == []


def test_a_page_that_nobody_sees_asks_nothing(box, visit, server):
    serve(box)
    page = visit("overview")
    page.locator(".toh-card").first.wait_for()
    page.evaluate("Object.defineProperty(document, 'hidden', { get: () => true })")
    page.wait_for_timeout(1000)
    before = len(server.ubus.calls)
    page.wait_for_timeout(6000)
    assert len(server.ubus.calls) == before


def test_a_refresh_leaves_the_reader_alone(box, visit):
    """Nothing but the calls is asked for; what the keyboard is at stays, and where the page is scrolled to."""
    serve(box)
    page = visit("overview", height=300)
    button = page.locator(f'.toh-card[data-proxy="{SECOND}"] button')
    button.focus()
    page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    place, asked = page.evaluate("window.scrollY"), []
    page.evaluate("document.querySelector('[role=status]').seen = true")
    page.on("request", lambda request: asked.append(request.url))
    for _ in range(2):
        page.evaluate("document.querySelector('.toh-card').seen = true")
        page.wait_for_function("!document.querySelector('.toh-card').seen")
    assert page.evaluate("document.activeElement.dataset.key") == SECOND and page.evaluate("window.scrollY") == place > 0
    assert {url.split("/")[3] for url in asked} == {"ubus"}, asked
    # Told to who does not see it only when it changes, which takes a node that stays.
    words = "(node => node.seen && node.textContent)(document.querySelector('[role=status]'))"
    assert page.evaluate(words) == "Running."


def test_the_keyboard_stays_where_it_was(box, visit):
    serve(box, "option pause '1'")
    page = visit("overview")
    for words in ("Use this one", "Choose automatically", "Use this one"):
        button = page.locator(f'.toh-card[data-proxy="{SECOND}"] button', has_text=words)
        button.focus()
        page.keyboard.press("Enter")
        button.wait_for(state="detached")
        page.wait_for_function(f"document.activeElement.dataset.key == '{SECOND}'")
    for words in ("Pause for 10 minutes", "Resume"):
        page.get_by_role("button", name=words).focus()
        page.keyboard.press("Enter")
        page.get_by_role("button", name=words).wait_for(state="detached")
        page.wait_for_function("document.activeElement.dataset.key == 'pause'")


def test_one_proxy_is_not_chosen_from(box, visit):
    serve(box, sections=[("constructor", PROXY)])  # which every object in JavaScript has
    page = visit("overview")
    page.locator(".toh-card").wait_for()
    assert page.locator(".toh-card h4").all_inner_texts() == ["constructor"] and not page.locator(".toh-card button").count()
    page = visit("settings")
    field(page, "constructor", "host").wait_for()
    save(page)
    page.get_by_text("Nothing has changed").wait_for()


@pytest.mark.parametrize("visit", [["Failed to load resource"]], indirect=True)
def test_a_router_that_does_not_answer(box, visit):
    serve(box)
    page = visit("overview")
    page.locator(".toh-card").first.wait_for()
    page.route("**/ubus/**", lambda route: route.abort())
    page.get_by_text("The router does not answer.").wait_for()
    page.unroute("**/ubus/**")
    page.locator(".toh-card").first.wait_for()
    page = visit("doctor")
    page.get_by_role("button", name="Run").wait_for()
    page.route("**/ubus/**", lambda route: route.abort())
    page.get_by_role("button", name="Run").click()
    page.get_by_text("The doctor does not answer.").wait_for()
    page = visit("settings")
    page.get_by_role("button", name="Test this proxy").first.wait_for()
    page.route("**/ubus/**", lambda route: route.abort())
    page.get_by_role("button", name="Test this proxy").first.click()
    page.get_by_text("Nothing was saved").wait_for()
    page.evaluate("document.querySelector('.alert-message').remove()")
    page.get_by_role("button", name="Reset").click()
    page.get_by_text("Nothing was saved").wait_for()


def test_overview_says_why_nothing_runs(box, visit):
    page = visit("overview")
    page.get_by_text("Switched off. Nothing is proxied.").wait_for()
    write(box, "option mtu '<img src=x onerror=alert(1)>'", sections=[OFFICE])
    page = visit("overview")
    page.get_by_text("the configuration has a mistake").wait_for()
    assert page.locator("#view img").count() == 0


def test_a_refusal_is_told_in_words(box, visit, lab, proxies):
    serve(box, sections=[OFFICE])
    proxies[PROXY] = reply(403)
    lab[0].client.connect_errno(SERVER, 80)
    page = visit("overview")
    page.get_by_text("403: the target is not allowed (1)").wait_for()
    assert "answers in" in page.locator(".toh-card").inner_text()


def test_whether_a_proxy_works_that_nobody_has_asked_is_not_known(box, visit, lab):
    serve(box, "option hedge_delay '0'")
    box.run("/usr/bin/tcp-over-http", "use", "auto")  # an earlier test's choice is kept
    page = visit("overview")
    state = page.locator(".toh-card .toh-state")
    state.nth(1).wait_for()
    assert [text.split(" — ")[0] for text in state.all_inner_texts()] == ["not asked yet"] * 2
    with contextlib.closing(lab[0].client.connect(SERVER, 80)) as sock:
        sock.recv(5)
    state.filter(has_text="works — asked first").wait_for()
    assert state.all_inner_texts()[1] == "not asked yet"


def test_a_mistake_is_shown_when_the_settings_are_opened(box, visit):
    """At its field, unless it is switched off: then who has just installed it has yet to name a proxy."""
    write(box, "option enabled '0'")
    page = visit("settings")
    page.locator('[data-name="host"] input[type=text]').wait_for()
    page.wait_for_timeout(300)
    assert not page.locator(".alert-message, .toh-fault").count()
    write(box, "option address '10.0.0.1/99'", sections=[OFFICE])
    page = visit("settings")
    fault = field(page, "main", "address").locator(".toh-fault")
    fault.wait_for()
    assert is_seen(fault) and "The configuration has a mistake" in page.locator(".alert-message").inner_text()
    field(page, "main", "address").locator("input").fill("")
    save(page)
    page.get_by_text("It is running.").wait_for()
    assert not page.locator(".toh-fault").count()


def test_a_configuration_that_cannot_be_read(box, visit):
    """An empty form would say that there is none, and fail to save it."""
    file = box.root / "etc/config/tcp-over-http"
    file.write_text(file.read_text() + "\toption mtu '1500\n")
    for words in ("never closed", "No such file"):
        page = visit("settings")
        page.get_by_text(re.compile(f"The configuration cannot be read: .*{words}")).wait_for()
        assert not page.locator("#view input, .cbi-page-actions").count()
        page = visit("overview")
        page.get_by_text(words).wait_for()
        file.unlink(missing_ok=True)


def test_settings_from_nothing(box, visit):
    """A new user's way: a proxy, switched on, saved."""
    write(box, "option enabled '0'")
    page = visit("settings")
    page.locator('[data-name="host"] input[type=text]').fill(PROXY)
    page.locator('[data-name="port"] input[type=text]').first.fill("3128")
    field(page, "main", "enabled").locator("input[type=checkbox]").check()
    save(page)
    page.get_by_text("Saved and applied").wait_for()
    page.get_by_text("It is running.").wait_for()
    assert is_seen(page.locator(".alert-message"))  # from the button at the end
    assert len(status(box)["upstreams"]) == 1
    assert "option enabled" not in config(box)  # the default


def test_a_proxy_of_which_nothing_is_typed_is_none(box, visit):
    serve(box, sections=[OFFICE])
    page = visit("settings")
    hosts = page.locator('[data-name="host"] input[type=text]')
    page.get_by_role("button", name="Add a proxy").click()
    until(lambda: hosts.count() == 2, "there is another")
    save(page)
    page.get_by_text("Nothing has changed").wait_for()
    page.locator('[data-name="port"] input[type=text]').nth(1).fill("3128")
    save(page)
    page.get_by_text("First correct what is marked").wait_for()
    assert hosts.nth(1).evaluate("node => node.classList.contains('cbi-input-invalid')")


def test_the_first_proxy_is_asked_for(box, visit):
    """Or one within a list."""
    write(box, "option enabled '0'")
    before = config(box)
    page = visit("settings")
    host = page.locator('[data-name="host"] input[type=text]')
    host.wait_for()
    save(page)
    page.get_by_text("First correct what is marked").wait_for()
    assert host.evaluate("node => node.classList.contains('cbi-input-invalid')") and config(box) == before
    page.get_by_text("Several proxies").click()
    field(page, "main", "upstream").locator("input").last.fill(f"http://{PROXY}:3128")
    page.keyboard.press("Enter")
    save(page)
    until(lambda: f"list upstream 'http://{PROXY}:3128'" in config(box), "it is saved")
    assert "config upstream" not in config(box)


def test_as_many_proxies_as_wanted(box, visit):
    """Whatever they are called that there are, and whatever has been removed."""
    rule = "\nconfig rule 'upstream2'\n\tlist dest '203.0.113.1'\n\toption direct '1'\n"
    write(box, "option enabled '0'")
    (box.root / "etc/config/tcp-over-http").write_text(config(box) + rule)
    page = visit("settings")
    hosts, add = page.locator('[data-name="host"] input[type=text]'), page.get_by_role("button", name="Add a proxy")
    hosts.wait_for()
    add.click()  # of the first nothing is typed
    page.get_by_text("First correct what is marked").wait_for()
    for number in range(4):
        hosts.nth(number).fill(f"192.0.2.{number + 1}")
        add.click()
        until(lambda: hosts.count() == number + 2, "there is another")
    page.locator(".cbi-section-remove button").first.click()
    until(lambda: hosts.count() == 4, "it is gone")
    add.click()
    until(lambda: hosts.count() == 5, "there is another")
    save(page)
    until(lambda: re.findall("option host '(.*)'", config(box)) == ["192.0.2.2", "192.0.2.3", "192.0.2.4"], "they are saved")
    assert "config rule 'upstream2'" in config(box)


def test_reset_undoes_all_that_is_not_saved(box, visit):
    serve(box, sections=[OFFICE, HOME])
    page = visit("settings")
    field(page, "home", "port").locator("input").fill("1234")
    page.locator(".cbi-section-remove button").first.click()
    field(page, "office", "host").wait_for(state="detached")
    page.get_by_role("button", name="Add a proxy").click()
    until(lambda: page.locator('[data-name="host"] input[type=text]').count() == 2, "there is another")
    page.get_by_role("button", name="Reset").click()
    field(page, "office", "host").wait_for()
    assert field(page, "home", "port").locator("input").input_value() == "3128"
    save(page)
    page.get_by_text("Nothing has changed").wait_for()


def test_what_is_typed_last_counts(box, visit):
    """Also if the page has refused what was typed before; and a dialogue takes nothing away."""
    serve(box, sections=[OFFICE], rules=RULES)
    page = visit("settings")
    port, mtu = (field(page, *where).locator("input") for where in (("office", "port"), ("main", "mtu")))
    port.fill("3129")
    page.get_by_text("Expert", exact=True).click()
    mtu.fill("9")
    save(page)
    page.get_by_text("First correct what is marked").wait_for()
    port.fill("3128")
    mtu.fill("")
    save(page)
    page.get_by_text("Nothing has changed").wait_for()
    port.fill("3130")
    edit = page.locator('[data-sid="one"] .cbi-button-edit')
    if edit.count():  # LuCI has a dialogue
        edit.click()
        page.locator(".modal .cbi-button-positive").click()
        page.locator("body:not(.modal-overlay-active)").wait_for()
    assert port.input_value() == "3130"


def test_a_list_with_secrets_is_not_saved_without_them(box, visit):
    home = ("home", PROXY_OTHER, f"list header 'X-Key: {SECRET}'")
    serve(box, f"list upstream 'http://joe:{SECRET}@{PROXY}:3128'", sections=[home])
    before = config(box)
    page = visit("settings")
    page.locator('[data-tab="more"] a').first.click()
    field(page, "home", "header").locator("input").last.fill("X-Other: 1")
    page.keyboard.press("Enter")
    save(page)
    field(page, "home", "header").locator(".toh-fault", has_text="Type what *** stands for").wait_for()
    page.reload()
    page.get_by_text("Several proxies").click()
    field(page, "main", "upstream").locator("input").last.fill("http://192.0.2.9:3128")
    page.keyboard.press("Enter")
    save(page)
    field(page, "main", "upstream").locator(".toh-fault", has_text="Type what *** stands for").wait_for()
    assert config(box) == before


def test_what_was_saved_is_not_denied(box, visit, server, monkeypatch):
    """If the router then is too busy to answer; and who has saved before is told."""
    serve(box, sections=[OFFICE])
    page, other = visit("settings"), visit("settings")
    for one in (page, other):
        one.get_by_text("Several proxies").click()
        field(one, "main", "reply_timeout").locator("input").fill("20")
    call = server.ubus.call

    def busy(session, name, method, arguments):
        return [7] if method == "settings" and "reply_timeout" in config(box) else call(session, name, method, arguments)

    monkeypatch.setattr(server.ubus, "call", busy)
    save(page)
    page.get_by_text("Saved and applied: connections go on.").wait_for(timeout=40000)
    assert not page.get_by_text("Nothing was saved").count() and "option reply_timeout '20'" in config(box)
    monkeypatch.setattr(server.ubus, "call", call)
    (box.root / "etc/config/tcp-over-http").write_text(config(box).replace("'office'", "'work'"))
    field(other, "office", "port").locator("input").fill("3129")
    save(other)
    other.get_by_text("changed elsewhere meanwhile").wait_for()


def test_who_saves_over_another_is_told(box, visit):
    """Once: then nothing of either is lost, but what both have changed."""
    serve(box, sections=[OFFICE])
    page, other = visit("settings"), visit("settings")
    for one, user, name, value in ((page, "ann", "reply_timeout", "20"), (other, "bob", "connect_timeout", "9")):
        field(one, "office", "username").locator("input").fill(user)
        one.get_by_text("Several proxies").click()
        field(one, "main", name).locator("input").fill(value)
    save(page)
    page.get_by_text("It is running.").wait_for()
    save(other)
    other.get_by_text("changed elsewhere meanwhile").wait_for()
    assert "option username 'ann'" in config(box) and "connect_timeout" not in config(box)
    save(other)
    other.get_by_text("It is running.").wait_for()
    for line in ("username 'bob'", "reply_timeout '20'", "connect_timeout '9'", f"password '{SECRET}'"):
        assert f"option {line}\n" in config(box)


def test_passwords_are_of_any_characters(box, visit):
    odd = """ a'b"c\\d$e`f%g&h<i>j;k#l@m:n/ü中 """
    serve(box, sections=[OFFICE])
    page = visit("settings")
    page.locator('[data-name="password"] input').first.fill(odd)
    save(page)
    page.get_by_text("Saved and applied").wait_for()
    said = box.run("uci", "-q", "-X", "show", "tcp-over-http").stdout
    assert "tcp-over-http.office.password='" + odd.replace("'", "'\\''") + "'\n" in said
    page.get_by_role("button", name="Test this proxy").click()
    page.get_by_text("All is well.").wait_for()


def names(box):
    return [one["name"] for one in status(box)["upstreams"]]


def test_proxies_have_names(box, visit):
    """Given when one is added, or later; rules follow."""
    rule = f"\nconfig rule 'one'\n\tlist dest '203.0.113.1'\n\toption upstream '{PROXY}:3128'\n"
    write(box, sections=[OFFICE])
    text = config(box).replace("config upstream 'office'", "config upstream") + rule
    (box.root / "etc/config/tcp-over-http").write_text(text)
    offset = len(box.log())
    box.service("restart")
    box.wait_ready(offset)
    assert names(box) == [f"{PROXY}:3128"]
    page = visit("settings")
    page.get_by_role("button", name="Add a proxy").click()
    name = page.locator('[data-name="_name"] input[type=text]')
    until(lambda: name.count() == 2, "there is another")
    name.nth(0).fill("office")
    page.locator('[data-name="host"] input[type=text]').nth(1).fill(PROXY_OTHER)
    page.locator('[data-name="port"] input[type=text]').nth(1).fill("3128")
    for wrong in ("office", "one", "main", "auto", "direct", "a b"):
        name.nth(1).fill(wrong)
        save(page)
        page.get_by_text("First correct what is marked").wait_for()
        page.locator(".alert-message").evaluate("node => node.remove()")
    name.nth(1).fill("home")
    save(page)
    until(lambda: names(box) == ["office", "home"], "they have names")
    page.get_by_text("connections go on.").wait_for()
    assert "option upstream 'office'" in config(box) and f"option password '{SECRET}'" in config(box)
    until(lambda: name.nth(1).input_value() == "home", "the page has read them again")
    name.nth(0).fill("work")
    save(page)
    until(lambda: names(box) == ["work", "home"], "it has another")
    assert "option upstream 'work'" in config(box)
    page = visit("overview")
    page.locator(".toh-card").nth(1).wait_for()
    assert page.locator(".toh-card h4").all_inner_texts() == ["work", "home"]


def test_a_rule_chooses_among_the_proxies(box, visit):
    rule = "\nconfig rule 'one'\n\tlist dest '203.0.113.1'\n\toption upstream 'office'\n"
    serve(box, "list upstream 'http://joe:secret@192.0.2.99:8080'", sections=[OFFICE, HOME], rules=rule)
    page = visit("settings")
    page.locator('[data-sid="one"]').wait_for()
    edit = page.locator('[data-sid="one"] .cbi-button-edit')
    if edit.count():  # LuCI has a dialogue
        edit.click()
    choice = page.locator('[data-name="upstream"] select').last
    choice.wait_for()
    assert choice.locator("option").all_inner_texts() == ["-", "192.0.2.99:8080", "office", "home"]
    choice.select_option("home")
    if edit.count():
        page.locator(".modal .cbi-button-positive").click()
        page.locator("body:not(.modal-overlay-active)").wait_for()
    save(page)
    until(lambda: "option upstream 'home'" in config(box), "the rule has another")


def test_a_change_keeps_secrets_and_connections(box, visit, lab, server):
    serve(box, sections=[OFFICE])
    near = lab[0].client.connect(SERVER, 80)
    pid = box.pid()
    page = visit("settings")
    password = page.locator('[data-name="password"] input.cbi-input-password')
    assert (password.input_value(), password.get_attribute("placeholder")) == ("", "unchanged")
    assert SECRET not in page.content()
    page.get_by_text("Several proxies").click()
    field(page, "main", "reply_timeout").locator("input").fill("20")
    save(page)
    page.get_by_text("Saved and applied: connections go on.").wait_for()
    assert f"option password '{SECRET}'" in config(box) and "option reply_timeout '20'" in config(box)
    assert box.pid() == pid and near.recv(5) == b"hello"
    assert SECRET not in json.dumps(server.ubus.calls)
    page.locator('[data-name="password"] input').fill("another")
    save(page)
    until(lambda: "option password 'another'" in config(box), "the password is another")


def test_what_the_daemon_refuses_stands_at_its_field(box, visit):
    serve(box, sections=[OFFICE])
    before = config(box)
    page = visit("settings")
    page.get_by_text("Expert", exact=True).click()
    field(page, "main", "mtu").locator("input").fill("9")
    save(page)
    page.get_by_text("First correct what is marked").wait_for()
    assert is_seen(field(page, "main", "mtu").locator("input:focus"))
    field(page, "main", "mtu").locator("input").fill("")
    field(page, "main", "address").locator("input").fill("10.0.0.1/99")
    save(page)
    fault = field(page, "main", "address").locator(".toh-fault")
    fault.wait_for()
    assert "10.0.0.1/99" in fault.inner_text() and is_seen(fault)
    field(page, "main", "address").locator("input").fill("")
    field(page, "office", "host").locator("input").fill("no host")
    save(page)
    field(page, "office", "host").locator(".toh-fault").wait_for()
    field(page, "office", "host").locator("input").fill(PROXY)
    page.locator('[data-tab="more"] a').first.click()
    field(page, "office", "header").locator("input").fill("no field")
    page.keyboard.press("Enter")
    page.locator('[data-tab="proxy"] a').first.click()
    save(page)
    fault = field(page, "office", "header").locator(".toh-fault")
    fault.wait_for()  # with its tab
    assert config(box) == before


def test_a_proxy_is_tried_as_typed(box, visit, proxies):
    serve(box, sections=[OFFICE])
    before = config(box)
    page = visit("settings")
    page.locator('[data-name="port"] input').first.fill("3129")
    page.get_by_role("button", name="Test this proxy").click()
    page.locator(".toh-finding .toh-bad").wait_for()
    page.get_by_role("button", name="Dismiss").last.click()
    page.locator('[data-name="port"] input').first.fill("3128")
    page.get_by_role("button", name="Test this proxy").click()
    page.locator(".toh-finding .toh-good").first.wait_for()
    page.get_by_text("All is well.").wait_for()
    assert config(box) == before


def test_order_and_removal(box, visit):
    serve(box, sections=[OFFICE, HOME])
    page = visit("settings")
    page.locator('[data-tab="more"] a').nth(1).click()
    page.get_by_role("button", name="Ask it earlier").last.click()
    save(page)
    until(lambda: config(box).index("'home'") < config(box).index("'office'"), "the order is another")
    page.get_by_text("Saved and applied").wait_for()
    page.locator(".cbi-section-remove button").first.click()
    save(page)
    until(lambda: "'home'" not in config(box), "it is gone")
    assert SECRET in config(box)


RULES = "".join(f"\nconfig rule '{name}'\n\tlist dest '203.0.113.{number}'\n\toption direct '1'\n"
                for number, name in enumerate(("one", "two", "three")))


def order(box):
    return re.findall("config rule '(.*)'", config(box))


def test_rules_are_sorted_with_the_keyboard(box, visit):
    serve(box, rules=RULES)
    page = visit("settings")
    page.locator('[data-sid="three"] [data-name="_up"] button').focus()
    for place in (1, 0):
        page.keyboard.press("Enter")
        rows = page.locator("[data-sid]")
        until(lambda: rows.nth(place).get_attribute("data-sid") == "three", "it is earlier")
        page.locator('[data-sid="three"] button:focus').wait_for()
    save(page)
    until(lambda: order(box) == ["three", "one", "two"], "the order is another")
    page.get_by_text("Saved and applied: connections go on.").wait_for()


def test_rules_are_sorted_with_the_mouse(box, visit):
    serve(box, rules=RULES)
    page = visit("settings")
    page.set_viewport_size({"width": 1200, "height": 5000})
    page.locator('[data-sid="three"] .drag-handle').drag_to(page.locator('[data-sid="one"]'), target_position={"x": 20, "y": 3})
    until(lambda: page.locator("[data-sid]").first.get_attribute("data-sid") == "three", "it is the first")
    save(page)
    until(lambda: order(box) == ["three", "one", "two"], "the order is another")


def test_many_rules_and_proxies(box, visit):
    """A rule's row shows some of a long list; the names of proxies are looked up quickly: not among all of the page."""
    proxies = [(f"proxy{number}", f"192.0.2.{number}") for number in range(1, 9)]
    rules = "".join(f"\nconfig rule 'rule{number}'\n\tlist dest '203.0.{number}.0/24'\n\toption upstream 'proxy1'\n"
                    for number in range(30))
    many = "".join(f"\tlist dest '198.51.100.{number}'\n" for number in range(50))
    serve(box, sections=proxies, rules=f"{rules}{many}")
    page = visit("settings")
    page.get_by_text("203.0.29.0/24, 198.51.100.0, 198.51.100.1, 198.51.100.2, 198.51.100.3 and 46 more").wait_for()
    page.evaluate("""() => {
        const { querySelector } = Element.prototype;
        window.asked = 0;
        Element.prototype.querySelector = function(selector) {
            window.asked += selector.startsWith('[data-field=');
            return querySelector.call(this, selector);
        };
    }""")
    page.locator('[data-sid="rule29"] [data-name="_up"] button').click()
    page.locator('[data-sid="rule29"] button:focus').wait_for()
    assert page.evaluate("window.asked") < 40


def test_what_is_wrong_in_a_rule_stands_at_it(box, visit):
    write(box, sections=[OFFICE])
    with open(box.root / "etc/config/tcp-over-http", "a") as file:
        file.write(RULES.replace("203.0.113.1", "nonsense"))
    page = visit("settings")
    field(page, "main", "enabled").locator("input[type=checkbox]").uncheck()
    save(page)
    fault = page.locator('[data-sid="two"] .toh-fault')
    fault.wait_for()
    assert "nonsense" in fault.inner_text() and page.locator(".toh-fault").count() == 1


HOSTILE = "<img src=x onerror=document.title='hacked'>"


def test_what_the_router_says_is_never_html(box, visit):
    """A mistake whose message repeats it, and values that are shown."""
    hostile = (f"option username '{HOSTILE}'", f"list header '{HOSTILE}'", f"list uplink '{HOSTILE}'")
    write(box, sections=[("first", PROXY, *hostile), ("second", HOSTILE)])
    with open(box.root / "etc/config/tcp-over-http", "a") as file:
        file.write(RULES.replace("203.0.113.1", HOSTILE.replace("'", "")))
    for view in ("overview", "settings", "doctor"):
        page = visit(view)
        page.locator("#view h2").first.wait_for()
        if view == "doctor":
            page.get_by_role("button", name="Run").click()
            page.locator(".toh-finding").first.wait_for()
        if view == "settings":
            save(page)
            page.locator(".alert-message").first.wait_for()
        page.wait_for_timeout(300)
        assert page.locator("#view img, .alert-message img").count() == 0 and page.title() != "hacked", view


def test_who_may_only_read_changes_nothing(box, visit, server):
    serve(box)
    server.ubus.readonly = True
    page = visit("overview")
    assert page.locator(".toh-card button").first.is_disabled()
    page = visit("settings")
    page.locator('[data-name="enabled"] input[type=checkbox]').first.wait_for()
    assert page.locator('[data-name="enabled"] input[type=checkbox]').first.is_disabled()
    page = visit("doctor")
    assert page.get_by_role("button", name="Run").is_disabled()
    assert {(name, method) for name, method, _ in server.ubus.calls} <= {("luci-rpc", "getHostHints")} | {
        ("tcp-over-http", method) for method in ("status", "clients", "history", "settings")}
    for method in ("use", "check", "doctor"):
        with pytest.raises(PermissionError):
            server.ubus.call("0123456789abcdef" * 2, "tcp-over-http", method, {})


def test_doctor(box, visit):
    serve(box)
    page = visit("doctor")
    page.get_by_role("button", name="Run").click()
    page.locator(".toh-finding").first.wait_for()
    assert page.locator(".toh-finding .toh-good").count() > 3
    text = page.locator("textarea").input_value()
    assert PROXY not in text and "upstream #1" in text and "toh0" in text
    page.get_by_role("button", name="Copy").click()


def test_a_doctor_that_is_killed_finds_no_health(box, visit, proxies, server, monkeypatch):
    serve(box, sections=[OFFICE])
    proxies[PROXY] = b""
    page = visit("doctor")
    page.locator("#toh-target").press("Enter")
    page.locator(".toh-finding", has_text="the daemon answers").wait_for()
    pids = map(int, command("ip", "netns", "pids", box.space.name).stdout.split())
    os.kill(next(pid for pid in pids if b"doctor\0--config" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()), signal.SIGKILL)
    page.locator(".toh-finding", has_text="the doctor was killed").wait_for()
    page.get_by_text(re.compile("Faults: [1-9]")).wait_for()
    # And one that says nothing.
    call = server.ubus.call
    monkeypatch.setattr(server.ubus, "call", lambda session, name, method, arguments:
                        [0, {"lines": []}] if method == "doctor" else call(session, name, method, arguments))
    page.get_by_role("button", name="Run").click()
    page.get_by_text("The doctor does not answer.").wait_for()
    page = visit("settings")
    page.get_by_role("button", name="Test this proxy").click()
    page.get_by_text("The doctor does not answer.").wait_for()


def test_a_doctor_takes_longer_than_luci_waits(box, visit, proxies):
    serve(box, sections=[OFFICE])
    proxies[PROXY] = b""
    page = visit("doctor")
    page.evaluate("L.env.rpctimeout = 8")
    page.locator("#toh-target").press("Enter")
    page.locator(".toh-finding", has_text="the daemon answers").wait_for()
    assert page.get_by_text("Running…").count()
    page.locator("textarea").wait_for(timeout=60000)
    assert "CONNECT to port 22: no answer" in page.locator(".toh-findings").inner_text()
    page.get_by_role("button", name="Copy").click()
    page.get_by_text("Copied.").wait_for()
    assert page.get_by_text("Faults: ").count()
    assert page.locator(".toh-finding").count() == page.locator("textarea").input_value().count("\n")  # each once


def test_what_a_forum_need_not_know(box, visit):
    corp = ("corp", "proxy.corp.example", "option username 'smith'")
    serve(box, "list resolver '198.51.100.9'", sections=[corp, ("far", "192.0.2.9"), ("six", "2001:db8::77")])
    page = visit("doctor")
    page.get_by_role("button", name="Run").click()
    page.locator("textarea").wait_for(timeout=60000)
    shown, text = page.locator(".toh-finding").all_inner_texts(), page.locator("textarea").input_value()
    assert any("upstream corp" in line for line in shown)
    page.evaluate("document.querySelector('textarea').remove()")
    write(box, sections=[])
    page.get_by_role("button", name="Run").click()
    page.locator("textarea").wait_for()
    assert "none from --upstream or TCP_OVER_HTTP_UPSTREAM" in page.locator("textarea").input_value()
    assert not [word for word in ("corp", "smith", "192.0.2.9", "2001:db8", "198.51.100.9", "far") if word in text], text


def test_the_keyboard_alone(box, visit):
    """Each control can be reached, in the order of the page, and where the keyboard is can be seen."""
    serve(box, rules=RULES)
    for view, least in (("overview", 3), ("settings", 40), ("doctor", 2)):
        page = visit(view)
        page.locator("#view button").first.wait_for()
        page.wait_for_timeout(300)
        seen = []
        page.evaluate("document.activeElement.blur()")
        for _ in range(400):
            page.keyboard.press("Tab")
            found = page.evaluate("""() => {
                const node = document.activeElement, style = getComputedStyle(node);
                if (!node.closest('#view')) return null;
                const all = [...document.querySelectorAll('#view *')];
                return { place: all.indexOf(node), tag: node.tagName, text: node.innerText || node.id,
                    shown: style.outlineStyle != 'none' || style.boxShadow != 'none' };
            }""")
            if found is None and seen:
                break
            if found:
                seen.append(found)
        assert len(seen) >= least, (view, seen)
        places = [one["place"] for one in seen]
        assert places == sorted(set(places)), view
        hidden = [one for one in seen if not one["shown"]]
        assert not hidden, (view, hidden)


def test_what_the_readme_shows(box, visit, lab, proxies):
    """Its pictures: LUCI=FOLDER PICTURES=docs/pictures scripts/test-pages -k readme."""
    serve(box, sections=[("office", PROXY), ("home", PROXY_OTHER), ("phone", "192.0.2.99")], rules=RULES)
    box.run("/usr/bin/tcp-over-http", "use", "phone")
    lab[0].client.connect_errno(SERVER, 80)
    box.run("/usr/bin/tcp-over-http", "use", "auto")
    page = visit("overview", width=860)
    held = [lab[0].client.connect(SERVER, 80) for _ in range(3)]
    assert [sock.recv(5) for sock in held] == [b"hello"] * 3
    proxies["ends"] = True
    for number in range(40 if PICTURES else 2):
        proxies[PROXY] = OK + bytes(20_000 + 3_000 * (number * 7 % 11))
        for _ in range(1 + number % 3):
            with contextlib.closing(lab[0].client.connect(SERVER, 80)) as sock:
                sock.recv(1 << 20, socket.MSG_WAITALL)
        page.wait_for_timeout(900)
    until(lambda: not re.search("total: ↓ 0 B", page.locator(".toh-wide").inner_text()), "bytes are counted")
    page.get_by_text("open connections: 3").wait_for()
    assert ["answers in" in text for text in page.locator(".toh-card").all_inner_texts()] == [True, False, False]
    assert "has not answered yet" in page.locator(".toh-card").last.inner_text()
    assert not page.get_by_text("Dropped").count()  # SYNs that were repeated while a proxy was asked
    picture(page, "overview")
    for sock in held:
        sock.close()
    page = visit("settings", width=860, dark=True)
    page.locator("h3").first.wait_for()
    page.wait_for_timeout(500)
    picture(page, "settings")


def picture(page, name):
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/{name}.png")
    page.close()


def test_widget(box, visit, lab):
    serve(box)
    page = visit("widget")
    page.get_by_text(FIRST).wait_for()
    assert "works" not in page.inner_text("#view")  # nobody knows
    with contextlib.closing(lab[0].client.connect(SERVER, 80)) as sock:
        sock.recv(5)
    page.get_by_text("works").wait_for()
    box.service("stop")
    page.get_by_text("Not running.").wait_for()
    assert not page.get_by_text(FIRST).count()


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages(box, visit, language):
    serve(box)
    words = translations.read(translations.po(language))
    for view, text in {"overview": "Throughput", "settings": "Add a proxy", "doctor": "Run"}.items():
        page = visit(view, lang=language)
        page.get_by_text(words[text], exact=True).first.wait_for()
        assert not page.get_by_text(text, exact=True).count(), view


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone(box, visit, lab, monkeypatch, dark):
    """Nothing is wider than the screen, nor what is long or listed."""
    long = "of_a_name_that_somebody_has_thought_of_without_a_single_space"
    serve(box, "list bypass '192.168.0.0/16'", "list bypass '2001:db8:ffff:ffff:ffff:ffff:ffff:0/112'", rules=RULES,
          sections=[("first", PROXY), (long, PROXY_OTHER)])
    box.run("/usr/bin/tcp-over-http", "use", long)
    monkeypatch.setitem(HINTS["02:00:00:00:00:02"], "name", "a" * 63)
    with contextlib.closing(lab[0].client.connect(SERVER, 80)) as sock:
        sock.recv(5)
    for view in ("overview", "settings", "doctor"):
        page = visit(view, width=360, dark=dark)
        page.locator("#view h2").first.wait_for()
        page.wait_for_timeout(500)
        wide = page.evaluate("""() => document.documentElement.scrollWidth <= 360 ? [] : [...document.querySelectorAll('#view *')]
            .filter(node => node.getBoundingClientRect().right > 361).map(node => node.outerHTML.slice(0, 120)).slice(-5)""")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, (view, wide)
