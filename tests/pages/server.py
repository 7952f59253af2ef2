"""The router's web server: our pages within a double of LuCI, and /ubus with rpcd's sessions, ACLs and uci. Calls of
tcp-over-http go to the plugin on the router of the end-to-end tests.

With LUCI=FOLDER, a checkout of LuCI's sources, its own runtime and theme are served in the place of the double.
"""

import http.server
import importlib.machinery
import importlib.util
import json
import mimetypes
import os
import pathlib
import threading

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
APP = ROOT / "openwrt/luci-app-tcp-over-http"
RESOURCES = APP / "htdocs/luci-static/resources"
ACL = json.loads((APP / "root/usr/share/rpcd/acl.d/luci-app-tcp-over-http.json").read_text())["luci-app-tcp-over-http"]
LUCI = os.environ.get("LUCI") and pathlib.Path(os.environ["LUCI"])
PACKAGE = "tcp-over-http"
SESSION = "0123456789abcdef" * 2


def source(path, name):
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


translations = source(ROOT / "scripts/translations", "translations")
uci = source(ROOT / "tests/e2e/lab/openwrt/usr/bin/uci", "uci")

# What clients are called, as LuCI knows it.
HINTS = {"02:00:00:00:00:02": {"name": "laptop", "ipaddrs": ["10.1.0.2"], "ip6addrs": []}}

METHODS = {method for access in ("read", "write") for methods in ACL[access]["ubus"].values() for method in methods}

# LuCI's light and dark, as far as pages can tell: its own colours, and classes that the views use.
STYLE = """
:root { color-scheme: light dark }
body { font: 15px sans-serif; margin: 0; background: Canvas; color: CanvasText }
#maincontent { max-width: 60em; margin: auto; padding: 1em }
.table { width: 100%; border-collapse: collapse }
.td, .th { text-align: left; padding: .3em; border-bottom: 1px solid #8884 }
.cbi-value { margin: .6em 0 }
.cbi-value-title { display: inline-block; min-width: 13em; vertical-align: top }
.cbi-value-field { display: inline-block; max-width: 40em }
.cbi-value-description { font-size: 85%; opacity: .8 }
.cbi-input-invalid { outline: 2px solid red }
.cbi-tabmenu li { display: inline-block; margin-right: 1em }
.cbi-tab { font-weight: bold }
.item { display: block }
.alert-message { border: 1px solid; padding: .5em 1em; margin: .5em 0 }
#modal_overlay { position: fixed; inset: 0; background: #000a; padding: 2em }
.modal { background: Canvas; padding: 1em; max-width: 40em; margin: auto }
@media (max-width: 600px) {
    .cbi-value-title, .cbi-value-field { display: block }
    .table, .tr, .td { display: block }
    .table-titles { display: none }
    .td::before { content: attr(data-title) ": "; opacity: .7 }
}
"""


class Ubus:
    """rpcd: sessions with what the ACL grants, and what they stage."""

    def __init__(self, box):
        self.box = box
        self.readonly = False
        self.calls = []
        self.file = box.root / "etc/config" / PACKAGE
        self.staged = box.run_dir / f"rpcd/uci-{SESSION}" / PACKAGE

    def granted(self, scope):
        return [ACL["read"].get(scope, {})] + ([] if self.readonly else [ACL["write"].get(scope, {})])

    def call(self, session, name, method, arguments):
        if LUCI and (name, method) not in ((name, method) for name in ("tcp-over-http", "uci", "luci-rpc") for method in METHODS):
            return [0, {"access": True, "changes": {}, "features": {}}]  # what LuCI asks for itself
        self.calls.append((name, method, arguments))
        if session != SESSION or not any(method in granted.get(name, ()) for granted in self.granted("ubus")):
            raise PermissionError
        if name == "luci-rpc":
            return [0, HINTS]
        if name == "uci":
            if self.readonly or arguments["config"] not in ACL["write"]["uci"]:
                return [6]
            return getattr(self, f"uci_{method}")(**{key: value for key, value in arguments.items() if value is not None})
        text = json.dumps({key: value for key, value in arguments.items() if value is not None} | {"ubus_rpc_session": session})
        said = self.box.run("/usr/libexec/rpcd/tcp-over-http", "call", method, input=text, check=False, timeout=30).stdout
        try:
            return [0, json.loads(said)]
        except ValueError:
            return [5]

    def sections(self):
        return uci.sections((self.staged if self.staged.exists() else self.file).read_text())

    def stage(self, found):
        self.staged.parent.mkdir(parents=True, exist_ok=True)
        self.staged.write_text(uci.export(PACKAGE, found))
        return [0]

    def uci_set(self, config, section, values):
        found = self.sections()
        options = next((options for _, name, options in found if name == section), None)
        if options is None:
            return [4]
        options.update(values)
        return self.stage(found)

    def uci_add(self, config, type, values, name=None):
        found = self.sections()
        name = name or f"cfg{len(found) + 1:02x}{sum(map(ord, type)):04x}"
        self.stage([*found, [type, name, values]])
        return [0, {"section": name}]

    def uci_delete(self, config, section, options=None):
        found = self.sections()
        if section not in (name for _, name, _ in found):
            return [4]
        if options is None:
            return self.stage([one for one in found if one[1] != section])
        for _, name, values in found:
            if name == section:
                for option in options:
                    values.pop(option, None)
        return self.stage(found)

    def uci_rename(self, config, section, name):
        return self.stage([[kind, name if old == section else old, values] for kind, old, values in self.sections()])

    def uci_order(self, config, sections):
        return self.stage(sorted(self.sections(), key=lambda one: sections.index(one[1])))

    def uci_revert(self, config):
        self.staged.unlink(missing_ok=True)
        return [0]

    def uci_commit(self, config):
        """As rpcd: procd is told that the configuration has changed."""
        if self.staged.exists():
            new = self.file.with_suffix(".new")
            new.write_text(self.staged.read_text())
            new.rename(self.file)
            self.staged.unlink()
            self.box.run("/usr/libexec/procd-call", "config", PACKAGE)
        return [0]


