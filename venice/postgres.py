"""PostgreSQL through psql in its own container: no database port needed by the operator, no password anywhere."""

import csv
import io
from typing import Any

from venice.errors import InputError, UnreachableError, VeniceError
from venice.hosts import COMMAND_SECONDS, DockerHost


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
        where = f"postgres on {self.host.name}"
        if code == 3:  # psql's own: a statement failed
            raise VeniceError(f"{where}: {_last_error(errors)}")
        if code:
            raise UnreachableError(f"{where}: {errors.strip() or f'psql ended with {code}'}", "`venice logs postgres` shows why")
        return [tuple(row) for row in csv.reader(io.StringIO(output))]


def _last_error(errors: str) -> str:
    lines = [line for line in errors.splitlines() if "ERROR:" in line or "FATAL:" in line]
    return lines[-1].split(": ", 1)[-1].strip() if lines else errors.strip()
