#!/bin/sh
# The feed's CI runs this on an installed package: test.sh PACKAGE VERSION.

[ "$1" = tcp-over-http ] || exit 0
# Without -q: the log shows the line.
tcp-over-http --version | grep -Fx "tcp-over-http $2"
