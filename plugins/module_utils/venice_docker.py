"""The engine on this host: questions over its socket, changes through the docker SDK.

Importing the SDK costs 200 ms, more than everything else a run that changes nothing does. So questions go straight to
the socket (HTTP/1.0, one connection each, hence safe in threads), and the SDK is imported by the first change.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, urlencode

SOCKET = "/var/run/docker.sock"


class EngineError(Exception):
    """The engine refused or did not answer; `status` is its HTTP status (0: no answer)."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class EngineTimeout(EngineError):
    """The engine did not answer in time."""


class Engine:
    """One Docker engine behind a Unix socket."""

    def __init__(self, path: str = SOCKET) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._api = None

    @property
    def api(self):
        """The SDK's low-level client, for changes; raises EngineError when the SDK is missing."""
        with self._lock:
            if self._api is None:
                with sdk_errors():
                    import docker

                    # longer than any stop_timeout: the engine answers a stop only when the container is gone
                    self._api = docker.APIClient(base_url=f"unix://{self.path}", version="auto", timeout=900)
        return self._api

    def ask(self, path: str, body: dict | None = None, timeout: float = 60, **query) -> bytes:
        """Send one request (POST when there is a `body`) and return the whole answer within `timeout` seconds.

        Raises EngineError with the engine's message, EngineTimeout when time is up.
        """
        deadline = time.monotonic() + timeout
        data = b"" if body is None else json.dumps(body).encode()
        target = path + (f"?{urlencode(query)}" if query else "")
        head = f"{'GET' if body is None else 'POST'} {target} HTTP/1.0\r\nHost: docker\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        chunks = []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(timeout)
                connection.connect(self.path)
                connection.sendall(head.encode() + b"\r\n" + data)
                while True:
                    connection.settimeout(max(deadline - time.monotonic(), 0.001))
                    chunk = connection.recv(1 << 16)
                    if not chunk:
                        break
                    chunks.append(chunk)
        except socket.timeout as error:  # noqa: UP041 (not the same class before Python 3.10)
            raise EngineTimeout(f"the engine did not answer {path} in {timeout:g} s") from error
        except OSError as error:
            raise EngineError(f"no Docker engine answers at {self.path}: {error.strerror or error}") from error
        head_bytes, _, answer = b"".join(chunks).partition(b"\r\n\r\n")
        words = head_bytes.split(None, 2)
        status = int(words[1]) if len(words) > 1 else 0
        if not 200 <= status < 300:
            raise EngineError(_message(answer), status)
        return answer

    def get(self, path: str, **query):
        """Ask and return the decoded JSON answer; None when the engine knows no such object."""
        try:
            return json.loads(self.ask(path, **query))
        except EngineError as error:
            if error.status == 404:
                return None
            raise

    def containers(self) -> list[dict]:
        """All containers, running or not, as the engine lists them."""
        return self.get("/containers/json", all="true")

    def container(self, name: str) -> dict | None:
        return self.get(f"/containers/{quote(name)}/json")

    def image(self, ref: str) -> dict | None:
        return self.get(f"/images/{quote(ref, safe='')}/json")

    def network(self, name: str) -> dict | None:
        return self.get(f"/networks/{quote(name)}")

    def logs(self, container: str, lines: int) -> list[str]:
        """The last `lines` log lines of a container, both streams in order; empty when its log driver keeps none."""
        path = f"/containers/{quote(container)}/logs"
        try:
            answer = self.ask(path, stdout="true", stderr="true", tail=str(lines), timeout=10)
        except EngineError:
            return []
        return demultiplex(answer).decode(errors="replace").splitlines()[-lines:]

    def execute(self, container: str, command: list[str], timeout: float) -> tuple[int | None, str]:
        """Run `command` in a container: (exit code, output). The code is None when it was not done in `timeout` s."""
        created = json.loads(
            self.ask(
                f"/containers/{quote(container)}/exec",
                {"Cmd": command, "AttachStdout": True, "AttachStderr": True},
                timeout=timeout,
            )
        )
        path = f"/exec/{created['Id']}"
        try:
            output = demultiplex(self.ask(f"{path}/start", {"Detach": False, "Tty": False}, timeout=timeout))
        except EngineTimeout:
            return None, ""
        state = self.get(f"{path}/json")
        return state["ExitCode"], output.decode(errors="replace").strip()


@contextlib.contextmanager
def sdk_errors():
    """Turn what the SDK raises into EngineError with the engine's own message."""
    try:
        import docker
        import requests
    except ImportError as error:
        raise EngineError(f"the docker SDK for Python is missing on this host: {error}") from error
    try:
        yield
    except docker.errors.APIError as error:
        message = error.explanation or str(error)
        raise EngineError(message.decode() if isinstance(message, bytes) else message, error.status_code) from error
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise EngineError(str(error)) from error


def in_parallel(function, items, width: int = 8) -> list:
    """`function` of every item, in threads, results in order; the first error is raised when all are done."""
    items = list(items)
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(max_workers=min(width, len(items))) as pool:
        return list(pool.map(function, items))


def demultiplex(stream: bytes) -> bytes:
    """The payload of the engine's stream of frames (8 bytes: stream number, 3 zeros, big-endian length)."""
    parts = []
    position = 0
    while position + 8 <= len(stream):
        length = int.from_bytes(stream[position + 4 : position + 8], "big")
        parts.append(stream[position + 8 : position + 8 + length])
        position += 8 + length
    return b"".join(parts)


def _message(answer: bytes) -> str:
    try:
        return json.loads(answer)["message"]
    except (ValueError, KeyError, TypeError):
        return answer.decode(errors="replace").strip() or "the engine gave no message"
