"""nginx as the plain proxy to compare with: one worker, no buffering, kept connections, a key looked up in a map."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

from gateway.embedded.ports import free_port

KNOWN_KEYS = 10_000
_START_SECONDS = 10.0

_CONFIGURATION = """
{user}
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  client_body_buffer_size 64k;
  keepalive_requests 1000000;
  map_hash_max_size 65536;
  map_hash_bucket_size 256;
  map $http_authorization $known {{ default 0; include {directory}/keys; }}
  upstream backend {{ server 127.0.0.1:{backend_port}; keepalive 256; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{
      if ($known = 0) {{ return 401; }}
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


def find() -> str | None:
    """The path of nginx, or None where it is not installed."""
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


class Nginx:
    """A running nginx in front of `backend_port` that lets `key` and some thousand others in."""

    def __init__(self, program: str, directory: Path, backend_port: int, key: str) -> None:
        directory.mkdir()
        self.port = free_port()
        keys = [key, *(f"sk-known-{number:06}" for number in range(KNOWN_KEYS))]
        (directory / "keys").write_text("".join(f'"Bearer {one}" 1;\n' for one in keys))
        # Started by root it would change to an account that may not read this directory.
        user = "user root;" if os.geteuid() == 0 else ""
        path = directory / "nginx.conf"
        path.write_text(
            _CONFIGURATION.format(user=user, directory=directory, port=self.port, backend_port=backend_port)
        )
        self.version = _version(program)
        self._process = subprocess.Popen(  # noqa: S603 - nginx as found on this machine
            [program, "-c", str(path), "-p", str(directory), "-e", str(directory / "error.log")],
            stdin=subprocess.DEVNULL,
        )
        self._wait(directory / "error.log")

    @property
    def pid(self) -> int:
        """The process id of the master; the worker is its child."""
        return self._process.pid

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise RuntimeError(f"nginx did not start: {log.read_text() if log.exists() else 'it left no message'}")


def _version(program: str) -> str:
    told = subprocess.run([program, "-v"], capture_output=True, text=True, check=True)  # noqa: S603 - as above
    found = re.search(r"nginx/(\S+)", told.stderr)
    return found[1] if found else "of unknown version"