class Server:
    """Serves a page at /VIEW?lang=LANGUAGE&theme=THEME."""

    def __init__(self, box):
        self.ubus = Ubus(box)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def do_GET(self):
                path, _, query = self.path.partition("?")
                options = dict(pair.split("=", 1) for pair in query.split("&") if "=" in pair)
                if path.startswith("/luci-static/"):
                    file = outer.static(path)
                    kind = mimetypes.guess_type(path)[0] or "text/plain"
                    self.answer(200 if file else 404, kind, file.read_bytes() if file else b"")
                elif path == "/runtime.js":
                    self.answer(200, "text/javascript", (HERE / "runtime.js").read_bytes())
                elif path in ("/overview", "/settings", "/doctor", "/widget"):
                    self.answer(200, "text/html; charset=utf-8", outer.page(path[1:], options).encode())
                else:
                    self.answer(204 if path == "/favicon.ico" else 404, "text/plain", b"")

            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                replies = [outer.reply(one) for one in (request if isinstance(request, list) else [request])]
                self.answer(200, "application/json", json.dumps(replies if isinstance(request, list) else replies[0]).encode())

            def answer(self, status, kind, body):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    def static(self, path):
        roots = [APP / "htdocs"]
        if LUCI:
            roots += [LUCI / "modules/luci-base/htdocs", *(LUCI / "themes").glob("*/htdocs")]
        return next((root / path[1:] for root in roots if (root / path[1:]).is_file()), None)

    def reply(self, request):
        answer = {"jsonrpc": "2.0", "id": request["id"]}
        try:
            return answer | {"result": self.ubus.call(*request["params"]) if request["method"] == "call" else {}}
        except PermissionError:
            return answer | {"error": {"code": -32002, "message": "Access denied"}}

    def page(self, view, options):
        words = translations.read(translations.po(options["lang"])) if "lang" in options else {}
        name = {"widget": "status.include.70_tcp-over-http"}.get(view, f"{PACKAGE}.{view}")
        page = {"sessionid": SESSION, "readonly": self.ubus.readonly, "translations": words}
        page |= {"include": f"view.{name}"} if view == "widget" else {"view": name}
        if LUCI:
            return self.luci(view, name, words, options)
        return f"""<!DOCTYPE html>
<html><head><meta charset=utf-8><meta name=viewport content='width=device-width'><title>{view}</title>
<style>{STYLE}</style></head>
<body><div id=maincontent><div id=view></div></div>
<script>const PAGE = {json.dumps(page)};</script><script src=/runtime.js></script></body></html>"""

    def luci(self, view, name, words, options):
        """As LuCI's header and view templates have it."""
        theme = options.get("theme", os.environ.get("THEME", "bootstrap"))
        table = {f"{translations.sfh(key.encode()):08x}": text for key, text in words.items() if key}
        where = ["admin", "services", PACKAGE, view]
        env = {"media": f"/luci-static/{theme}", "resource": "/luci-static/resources", "scriptname": "/cgi-bin/luci",
               "pathinfo": "", "documentroot": "/www", "requestpath": where, "dispatchpath": where, "pollinterval": 5,
               "ubuspath": "/ubus/", "sessionid": SESSION, "token": "t", "apply_rollback": 90, "apply_holdoff": 4,
               "nodespec": {"satisfied": True, "readonly": self.ubus.readonly, "title": view}}
        run = f"L.require('ui').then(ui => ui.instantiateView('{name.replace('.', '/')}'))"
        if view == "widget":
            run = (f"Promise.all([ L.require('view.{name}'), L.require('poll') ]).then(([ include, poll ]) => {{"
                   "const show = data => document.querySelector('#view').replaceChildren(include.render(data));"
                   "const step = () => include.load().then(show); step(); poll.add(step); })")
        dark = f"data-darkmode='{options['dark']}'" if "dark" in options else ""
        mobile = f"/luci-static/{theme}/mobile.css"
        if self.static(mobile):
            mobile = f"<link rel=stylesheet media='only screen and (max-device-width: 854px)' href='{mobile}'>"
        else:
            mobile = ""
        return f"""<!DOCTYPE html>
<html {dark}><head><meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'><title>{view}</title>
<link rel=stylesheet href='/luci-static/{theme}/cascade.css'>{mobile}<script>window.TR = {json.dumps(table)}</script>
<script src='/luci-static/resources/cbi.js'></script></head>
<body class=lang_en><div id=maincontent class=container><div id=tabmenu></div><div id=view></div></div>
<script src='/luci-static/resources/luci.js'></script><script>L = new LuCI({json.dumps(env)});</script>
<script>{run}</script></body></html>"""

    def close(self):
        self.http.shutdown()
        self.http.server_close()
