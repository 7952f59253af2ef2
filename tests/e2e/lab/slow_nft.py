"""The program nft, when it takes its time."""

import shutil


class SlowNft:
    """An nft in front of the real one, which can be had wait, or be missing."""

    def __init__(self, directory):
        self.path, self.hold, self.waits = (directory / name for name in ("nft", "hold", "waits"))
        self.env = {"PATH": str(directory)}
        self.be_there()

    def be_there(self):
        self.path.write_text(
            f'#!/bin/sh\n'
            f'while [ -e {self.hold} ]; do : >{self.waits}; {shutil.which("sleep")} 0.05; done\n'
            f'exec {shutil.which("nft")} "$@"\n'
        )
        self.path.chmod(0o755)
