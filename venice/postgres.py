"""PostgreSQL through psql in its own container: no database port needed by the operator, no password anywhere."""

import csv
import io
import re
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any

from venice.errors import InputError, UnreachableError, VeniceError
from venice.hosts import COMMAND_SECONDS, DockerHost

# psql's own exit code for a server that it can't reach
_NO_CONNECTION = 2


def quote(value: object) -> str:
    """A value as a single-quoted argument of a psql meta command, where backslashes are escapes."""
    text = str(value)
    if "\0" in text:
        raise InputError("a value for PostgreSQL holds a NUL character, which it can't store")
    for char, escape in (("\\", "\\\\"), ("'", "''"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(char, escape)
    return f"'{text}'"


class Postgres:
    """The database of one PostgreSQL instance, asked as its superuser over the container's local socket."""

    def __init__(self, host: DockerHost, container: str, database: str):
        self.host = host
        self.container = container
        self.database = database

    @classmethod
    def of(cls, cluster: Any, host: DockerHost | None = None) -> "Postgres":
        """The cluster's sink. VeniceError when the inventory has none."""
        cluster.required("postgres", "sql")
        instance = cluster.instances("postgres")[0]
        host = host or DockerHost(cluster.hosts[instance.host])
        return cls(host, instance.container, cluster.pipeline_vars["postgres_db"])

    def query(self, sql: str, variables: dict[str, object] | None = None, timeout: float = COMMAND_SECONDS) -> list[tuple[str, ...]]:
        """Rows of the statements in `sql`, values as text (NULL is empty).

        `variables` are used as :'name' (a quoted literal) or :"name" (a quoted identifier). VeniceError with the
        server's own message when a statement fails, UnreachableError when the host or the server does not answer.
        """
        settings = "".join(f"\\set {name} {quote(value)}\n" for name, value in (variables or {}).items())
        argv = ["psql", "-X", "-q", "-t", "--csv", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", self.database]
        code, output, errors = self.host.exec(self.container, argv, stdin=settings + sql, timeout=timeout)
        self._check(code, errors)
        # a row of one empty value is an empty line, which the reader takes for a row without values
        return [tuple(row or [""]) for row in csv.reader(io.StringIO(output))]

    def shell(self, options: Sequence[str] = ()) -> int:
        """psql for a person at a terminal; its exit code. `options` are psql's own."""
        return self._psql(["-X", *options], tty=True)

    def run_commands(self, commands: Sequence[str], options: Sequence[str] = ()) -> int:
        """Run each command as psql's `-c` does, and print what it prints; 0, or 1 at the first that fails.

        A last command that copies `from stdin` (or `pstdin`) reads this process's input.
        """
        script = io.BytesIO(_script(commands).encode())
        copies = bool(re.search(r"\bfrom\s+p?stdin\b", commands[-1], re.IGNORECASE))
        return self._run([script, sys.stdin.buffer] if copies else [script], options)

    def run_input(self, source: IO[bytes] | None = None, options: Sequence[str] = ()) -> int:
        """Run the SQL of a file, or of this process's input, and print the results; 0, or 1 at the first that fails."""
        # -f: so that errors name the line
        return self._run(None if source is None else [source], [*options, "-f", "-"])

    def rows(self, command: str, timeout: float = COMMAND_SECONDS) -> list[dict[str, str | None]]:
        """What the last statement of `command` returns: each row by column, values as text, NULL as None."""
        null = uuid.uuid4().hex  # CSV has no NULL of its own
        settings = ["--csv", "-q", "-v", "SHOW_ALL_RESULTS=off", "-P", f"null={null}"]
        argv = self._argv(["-X", "-v", "ON_ERROR_STOP=1", *settings, "-f", "-"])
        code, output, errors = self.host.exec(self.container, argv, stdin=_script([command]), timeout=timeout)
        self._check(code, errors)
        rows = csv.reader(io.StringIO(output))
        columns = next(rows, [])
        return [{c: None if v == null else v for c, v in zip(columns, row, strict=True)} for row in rows]

    def _argv(self, options: Sequence[str]) -> list[str]:
        return ["psql", "-U", "postgres", "-d", self.database, *options]

    def _run(self, sources: Sequence[IO[bytes]] | None, options: Sequence[str]) -> int:
        name = f"venice {uuid.uuid4().hex[:12]}"
        try:
            return self._psql(["-X", "-v", "ON_ERROR_STOP=1", *options], False, sources, {"PGAPPNAME": name})
        except KeyboardInterrupt:
            # psql in the container gets no signal when the connection to it ends, and its statement would run on
            with suppress(VeniceError):
                self.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :'name'", {"name": name})
            raise

    def _psql(
        self,
        options: Sequence[str],
        tty: bool,
        sources: Sequence[IO[bytes]] | None = None,
        env: dict[str, str] | None = None,
    ) -> int:
        from venice import terminal

        # the container has no locale: without one psql would count bytes, not characters
        env = {"LANG": "C.UTF-8"} | (env or {})
        code = terminal.attach(self.host, self.container, self._argv(options), tty, sources, env)
        if code == _NO_CONNECTION:
            raise UnreachableError(
                f"postgres on {self.host.name}: psql lost or never had its connection", "`venice logs postgres` shows why"
            )
        return 1 if code else 0

    def _check(self, code: int, errors: str) -> None:
        where = f"postgres on {self.host.name}"
        if code == 3:  # psql's own: a statement failed
            raise VeniceError(f"{where}: {_last_error(errors)}")
        if code:
            raise UnreachableError(f"{where}: {errors.strip() or f'psql ended with {code}'}", "`venice logs postgres` shows why")


def _script(commands: Sequence[str]) -> str:
    """psql input that does what its `-c` does with each command: one request, so that it is done as a whole or not at all.

    `-c` itself would put them where every user of the host can read them, passwords and all.
    """
    lines = []
    for command in commands:
        text = command.strip()
        lines.append(text if text.startswith("\\") else f"\\set command {quote(text)}\nSELECT :'command' \\gexec")
    return "\n".join(lines) + "\n"


def _last_error(errors: str) -> str:
    lines = [line for line in errors.splitlines() if "ERROR:" in line or "FATAL:" in line]
    return lines[-1].split(": ", 1)[-1].strip() if lines else errors.strip()
