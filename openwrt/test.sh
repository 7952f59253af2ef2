#!/bin/sh
# The feed's CI runs this on an installed package: test.sh PACKAGE VERSION.

[ "$1" = tcp-over-http ] || exit 0
tcp-over-http --version 2>&1 | grep -qF "$2"
