"""The guided questions of `venice connectors new`: what a connector is to be, asked on a terminal, one thing at a time.

Options of a plugin are asked as its own config definition has them; Connect's validation tells which are missing or wrong.
"""

from pathlib import Path
from typing import Any

import click
import questionary

from venice import connectors, pipeline, sinks
from venice.connect import Connect, Option, Plugin, Verdict
from venice.errors import InputError
from venice.masking import masked
from venice.terminal import on_terminal

_TABLE, _PLUGIN = "a PostgreSQL table from a topic", "another plugin"
_RECORD_KEY = "the record's own key"
_ENOUGH = "no, that is all"
_IMPORTANCE = {"HIGH": 0, "MEDIUM": 1, "LOW": 2}
# asked otherwise, or Connect's own business
_NOT_ASKED = {"name", "connector.class"}
_TOPICS = {"topics", "topics.regex"}
_SECRETS_FILE = "/etc/kafka/secrets.properties"


def run(cluster: Any, name: str = "") -> connectors.Wanted:
    """Ask for a connector. InputError without a terminal; KeyboardInterrupt when the user stops (ctrl-c)."""
    if not on_terminal():
        raise InputError(
            "nothing says what connector to make, and nobody can be asked: this is no terminal",
            "--topic (a table from a topic), --file (a connector file) or --set connector.class=...; "
            "`venice connectors new --help` has examples",
        )
    connect = Connect.of(cluster)
    if name:
        connectors.refuse_existing(connect, name)
    what = questionary.select("What is to be made?", [_TABLE, _PLUGIN]).unsafe_ask()
    return _table(cluster, connect, name) if what == _TABLE else _plugin(cluster, connect, name)


def summary(wanted: connectors.Wanted) -> None:
    """Show what would be made: the configuration without secrets, and what is to be known of it."""
    click.echo(f"\nconnector {wanted.name}")
    for key, value in wanted.document["config"].items():
        click.echo(f"  {key} = {masked(key, value) if key not in wanted.secret else '********'}")
    for note in wanted.notes:
        click.echo(f"  note: {note}")
    click.echo()


def ask_file(wanted: connectors.Wanted) -> Path | None:
    """Where to save the connector for a pipeline; None for nowhere."""
    if connectors.plain_secrets(wanted.document["config"], wanted.secret):
        click.echo("it holds a password in plain text, so it can't be saved as a pipeline's file")
        return None
    if not questionary.confirm("Save it as a file for a pipeline?", default=False).unsafe_ask():
        return None
    free = _checked(lambda text: None if not Path(text).exists() else "there is such a file")
    return Path(questionary.text("File:", default=f"{wanted.name}.json", validate=free).unsafe_ask())


# ---- a table ---------------------------------------------------------------------------------------------------------


def _table(cluster: Any, connect: Connect, name: str) -> connectors.Wanted:
    while True:
        topic = _topic(cluster)
        try:
            values = connectors.topic_values(cluster, topic)
            break
        except InputError as error:  # its values can't become rows: another topic may do
            click.secho(str(error), fg="red")
    _describe(topic, values)
    while True:
        table = questionary.text(
            "Table:", default=sinks.table_name(topic), validate=_checked(lambda text: sinks.check_name("table", text) and None)
        ).unsafe_ask()
        mode = questionary.select(
            "Which rows?",
            [
                questionary.Choice("the newest record of each key (upsert)", "upsert"),
                questionary.Choice("every record (insert)", "insert"),
            ],
        ).unsafe_ask()
        key, record_key = _key(topic, values) if mode == "upsert" else ((), "")
        name = name or _name(connect, table)
        try:
            return connectors.for_table(cluster, topic, name, table, mode, key, record_key)
        except InputError as error:  # the table exists and does not fit: another may do
            click.secho(str(error), fg="red")


def _topic(cluster: Any) -> str:
    names = connectors.topics(cluster)
    if not names:
        raise InputError("there is no topic yet", "`venice topics create NAME` makes one")
    return questionary.select("Topic (type to search):", names, use_search_filter=True, use_jk_keys=False).unsafe_ask()


def _describe(topic: str, values: sinks.Values | None) -> None:
    if values is None:
        click.echo(f"  the registry has no subject {topic}-value: the fields of its values are not known")
        return
    click.echo(f"  {values.subject}, version {values.version}:")
    width = max((len(field.name) for field in values.fields), default=0)
    for field in values.fields:
        click.echo(f"    {field.name:{width}}  {field.type}{', may be null' if field.nullable else ''}")
    for left, why in values.left_out.items():
        click.echo(f"    {left}: left out, a table can't hold {why}")


def _key(topic: str, values: sinks.Values | None) -> tuple[tuple[str, ...], str]:
    """Key columns of the value, or a column for the record's own key."""
    fit = [field.name for field in values.fields if field.key] if values else []
    if values is None:
        text = questionary.text(f"Key: a field of the value (empty: {_RECORD_KEY}):").unsafe_ask().strip()
        chosen = [part.strip() for part in text.split(",") if part.strip()]
    else:
        chosen = questionary.checkbox(
            f"Key: one row for each value of (space selects; none: {_RECORD_KEY})", [*fit, questionary.Choice(_RECORD_KEY, "")]
        ).unsafe_ask()
        chosen = [] if "" in chosen else chosen
    if chosen:
        return tuple(chosen), ""
    taken = {field.name.lower() for field in values.fields} if values else set()

    def wrong(text: str) -> str | None:
        sinks.check_name("column", text)
        return "the value has a field of that name" if text in taken else None

    return (), questionary.text("Column for the record's key:", default="record_key", validate=_checked(wrong)).unsafe_ask()


