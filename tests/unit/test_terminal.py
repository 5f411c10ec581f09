"""Commands over SSH with a terminal and without one, against an SSH server of this process that runs them on this machine."""

import fcntl
import os
import pty
import socket
import struct
import subprocess
import sys
import termios
import threading
from contextlib import suppress
from pathlib import Path

import paramiko
import pexpect
import pytest

from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]

CLIENT = """
import io, sys
from types import SimpleNamespace

from tests.waiting import PATIENCE
from venice.errors import VeniceError
from venice.hosts import DockerHost
from venice.terminal import attach, run_interactive
variables = {"ansible_user": "someone", "ansible_password": "secret", "ansible_ssh_common_args": "-o StrictHostKeyChecking=no",
             "ansible_host": "127.0.0.1", "ansible_port": sys.argv[1]}
host = DockerHost(SimpleNamespace(name="box", vars={"ansible_connection": "local"} if sys.argv[1] == "local" else variables))
try:
    if sys.argv[2] == "attach":
        sys.exit(attach(host, sys.argv[3], sys.argv[4:], False))
    sources = [io.BytesIO(sys.argv[3].encode()), *([sys.stdin.buffer] if sys.argv[2] == "both" else [])]
    code = run_interactive(host, sys.argv[4:], sys.argv[2] == "tty", sources if sys.argv[3] else None)
except VeniceError as error:
    print(error, file=sys.stderr)
    code = error.exit_code
print("terminal", "echoes" if sys.argv[2] == "tty" and __import__("termios").tcgetattr(0)[3] & 8 else "-", file=sys.stderr)
sys.exit(code)
"""


class Server(paramiko.ServerInterface):
    """Runs every command on this machine, in a terminal of its own when one is asked for."""

    def __init__(self):
        self.transport = None
        self.size = None
        self.master = None

    def check_auth_password(self, username, password):
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind, chanid):
        return paramiko.OPEN_SUCCEEDED

    def check_channel_pty_request(self, channel, term, width, height, *_):
        self.size = (height, width)
        return True

    def check_channel_window_change_request(self, channel, width, height, *_):
        self._resize((height, width))
        return True

    def _resize(self, size):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))

    def check_channel_exec_request(self, channel, command):
        threading.Thread(target=self._run, args=(channel, command.decode()), daemon=True).start()
        return True

    def _run(self, channel, command):
        if self.size:
            self.master, slave = pty.openpty()
            self._resize(self.size)
            process = subprocess.Popen(["sh", "-c", f"exec setsid -c {command}"], stdin=slave, stdout=slave, stderr=slave)
            os.close(slave)
            threads = [threading.Thread(target=self._copy, args=(lambda: os.read(self.master, 65536), channel.sendall), daemon=True)]
            threading.Thread(
                target=self._copy, args=(lambda: channel.recv(65536), lambda data: os.write(self.master, data)), daemon=True
            ).start()
        else:
            process = subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            threads = [
                threading.Thread(target=self._copy, args=(lambda: process.stdout.read1(65536), channel.sendall), daemon=True),
                threading.Thread(target=self._copy, args=(lambda: process.stderr.read1(65536), channel.sendall_stderr), daemon=True),
            ]
            threading.Thread(target=self._input, args=(channel, process.stdin), daemon=True).start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        channel.send_exit_status(process.wait())
        channel.close()

    def _copy(self, read, write):
        with suppress(OSError):
            while data := read():
                write(data)

    def _input(self, channel, stdin):
        self._copy(lambda: channel.recv(65536), lambda data: (stdin.write(data), stdin.flush()))
        with suppress(OSError):
            stdin.close()


@pytest.fixture
def server():
    listener = socket.create_server(("127.0.0.1", 0))
    interface = Server()
    key = paramiko.RSAKey.generate(2048)

    def serve():
        with suppress(OSError):
            client, _ = listener.accept()
            interface.transport = paramiko.Transport(client)
            interface.transport.add_server_key(key)
            interface.transport.start_server(server=interface)

    threading.Thread(target=serve, daemon=True).start()
    interface.port = listener.getsockname()[1]
    yield interface
    listener.close()
    if interface.transport:
        interface.transport.close()


def arguments(port, mode, source, *argv):
    return ["-c", CLIENT, str(port), mode, source, *argv]


def run(port, mode, source, *argv, stdin="", **kwargs):
    command = [sys.executable, *arguments(port, mode, source, *argv)]
    given = {"stdin": kwargs["stdin_file"]} if "stdin_file" in kwargs else {"input": stdin}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False, **given)


