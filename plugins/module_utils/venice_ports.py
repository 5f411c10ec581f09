"""Who listens on which port of this host: the kernel's tables, process names, and containers' published ports."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
from pathlib import Path

LISTEN = "0A"
ANY = ("0.0.0.0", "::", "")  # noqa: S104 (compared with, not bound)
TABLES = {"tcp": ("tcp", "tcp6"), "udp": ("udp", "udp6")}


def listeners() -> dict[tuple[str, int], list[tuple[str, str]]]:
    """Listening sockets: (protocol, port) -> [(address, socket inode)]."""
    found: dict[tuple[str, int], list[tuple[str, str]]] = {}
    for protocol, tables in TABLES.items():
        for table in tables:
            try:
                lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
            except OSError:
                continue
            for line in lines:
                words = line.split()
                if protocol == "tcp" and words[3] != LISTEN:
                    continue
                address, _, port = words[1].partition(":")
                found.setdefault((protocol, int(port, 16)), []).append((_address(address), words[9]))
    return found


def published(containers: list[dict]) -> dict[tuple[str, int], list[tuple[str, str]]]:
    """Published ports, from the engine's list of containers: (protocol, port) -> [(address, container name)]."""
    found: dict[tuple[str, int], list[tuple[str, str]]] = {}
    for container in containers:
        for port in container.get("Ports") or []:
            if port.get("PublicPort"):
                entry = (port.get("IP", ""), container["Names"][0].lstrip("/"))
                found.setdefault((port["Type"], port["PublicPort"]), []).append(entry)
    return found


def holder(port: int, address: str, protocol: str, listening: dict, by_container: dict) -> dict | None:
    """Who keeps `address:port` from being bound, `{text, container or None}`; None when it is free."""

    def in_the_way(entries: list[tuple[str, str]]) -> list[str]:
        return [what for own, what in entries if own in ANY or address in ANY or own == address]

    # first, because a published port has no socket without the userland proxy, and an uninformative one with it
    containers = in_the_way(by_container.get((protocol, port), []))
    if containers:
        return {"text": f"container {containers[0]}", "container": containers[0]}
    sockets = in_the_way(listening.get((protocol, port), []))
    if not sockets:
        return None
    return {"text": ", ".join(sorted(_processes(set(sockets)))) or "a process that cannot be named", "container": None}


def _processes(inodes: set[str]) -> set[str]:
    """`process NAME (pid N)` of the processes that hold one of these sockets, as far as we may look."""
    targets = {f"socket:[{inode}]" for inode in inodes}
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208 (names are all that is needed)
        with contextlib.suppress(OSError):
            for descriptor in os.scandir(f"/proc/{pid}/fd"):
                if os.readlink(descriptor.path) in targets:  # noqa: PTH115
                    found.add(f"process {Path(f'/proc/{pid}/comm').read_text().strip()} (pid {pid})")
                    break
    return found


def _address(text: str) -> str:
    """The kernel's hexadecimal address (words in host byte order) as text."""
    words = [struct.pack("=I", int(word, 16)) for word in re.findall("." * 8, text)]
    packed = b"".join(words)
    if len(packed) == 4:
        return socket.inet_ntop(socket.AF_INET, packed)
    address = socket.inet_ntop(socket.AF_INET6, packed)
    return address.removeprefix("::ffff:")