def _name(connect: Connect, default: str) -> str:
    there = connect.connectors()

    def wrong(text: str) -> str | None:
        return "give it a name" if not text.strip() else "there is a connector of that name" if text in there else None

    free = next(name for n in range(1, len(there) + 3) if (name := default if n == 1 else f"{default}_{n}") not in there)
    return questionary.text("Name of the connector:", default=free, validate=_checked(wrong)).unsafe_ask()


# ---- any plugin ------------------------------------------------------------------------------------------------------


def _plugin(cluster: Any, connect: Connect, name: str) -> connectors.Wanted:
    choices = [questionary.Choice(f"{plugin.short} ({plugin.type}, {plugin.version})", plugin) for plugin in connect.plugins()]
    plugin: Plugin = questionary.select("Plugin:", choices).unsafe_ask()
    name = name or _name(connect, "")
    # a source's "topics" are options like others (MirrorMaker has some)
    not_asked = _NOT_ASKED | (_TOPICS if plugin.type == "sink" else set())
    options = [option for option in connect.options(plugin.name) if option.name not in not_asked]
    config: dict[str, str] = {"connector.class": plugin.name}
    if plugin.type == "sink":
        names = connectors.topics(cluster)
        chosen = questionary.checkbox("Topics (space selects):", names, validate=lambda found: bool(found) or "at least one").unsafe_ask()
        config["topics"] = ",".join(chosen)
    wanted = connectors.Wanted({"name": name, "config": config}, secret={option.name for option in options if option.secret})
    for option in options:
        if option.required:
            _ask_option(cluster, wanted, Verdict(option, None))
    _correct(cluster, connect, plugin, wanted)
    while option := _another(options, wanted.document["config"]):
        verdicts = {verdict.option.name: verdict for verdict in _validated(cluster, connect, plugin, wanted)}
        verdict = verdicts.get(option.name)
        _ask_option(cluster, wanted, Verdict(option, None, (), verdict.recommended if verdict else ()))
        _correct(cluster, connect, plugin, wanted)
    return wanted


def _validated(cluster: Any, connect: Connect, plugin: Plugin, wanted: connectors.Wanted) -> list[Verdict]:
    return connect.validate(plugin.name, connectors.resolve(cluster, wanted) | {"name": wanted.name})


def _correct(cluster: Any, connect: Connect, plugin: Plugin, wanted: connectors.Wanted) -> None:
    """Ask for what Connect finds missing or wrong, until it finds nothing."""
    while True:
        verdicts = {verdict.option.name: verdict for verdict in _validated(cluster, connect, plugin, wanted)}
        wrong = connectors.problems(list(verdicts.values()))
        if not wrong:
            return
        for name, messages in wrong.items():
            for message in messages:
                click.secho(f"{name}: {message}", fg="red")
            _ask_option(cluster, wanted, verdicts[name])


def _another(options: list[Option], config: dict[str, str]) -> Option | None:
    """A further option that the user wants to set; None when that is all."""
    rest = sorted((o for o in options if o.name not in config), key=lambda o: (_IMPORTANCE.get(o.importance, 3), o.group, o.name))
    choices = [questionary.Choice(_ENOUGH, "")]
    for option in rest:
        default = f" = {option.default}" if option.default else ""
        choices.append(questionary.Choice(f"{option.name}{default}  ({option.importance.lower()}, {option.group or 'own'})", option.name))
    chosen = questionary.select("More options? (type to search)", choices, use_search_filter=True, use_jk_keys=False).unsafe_ask()
    return next((option for option in rest if option.name == chosen), None)


def _ask_option(cluster: Any, wanted: connectors.Wanted, verdict: Verdict) -> None:
    """Ask for one option's value and put it into the configuration; an empty answer leaves it at its default."""
    option, config = verdict.option, wanted.document["config"]
    if option.documentation:
        click.echo(f"  {option.name}: {' '.join(option.documentation.split())}")
    label = f"{option.name} ({option.type.lower()}{', required' if option.required else ''}):"
    default = config.get(option.name) or option.default or ""
    if option.secret:
        click.echo(
            f"  better not the password itself: ${{file:{_SECRETS_FILE}:KEY}} names a line of a file that only the workers read; "
            "what is typed in plain is kept in Kafka and shown by Connect"
        )
        value = questionary.password(label).unsafe_ask()
    elif option.type == "BOOLEAN":
        value = questionary.select(label, ["true", "false"], default=default if default in ("true", "false") else None).unsafe_ask()
    elif verdict.recommended:
        values = list(dict.fromkeys(verdict.recommended))
        value = questionary.select(label, values, default=default if default in values else None).unsafe_ask()
    else:
        value = questionary.text(label, default=default, validate=_checked(lambda text: _unknown_variable(cluster, text))).unsafe_ask()
    if value and value != option.default:
        config[option.name] = value
    else:
        config.pop(option.name, None)


def _unknown_variable(cluster: Any, text: str) -> str | None:
    pipeline.replaced(text, cluster.pipeline_vars, Path("value"))
    return None


def _checked(wrong: Any) -> Any:
    """A questionary validator: `wrong(text)` returns what is wrong, or raises InputError."""

    def check(text: str) -> bool | str:
        try:
            return wrong(text) or True
        except InputError as error:
            return f"{error.message}; {error.remedy}" if error.remedy else error.message

    return check
