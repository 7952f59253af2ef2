"""A gateway with a configuration file, which is changed while it runs."""

import signal

from lab.gateway import upstream

RESTARTED = r"changed .*; restarting"


class Configured:
    """A gateway with a file, to be changed."""

    def __init__(self, gateway, directory):
        self.path = directory / "config"
        self.make = lambda **more: gateway("--config", str(self.path), upstreams=(), routes=(), log_level=None, **more)

    def write(self, main="", upstreams=(upstream(),)):
        main = main if "log_level" in main else f"{main}\noption log_level debug"
        urls = "\n".join(f"list upstream {url}" for url in upstreams)
        # In one piece, as uci does it: the daemon may read at any moment.
        new = self.path.with_suffix(".new")
        new.write_text(f"config tcp-over-http main\noption auto_route 1\n{urls}\n{main}\n")
        new.rename(self.path)
        return self

    def start(self, **more):
        self.daemon = self.make(**more)
        return self.daemon

    def reload(self, pattern, **more):
        """Writes, signals, and waits for a line behind the signal; returns the offset in the log."""
        if more:
            self.write(**more)
        offset = len(self.daemon.log())
        self.daemon.signal(signal.SIGHUP)
        self.daemon.wait_log(pattern, offset)
        return offset

    def restart(self, **more):
        """A reload that another run answers."""
        self.daemon.wait_ready(self.reload(RESTARTED, **more))
