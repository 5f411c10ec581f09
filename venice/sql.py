"""SQL over what is in Kafka, by the deployed stream processor: `SELECT * FROM topic` without declaring anything."""

import math
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from venice.errors import InputError, VeniceError
from venice.flink import Gateway, Result
from venice.flink_tables import tables
from venice.hosts import DockerHost
from venice.ksqldb import split


def run(cluster: Any, script: str, name: str = "") -> Iterator[tuple[str, Result]]:
    """Runs a script's statements over what is in the topics now: each statement and its result.

    Raises InputError for a script that can't be split, VeniceError naming the line of the first statement that fails.
    """
    statements = split(script, name)
    if not statements:
        raise InputError("nothing to run", "give a statement, as -e 'SELECT COUNT(*) FROM bus_locations'")
    with Gateway.of(cluster).session({"execution.runtime-mode": "batch", "pipeline.name": "venice sql"}) as session:
        named = script.casefold()
        # declaring a table costs a round trip; a name that does not occur is not meant
        for table in (t for t in tables(cluster, bounded=True) if t.name.casefold() in named or "show" in named):
            for statement in table.statements:
                try:
                    session.run(statement)
                except VeniceError as error:
                    error.message = f"topic {table.name} as a table: {error.message}"
                    raise
        for statement in statements:
            text = statement.text.rstrip(";\n ")
            try:
                # every table has an end, so every query has; how long it takes, the topics say
                yield text, session.run(text, math.inf)
            except VeniceError as error:
                error.message = f"{f'{name}:' if name else 'line '}{statement.line}: {error.message}"
                raise


def shell(cluster: Any) -> int:
    """Flink's own SQL client on this terminal, every topic declared as a table that is read as it grows; its exit code."""
    from venice.terminal import run_interactive

    gateway = next(i for i in cluster.instances("flink") if i.vars["kind"] == "gateway")
    config = f"{cluster.var(gateway.host, 'venice_config_dir')}/{gateway.name}"
    init = [statement for table in tables(cluster, bounded=False) for statement in table.statements]
    init.append("SET 'sql-client.execution.result-mode' = 'tableau'")
    container = next(c for c in cluster.desired(gateway.host)["containers"] if c["name"] == gateway.container)
    with DockerHost(cluster.hosts[gateway.host]) as host, _on_host(host, ";\n".join(init) + ";\n") as file:
        argv = ["docker", "run", "--rm", "--interactive", "--tty", "--network", container["network"], "--memory", "768m"]
        argv += ["--user", container["user"], "--env", "FLINK_HEAP=256m", "--env", "TERM=xterm"]
        argv += ["--volume", f"{config}:/etc/flink:ro", "--volume", f"{file}:/init.sql:ro", container["image"]]
        argv += ["flink-process", "client", "gateway", "--endpoint", gateway.endpoint("gateway"), "--init", "/init.sql"]
        return run_interactive(host, argv, True)


@contextmanager
def _on_host(host: DockerHost, text: str) -> Iterator[str]:
    """A file with this text on the host, readable by containers, for as long as it is needed."""
    path = f"/tmp/venice-sql-{secrets.token_hex(8)}.sql"  # noqa: S108 (a name nobody can guess)
    code, _, errors = host.run(["sh", "-c", f"umask 022; cat > {path}"], stdin=text)
    if code:
        raise VeniceError(f"{host.name}: {path} could not be written: {errors.strip()}")
    try:
        yield path
    finally:
        host.run(["rm", "-f", path])


def documents(result: Result) -> Iterable[dict[str, Any]]:
    """A result's rows as objects by column."""
    names = [name for name, _ in result.columns]
    return (dict(zip(names, row, strict=True)) for row in result.rows)
