"""Fixtures: a router of the end-to-end tests with a daemon and two proxies, its web server, and a browser."""

import os
import pathlib
import shutil
import sys
import tempfile

import pytest
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

from server import Server

from lab import netns
from lab.faultproxy import OK, FaultProxy
from lab.netns import PROXY, PROXY_OTHER
from lab.router import Router, pack

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
# Screenshots of what a test ends with, if there is such a folder.
PICTURES = os.environ.get("PICTURES")


def pytest_configure(config):
    netns.sweep()


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab():
    """(network, folder, router): made once, since it takes a while."""
    network = netns.Network()
    with tempfile.TemporaryDirectory(prefix="toh-") as name:
        os.chmod(name, 0o755)
        folder = pathlib.Path(name)
        router = Router(network, folder)
        try:
            router.install(pack(folder / "dist"))
            router.configure(enabled=0)
            router.boot()
            yield network, folder, router
        finally:
            router.close()
            network.close()


@pytest.fixture
def proxies(lab):
    """Two that answer each request so, and hold the connection; what they say may be changed, and that they then close it."""
    said = {address: OK + b"hello" for address in (PROXY, PROXY_OTHER)}

    def answer(connection, address):
        is_end = "ends" in said
        connection.send(said[address])
        if is_end:
            connection.close()

    made = [FaultProxy(lab[0].internet, address, 3128).serve(lambda connection, address=address: answer(connection, address))
            for address in (PROXY, PROXY_OTHER)]
    yield said
    for proxy in made:
        proxy.close()


@pytest.fixture
def box(lab, proxies):
    """The router, switched off."""
    router = lab[2]
    router.configure(enabled=0)
    router.service("restart", check=False)
    yield router
    router.service("stop", check=False)


@pytest.fixture
def server(box):
    server = Server(box)
    yield server
    server.close()


@pytest.fixture
def visit(browser, server, request):
    """A function that opens a page; whatever the page complained of fails the test, but for what it is told to expect."""
    contexts, complaints = [], []
    expected = getattr(request, "param", [])

    def visit(view, width=1200, height=900, dark=False, **options):
        scheme = "dark" if dark else "light"
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        options |= {"dark": "true"} if dark else {}
        page.goto(f"{server.url}/{view}?" + "&".join(f"{key}={value}" for key, value in options.items()))
        return page

    yield visit
    if PICTURES:
        for number, context in enumerate(contexts):
            for page in context.pages:
                page.screenshot(path=os.path.join(PICTURES, f"{request.node.name}-{number}.png"), full_page=True)
    errors = [error for context in contexts for page in context.pages if (error := page.get_attribute("body", "data-error"))]
    for context in contexts:
        context.close()
    complaints = [one for one in complaints if not any(text in one for text in expected)]
    assert not complaints and not errors, complaints + errors
