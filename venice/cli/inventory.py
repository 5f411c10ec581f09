"""`venice inventory`."""

import click

from venice.cli._options import cluster_option, json_option


@click.group()
def command() -> None:
    """Look at an inventory as Venice understands it."""


@command.command()
@cluster_option
@json_option
def show(cluster, as_json: bool) -> None:
    """Show who runs where, and under which addresses. Asks no host: it is what should be, `venice status` what is."""
    from venice.cli._output import console, grid, print_json
    from venice.overview import overview

    found = overview(cluster)
    if as_json:
        print_json(found.to_dict())
        return
    out = console()
    facts = grid("cluster", found.cluster)
    for label, value in (
        ("inventory", found.inventory),
        ("pipelines", ", ".join(p["name"] for p in found.pipelines)),
        ("brokers", ",".join(found.bootstrap_servers)),
        ("registry", ", ".join(found.registry_urls)),
        ("connect", ", ".join(found.connect_urls)),
    ):
        facts.add_row(label, value or "none")
    hosts = grid("host", "address", "components")
    for host in found.hosts:
        hosts.add_row(host.name, host.address, ", ".join(host.components) or "none")
    instances = grid("component", "instance", "host", "endpoints")
    for component in found.components:
        for n, i in enumerate(component.instances):
            endpoints = ", ".join(f"{name} {address}" for name, address in i.endpoints.items())
            instances.add_row("" if n else component.title, i.name, i.host, endpoints)
    folders = grid("on the hosts", "")
    for label, places in (
        ("configuration", {h.config_dir for h in found.hosts}),
        ("data", {h.data_dir for h in found.hosts}),
    ):
        folders.add_row(label, ", ".join(f"{place}/INSTANCE" for place in sorted(places)))
    for table in (facts, hosts, instances, folders):
        out.print(table)
        out.print()
