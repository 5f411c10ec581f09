"""`venice data`."""

import sys

import click

from venice import completion
from venice.cli._options import cluster_option, json_option


@click.command(short_help="Send test data to a pipeline, exactly so many records.")
@click.argument("pipeline", shell_complete=completion.named_pipelines)
@cluster_option
@click.option("-n", "--count", type=click.IntRange(min=1), required=True, metavar="N", help="How many records, of all processes together.")
@click.option("--processes", type=click.IntRange(1, 64), default=10, show_default=True, help="How many processes send at the same time.")
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), metavar="R", help="So many per second; without it as fast as possible."
)
@click.option("--format", "kind", type=click.Choice(["avro", "json"]), default="avro", show_default=True, help="Form of the values.")
@json_option
def command(cluster, pipeline: str, count: int, processes: int, rate: float | None, kind: str, as_json: bool) -> None:
    """Send N records that the pipeline's data.py makes, from parallel processes, and say exactly what was acknowledged.

    Event times are the clock's, up to half a second out of order. Beyond the N, a window and two seconds after the last event each
    partition gets one record that counts in no window and closes the last one. JSON goes to a topic of its own, TOPIC_json.
    Exit code 0 only when every record was acknowledged by all in-sync replicas.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from venice import data
    from venice.cli._output import console, grid, print_json
    from venice.kafka import Kafka

    plan = data.plan(cluster, cluster.pipeline_folder(pipeline), count, processes, rate, kind)
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(plan.topic, total=count)
        sent = data.send(Kafka.of(cluster), plan, lambda acknowledged: bar.update(task, completed=acknowledged))
    if as_json:
        print_json(sent.to_dict())
    else:
        rows = sent.to_dict()["sent"]
        table = grid(*sent.counted, "records", "sum", right=("records", "sum"))
        for row in rows:
            table.add_row(*map(str, row["of"].values()), str(row["records"]), f"{row['sum']:,.2f}")
        out = console()
        out.print(table)
        out.print(f"\n{data.summary(sent)}", soft_wrap=True)
    sys.exit(130 if sent.interrupted else 0 if sent.complete else 1)
