"""Where a pipeline's SQL runs. An engine is one entry of ENGINES: which component it is, what differs, how a file is applied."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from venice.errors import InputError, UnreachableError, VeniceError
from venice.pipeline.connectors import replaced
from venice.pipeline.model import Pipeline
from venice.pipeline.on_flink import OnFlink
from venice.pipeline.on_ksqldb import OnKsqlDb
from venice.specs import Difference


@dataclass(frozen=True)
class Statements:
    """One SQL file of a pipeline, ready to run: `text` has its variables replaced."""

    pipeline: str
    name: str
    file: Path
    text: str
    engine: str

    @property
    def sha256(self) -> str:
        """What tells this text from another."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class Engine(Protocol):
    """What runs statements. `component` is the group in the inventory; `stream`: a stream processor, the default for SQL."""

    component: str
    stream: bool

    def differences(self, cluster: Any, files: Sequence[Statements]) -> dict[tuple[str, str], tuple[Difference, ...]]:
        """What is not as the files say, by pipeline and name; only files that are to be applied. All are asked for at once."""

    def apply(self, cluster: Any, file: Statements) -> Sequence[str] | None:
        """Run a file: remarks for a person, if any. VeniceError naming the file's line when a statement fails."""

    def made(self, cluster: Any, pipeline: str, name: str) -> Sequence[str]:
        """What `forget` removes of what this file did."""

    def forget(self, cluster: Any, pipeline: str, name: str) -> None:
        """Remember no longer that this file was applied, and remove what `made` names. Else what it did stays."""


def made(cluster: Any, pipeline: str, name: str, but: str = "") -> list[str]:
    """What goes when a file is forgotten, on all engines or all but one; nothing when what it did stays."""
    return [thing for engine in _engines(cluster, but) for thing in engine.made(cluster, pipeline, name)]


def forget(cluster: Any, pipeline: str, name: str, but: str = "") -> None:
    """Forget a file wherever it ran, or everywhere but on the engine where it runs now."""
    for engine in _engines(cluster, but):
        engine.forget(cluster, pipeline, name)


def _engines(cluster: Any, but: str) -> list[Engine]:
    return [engine for name, engine in ENGINES.items() if name != but and cluster.groups.get(engine.component)]


def statements(cluster: Any, pipeline: Pipeline, variables: Mapping[str, Any]) -> list[Statements]:
    """The pipeline's SQL files with their engines. InputError naming file and line when none can run one of them."""
    return [
        Statements(pipeline.name, sql.name, sql.file, replaced(sql.text, variables, sql.file), _engine(cluster, pipeline, sql.name, sql.on))
        for sql in pipeline.sql
    ]


def _engine(cluster: Any, pipeline: Pipeline, name: str, on: str | None) -> str:
    place = pipeline.place("sql", name)
    streams = [engine for engine, found in ENGINES.items() if found.stream]
    if on is None:
        present = [engine for engine in streams if cluster.groups.get(ENGINES[engine].component)]
        if not present:
            groups = f"add a host to the group {' or '.join(streams)}, or " if streams else ""
            raise InputError(f"{place}: {name}: the inventory has no stream processor to run it", f"{groups}write on: postgres")
        if len(present) > 1:
            # a component that is added must not take over what another one runs
            raise InputError(f"{place}: {name}: the inventory has {' and '.join(present)}", "say in `on` which of them is to run it")
        return present[0]
    if on not in ENGINES:
        raise InputError(f"{place}: {name}: this Venice can't run SQL on {on}", f"it can on {', '.join(ENGINES)}")
    if not cluster.groups.get(ENGINES[on].component):
        raise InputError(
            f"{place}: {name}: nothing runs {on}: its group in {cluster.inventory_dir} has no hosts",
            f"add a host to the group {ENGINES[on].component}, then `venice deploy`",
        )
    return on


# ---- PostgreSQL -----------------------------------------------------------------------------------------------------

