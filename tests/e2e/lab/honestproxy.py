#!/usr/bin/env python3
"""A CONNECT proxy that says honestly how its own connect went. For tests, and for the demo where there is no other.

    honestproxy.py PORT CONNECT-TIMEOUT ADDRESS...

refused -> 502, timed out -> 504, unreachable or forbidden -> 503; half-closes and resets pass through.
"""

import asyncio
import errno
import socket
import struct
import sys

LIMIT = 1 << 18
STATUS = {errno.ECONNREFUSED: "502 Refused", errno.ETIMEDOUT: "504 Timeout"}


async def serve(addresses, port, timeout):
    """Serves for ever; says when it listens."""

    async def connection(reader, writer):
        try:
            await tunnel(reader, writer, timeout)
        except (OSError, asyncio.IncompleteReadError, ValueError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connection, addresses, port, limit=LIMIT, backlog=1024)
    print(f"listening on {' '.join(addresses)} port {port}", flush=True)
    await server.serve_forever()


async def tunnel(reader, writer, timeout):
    head = await reader.readuntil(b"\r\n\r\n")
    method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
    print(method, target, flush=True)
    if method != "CONNECT":
        writer.write(answer("405 CONNECT only"))
        return
    host, _, port = target.rpartition(":")
    try:
        opening = asyncio.open_connection(host.strip("[]"), int(port), limit=LIMIT)
        far_reader, far_writer = await asyncio.wait_for(opening, timeout)
    except TimeoutError:
        writer.write(answer(STATUS[errno.ETIMEDOUT]))
        return
    except OSError as error:
        writer.write(answer(STATUS.get(error.errno, "503 Unreachable")))
        return
    try:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
    except OSError:
        for end in (writer, far_writer):
            # A reset on one side is one on the other.
            sock = end.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.transport.abort()
    finally:
        far_writer.close()


async def pump(reader, writer):
    """Copies one direction to its end, which it passes on."""
    while data := await reader.read(LIMIT):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


def answer(status):
    return f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    asyncio.run(serve(sys.argv[3:], int(sys.argv[1]), float(sys.argv[2])))
