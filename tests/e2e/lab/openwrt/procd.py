#!/usr/bin/python3
"""A double of procd's services, as its service/instance.c and openwrt.md have them: procd.py SOCKET.

- `set` starts new instances and ends those that are gone. One that is there is restarted if its command, files'
  contents, limits, time-outs or pidfile differ (with a reload_signal: only signalled); one that isn't running starts.
- An instance that ends by itself comes back after its respawn time-out, unless it did so too often too quickly.
- `delete` answers at once; the process gets SIGTERM, then SIGKILL after term_timeout. `set` while it ends starts it
  anew once it has. The pidfile goes with an instance that was told to end.
"""

import hashlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

LOCK = threading.RLock()


class Instance:
    """A process that is kept running."""

    def __init__(self, params):
        self.params = params
        self.files = digests(params)
        self.process = None
        self.halt = self.again = False
        self.crashes = 0
        self.timer = None

    def param(self, name, default=None):
        return self.params.get(name, default)

    def start(self):
        if self.process:
            self.again = self.again or self.halt
            return
        self.cancel()
        self.halt = self.again = False
        streams = {name: None if self.param(name) == ["1"] else subprocess.DEVNULL for name in ("stdout", "stderr")}
        self.process = subprocess.Popen(self.param("command"), stdin=subprocess.DEVNULL, **streams)
        self.began = time.monotonic()
        if "pidfile" in self.params:
            pathlib.Path(self.param("pidfile")[0]).write_text(f"{self.process.pid}\n")
        threading.Thread(target=self.wait, args=(self.process,), daemon=True).start()

    def wait(self, process):
        process.wait()
        with LOCK:
            self.process = None
            self.cancel()
            if self.halt and "pidfile" in self.params:
                pathlib.Path(self.param("pidfile")[0]).unlink(missing_ok=True)
            if self.again:
                self.start()
            elif not self.halt and "respawn" in self.params:
                threshold, timeout, retry = map(int, self.param("respawn"))
                self.crashes = self.crashes + 1 if time.monotonic() - self.began < threshold else 0
                if not retry or self.crashes <= retry:
                    self.after(timeout, self.start)

    def stop(self, again=False):
        self.cancel()
        self.halt, self.again = True, again
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            process = self.process
            self.after(int(self.param("term_timeout", [5])[0]), lambda: process.kill())

    def after(self, seconds, action):
        def run():
            with LOCK:
                action()

        self.timer = threading.Timer(seconds, run)
        self.timer.daemon = True
        self.timer.start()

    def cancel(self):
        if self.timer:
            self.timer.cancel()

    def update(self, params):
        files, changed = digests(params), self.params != params
        changed = changed or files != self.files
        self.params, self.files = params, files
        if not self.process or self.halt:
            self.start()
        elif changed and "reload_signal" in params:
            self.process.send_signal(int(params["reload_signal"][0]))
        elif changed:
            self.stop(again=True)


def digests(params):
    return [
        hashlib.md5(pathlib.Path(name).read_bytes()).digest() if os.path.exists(name) else None
        for name in params.get("file", ())
    ]


def parse(items):
    """Names of instances with their parameters, and what the service's reload is triggered by."""
    instances, triggers, params = {}, [], None
    for kind, *values in items:
        if kind == "instance":
            params = instances[values[0]] = {}
        elif kind == "trigger":
            triggers += values
        elif kind.startswith("+"):
            params.setdefault(kind[1:], []).extend(values)
        else:
            params[kind] = values
    return instances, triggers


class Procd:
    def __init__(self):
        self.services = {}
        self.triggers = {}

    def handle(self, message):
        service, arguments = message["service"], message["arguments"]
        instances = self.services.setdefault(service, {})
        match message["method"]:
            case "set":
                wanted, self.triggers[service] = parse(message["items"])
                for name in instances.keys() - wanted.keys():
                    instances[name].stop()
                for name, params in wanted.items():
                    if name in instances:
                        instances[name].update(params)
                    else:
                        instances[name] = Instance(params)
                        instances[name].start()
                return True
            case "delete":
                for instance in instances.values():
                    instance.stop()
                self.triggers.pop(service, None)
                return True
            case "running":
                # proc.pending: also of one that is being ended.
                return any(it.process for it in instances.values())
            case "signal":
                for instance in instances.values():
                    if instance.process:
                        instance.process.send_signal(int(arguments[1]))
                return True
            case "config":
                # `reload_config`, of which the name of a changed package is the message.
                for name, packages in self.triggers.items():
                    if service in packages:
                        subprocess.Popen([f"/etc/init.d/{name}", "reload"], stdin=subprocess.DEVNULL)
                return True
        return False


def main():
    procd = Procd()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen()
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rw") as stream:
            message = json.loads(stream.readline())
            with LOCK:
                stream.write("ok\n" if procd.handle(message) else "no\n")


if __name__ == "__main__":
    main()