# A schema of the superuser's, not called as the pipelines' role: a schema of a role's own name is where its tables would go.
_SETUP = """
CREATE SCHEMA IF NOT EXISTS venice_pipelines;
CREATE TABLE IF NOT EXISTS venice_pipelines.sql (
  pipeline text NOT NULL, file text NOT NULL, sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (pipeline, file)
);
"""
# psql's own command, so that the table is not asked for where it is not yet
_APPLIED = r"""
SELECT to_regclass('venice_pipelines.sql') IS NOT NULL AS known \gset
\if :known
SELECT pipeline, file, sha256 FROM venice_pipelines.sql;
\endif
"""
_FORGET = r"""
SELECT to_regclass('venice_pipelines.sql') IS NOT NULL AS known \gset
\if :known
DELETE FROM venice_pipelines.sql WHERE pipeline = :'pipeline' AND file = :'file';
\endif
"""
_RUN_SECONDS = 300


class OnPostgres:
    """Statements on the sink database: each file one transaction as the role that owns it, remembered in the database itself."""

    component = "postgres"
    stream = False

    def differences(self, cluster: Any, files: Sequence[Statements]) -> dict[tuple[str, str], tuple[Difference, ...]]:
        """Files that are new or changed since they were applied to this database."""
        from venice.postgres import Postgres

        postgres = Postgres.of(cluster)
        with postgres.host:
            applied = {(pipeline, file): sha256 for pipeline, file, sha256 in postgres.query(_APPLIED)}
        found = {}
        for file in files:
            now = applied.get((file.pipeline, file.name))
            if now != file.sha256:
                found[file.pipeline, file.name] = (Difference("text", now and now[:12], file.sha256[:12]),)
        return found

    def apply(self, cluster: Any, file: Statements) -> None:
        """Run the file and remember it, both or neither."""
        from venice.postgres import Postgres

        postgres = Postgres.of(cluster)
        role = cluster.pipeline_vars["postgres_user"].replace('"', '""')
        values = ", ".join("'" + value.replace("'", "''") + "'" for value in (file.pipeline, file.name, file.sha256))
        remember = (
            f"RESET ROLE; {_SETUP} INSERT INTO venice_pipelines.sql (pipeline, file, sha256) VALUES ({values}) "  # noqa: S608 (quoted above)
            "ON CONFLICT (pipeline, file) DO UPDATE SET sha256 = EXCLUDED.sha256, applied_at = now()"
        )
        argv = ["env", "PGOPTIONS=-c client_min_messages=warning", "psql", "-X", "-q", "-U", "postgres", "-d", postgres.database]
        argv += ["-v", "ON_ERROR_STOP=1", "--single-transaction", "-c", f'SET ROLE "{role}"', "-f", "-", "-c", remember]
        with postgres.host as host:
            code, _, errors = host.exec(postgres.container, argv, stdin=file.text, timeout=_RUN_SECONDS)
        if code == 2:
            raise UnreachableError(f"postgres on {host.name}: {errors.strip()}", "`venice logs postgres` shows why")
        if code:
            raise VeniceError(_explained(file, errors), "correct the statement; nothing of this file was kept")

    def made(self, cluster: Any, pipeline: str, name: str) -> Sequence[str]:
        """Nothing: no SQL is undone."""
        return ()

    def forget(self, cluster: Any, pipeline: str, name: str) -> None:
        """Remove its row, where there is one."""
        from venice.postgres import Postgres

        postgres = Postgres.of(cluster)
        with postgres.host:
            postgres.query(_FORGET, {"pipeline": pipeline, "file": name})


def _explained(file: Statements, errors: str) -> str:
    """psql's complaint with the file's line: `sql/tables.sql:7: ERROR: ...`.

    psql counts to the statement's end; where the server quotes the line that it means, that one is looked for above it.
    """
    match = re.search(r"psql:<stdin>:(\d+): (.*)", errors)
    if not match:
        return f"{file.file}: {errors.strip()}"
    line, said = int(match[1]), match[2]
    after = errors[match.end() :]
    lines = file.text.splitlines()
    if quoted := re.match(r"\nLINE \d+: (.*)", after):
        part = quoted[1].removeprefix("...").removesuffix("...").strip()
        line = next((n for n in range(min(line, len(lines)), 0, -1) if part in lines[n - 1]), line)
    more = re.findall(r"^(?:DETAIL|HINT):.*", after, re.MULTILINE)
    return "\n  ".join([f"{file.file}:{line}: {re.sub(' +', ' ', said)}", *more])


ENGINES: dict[str, Engine] = {"postgres": OnPostgres(), "flink": OnFlink(), "ksqldb": OnKsqlDb()}
