"""Finding and testing TCP ports on loopback."""

from __future__ import annotations

import errno
import http.client
import secrets
import socket

from gateway.embedded.errors import CannotStart

LOOPBACK = "127.0.0.1"

_OK = 200
_ANSWER_SECONDS = 2.0

_FIRST_PORT, _PORTS = 20_000, 12_768
"""Below those that Linux, macOS and Windows give to connections, so that none takes the port before it is used."""
_TRIES = 100


def free_port(preferred: int | None = None) -> int:
    """A port nobody listens on: `preferred` if it is free, else any."""
    if preferred is not None and is_free(preferred):
        return preferred
    for _ in range(_TRIES):
        port = _FIRST_PORT + secrets.randbelow(_PORTS)
        if is_free(port):
            return port
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = int(listener.getsockname()[1])
        return port


def is_free(port: int) -> bool:
    """Whether we could listen on this port of loopback now."""
    try:
        socket.create_server((LOOPBACK, port)).close()
    except OSError:
        return False
    return True


def demand_free(port: int) -> None:
    """Raise `CannotStart` with the reason if we could not listen on this port."""
    try:
        socket.create_server((LOOPBACK, port)).close()
    except OSError as error:
        if error.errno == errno.EACCES:
            raise CannotStart(f"Port {port} may only be opened by root; choose another with --port.") from None
        raise CannotStart(f"Port {port} is taken by another program; choose another with --port.") from None


def answers_ok(port: int, path: str) -> bool:
    """Whether the HTTP server of this port answers `GET path` with 200; cheap enough to be asked again and again."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == _OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
