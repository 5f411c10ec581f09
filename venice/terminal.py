"""Commands on hosts that talk with a person or a pipe: over SSH with the operator's own terminal, or without one."""

import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import threading
import tty as terminal_modes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

import paramiko

from venice.errors import UnreachableError, VeniceError
from venice.hosts import CONNECT_SECONDS, DockerHost

# seconds without an answer after which a host counts as gone
_SILENCE = 15
_CHUNK = 65536
# bash where there is one
SHELL = ["sh", "-c", "command -v bash >/dev/null && exec bash; exec sh"]
# what a command reads, one after the other; None is this process's own input
Sources = Sequence[IO[bytes]] | None
# Docker holds ctrl-p back to see whether ctrl-q follows (its way to detach), and ctrl-p is "previous line" in every shell
_DETACH = "ctrl-@,ctrl-^"


def on_terminal() -> bool:
    """True when a person types and reads: input and output are terminals."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def attach(
    host: DockerHost,
    container: str,
    argv: list[str],
    tty: bool,
    sources: Sources = None,
    env: dict[str, str] | None = None,
) -> int:
    """Run a command in a container of the host, as `run_interactive` does; its exit code.

    UnreachableError when the container does not run.
    """
    code, state, errors = host.run(["docker", "container", "inspect", "--format", "{{.State.Status}}", container])
    if code:
        if "no such container" in errors.lower():
            raise UnreachableError(f"{host.name}: there is no container {container}", "`venice deploy` makes it")
        raise UnreachableError(f"{host.name}: {errors.strip()}", "`venice deploy` installs Docker and lets the SSH user use it")
    if state.strip() != "running":
        name = container.removeprefix("venice-")
        raise UnreachableError(
            f"{host.name}: {container} does not run ({state.strip()})",
            f"`venice up` starts it, `venice logs {name}@{host.name}` shows why it ended",
        )
    options = ["--interactive"]
    if tty:
        options += ["--tty", "--detach-keys", _DETACH, "--env", f"TERM={_term()}"]
    for name, value in (env or {}).items():
        options += ["--env", f"{name}={value}"]
    return run_interactive(host, ["docker", "exec", *options, container, *argv], tty, sources)


def run_interactive(host: DockerHost, argv: list[str], tty: bool, sources: Sources = None) -> int:
    """Run a command on the host with this process's input (or with `sources` as its input) and outputs; its exit code.

    With `tty` the command gets a terminal of this one's kind and size and every key, Ctrl-C included; this process's own
    terminal is as before afterwards, whatever happens. UnreachableError when the connection is lost meanwhile.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if host.local:
        return _run_here(argv, sources)
    transport = host.transport()
    host.watch(_SILENCE)
    lost = UnreachableError(f"{host.name}: the SSH connection was lost", "is the host on, and still on the network?")
    try:
        channel = transport.open_session(timeout=CONNECT_SECONDS)
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise lost from error
    try:
        if tty:
            channel.get_pty(_term(), *_size())
        channel.exec_command(shlex.join(argv))
        with _raw_terminal() if tty else _plain():
            code = _talk(channel, tty, sources)
    except (paramiko.SSHException, EOFError, ConnectionResetError, TimeoutError) as error:
        raise lost from error
    finally:
        with suppress(Exception):
            channel.close()
    if code < 0:
        raise lost
    return code


def _run_here(argv: list[str], sources: Sources) -> int:
    try:
        if sources is None:
            return subprocess.call(argv)
        with subprocess.Popen(argv, stdin=subprocess.PIPE) as process:
            with suppress(BrokenPipeError):
                for source in sources:
                    shutil.copyfileobj(source, process.stdin)
                process.stdin.close()
            return process.wait()
    except OSError as error:
        raise VeniceError(f"{argv[0]} can't be run on this machine: {error}") from error


def _talk(channel: paramiko.Channel, tty: bool, sources: Sources) -> int:
    """Carries bytes until the command has ended: its exit code, -1 when the connection was lost."""
    stop, stopped = os.pipe()
    feed = threading.Thread(target=_feed, args=(channel, sources, stop), daemon=True)
    try:
        with _resizes(channel) if tty else _plain() as resized:
            feed.start()
            while True:
                ready, _, _ = select.select([channel, *([resized] if resized is not None else [])], [], [])
                if resized in ready:
                    os.read(resized, _CHUNK)
                    channel.resize_pty(*_size())
                if channel in ready and not _show(channel):
                    break
        channel.status_event.wait(CONNECT_SECONDS)
        return channel.exit_status
    finally:
        # the thread is in a read, which the byte ends, or in a send, which closing the channel ends
        os.write(stopped, b"x")
        channel.close()
        feed.join()
        os.close(stop)
        os.close(stopped)


def _show(channel: paramiko.Channel) -> bool:
    """Passes on what has come; False at its end."""
    some = False
    for waiting, receive, stream in (
        (channel.recv_ready, channel.recv, sys.stdout.buffer),
        (channel.recv_stderr_ready, channel.recv_stderr, sys.stderr.buffer),
    ):
        if waiting():
            some = True
            stream.write(receive(_CHUNK))
            stream.flush()
    return some or not (channel.eof_received or channel.closed)


def _feed(channel: paramiko.Channel, sources: Sources, stop: int) -> None:
    """Passes on the input until its end, which the command gets to know, or until `stop` can be read."""
    # a thread of its own: the command may take no more input before its output is read
    with suppress(OSError, EOFError, paramiko.SSHException):
        for source in [sys.stdin.buffer] if sources is None else sources:
            for data in _chunks(source, stop):
                channel.sendall(data)
        channel.shutdown_write()


def _chunks(source: IO[bytes], stop: int) -> Iterator[bytes]:
    try:
        descriptor = source.fileno()
    except OSError:  # a buffer in memory
        yield source.read()
        return
    while True:
        ready, _, _ = select.select([descriptor, stop], [], [])
        if stop in ready or not (data := os.read(descriptor, _CHUNK)):
            return
        yield data


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the command; the terminal is as before afterwards, also when this process is asked to end."""
    source = sys.stdin.fileno()
    before = termios.tcgetattr(source)

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    handlers = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        terminal_modes.setraw(source)
        yield
    finally:
        termios.tcsetattr(source, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _resizes(channel: paramiko.Channel) -> Iterator[int]:
    """A descriptor that can be read after the terminal's size has changed."""
    # not in the signal handler itself: it may interrupt a send, whose lock it would then wait for
    read, write = os.pipe()
    os.set_blocking(write, False)

    def note(*_: object) -> None:
        with suppress(BlockingIOError):
            os.write(write, b"w")

    before = signal.signal(signal.SIGWINCH, note)
    note()  # the size may have changed since the command was given its terminal
    try:
        yield read
    finally:
        signal.signal(signal.SIGWINCH, before)
        os.close(read)
        os.close(write)


@contextmanager
def _plain() -> Iterator[None]:
    yield None


def _size() -> tuple[int, int]:
    size = os.get_terminal_size(sys.stdout.fileno())
    return size.columns, size.lines


def _term() -> str:
    return os.environ.get("TERM") or "xterm"