@pytest.fixture
def terminal(server):
    """Starts a client on a terminal of 31 lines and 101 columns."""
    started = []

    def start(*argv):
        child = pexpect.spawn(
            sys.executable,
            arguments(server.port, "tty", "", *argv),
            cwd=str(ROOT),
            dimensions=(31, 101),
            timeout=PATIENCE,
            encoding="utf-8",
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


@pytest.mark.parametrize("where", ["ssh", "local"])
def test_streams_and_exit_code(server, where):
    port = server.port if where == "ssh" else "local"
    done = run(port, "plain", "", "sh", "-c", "cat; echo problem >&2; exit 7", stdin="line\n")
    assert (done.returncode, done.stdout, done.stderr.splitlines()[0]) == (7, "line\n", "problem")


def test_arguments_arrive_as_they_are(server):
    done = run(server.port, "plain", "", "printf", "[%s]", "a b", "$HOME", "it's")
    assert done.stdout == "[a b][$HOME][it's]"


def test_more_output_than_any_buffer_while_input_waits(server, tmp_path):
    """A command that writes before it has read all: neither side may wait for the other."""
    big = tmp_path / "big"
    big.write_bytes(b"x" * 99 + b"\n")
    with big.open("ab") as file:
        file.write((b"y" * 99 + b"\n") * 120_000)
    with big.open("rb") as file:
        done = run(server.port, "plain", "", "cat", stdin_file=file)
    assert (done.returncode, len(done.stdout)) == (0, 12_000_100)


@pytest.mark.parametrize("where", ["ssh", "local"])
def test_given_input_then_the_process_s_own(server, where):
    port = server.port if where == "ssh" else "local"
    assert run(port, "both", "given ", "cat", stdin="own").stdout == "given own"
    if where == "local":
        assert run(port, "plain", "given", "cat", stdin="ignored").stdout == "given"


def test_a_command_that_ends_early_does_not_wait_for_input(server):
    child = subprocess.Popen(
        [sys.executable, *arguments(server.port, "plain", "", "true")], cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert child.wait(PATIENCE) == 0  # its input is still open
    finally:
        child.kill()


def test_terminal_has_the_size_the_kind_and_every_key(server, terminal):
    child = terminal("sh", "-c", "stty size; tty >/dev/null && echo is-a-terminal; cat; exit 5")
    child.expect("31 101")
    child.expect("is-a-terminal")
    child.send("typed\r")
    child.expect("typed\r\ntyped")
    child.sendcontrol("d")
    child.expect("terminal echoes")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 5


def test_new_size_reaches_the_command(server, terminal):
    child = terminal("bash", "-c", "trap 'stty size' WINCH; echo ready; while :; do read -t 0.1 line; done")
    child.expect("ready")
    child.setwinsize(44, 133)
    child.expect("44 133")


def test_ctrl_c_goes_to_the_command(server, terminal):
    # short naps: a signal that comes just before a long one is begun would be looked at only after it
    child = terminal("sh", "-c", "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.1; done")
    child.expect("ready")
    child.sendcontrol("c")
    child.expect("caught")
    child.expect("terminal echoes")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 9


def test_lost_connection_is_said_and_leaves_the_terminal_as_it_was(server, terminal):
    child = terminal("sh", "-c", "echo ready; cat")
    child.expect("ready")
    server.transport.sock.shutdown(socket.SHUT_RDWR)
    child.expect("box: the SSH connection was lost")
    child.expect("terminal echoes")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 3


def test_asked_to_end_it_leaves_the_terminal_as_it_was(server, terminal):
    child = terminal("sh", "-c", "echo ready; cat")
    before = termios.tcgetattr(child.child_fd)[3]
    child.expect("ready")
    assert not termios.tcgetattr(child.child_fd)[3] & termios.ECHO
    child.kill(15)
    child.expect(pexpect.EOF)
    assert termios.tcgetattr(child.child_fd)[3] & termios.ECHO == before & termios.ECHO
    child.close()
    assert child.exitstatus == 143


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'Error: No such container: venice-x' >&2; exit 1", "there is no container venice-x"),
        ("echo exited", "venice-x does not run (exited)"),
        ("echo 'permission denied' >&2; exit 1", "permission denied"),
    ],
)
def test_container_that_is_not_there_or_does_not_run(tmp_path, monkeypatch, script, says):
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\n{script}\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    done = run("local", "attach", "venice-x", "true")
    assert (done.returncode, says in done.stderr) == (3, True), done.stderr
