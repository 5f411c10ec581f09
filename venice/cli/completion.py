"""`venice completion`."""

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that completes commands, options and names in your shell.

    \b
    bash   echo 'eval "$(venice completion bash)"' >> ~/.bashrc
    zsh    echo 'eval "$(venice completion zsh)"' >> ~/.zshrc
    fish   venice completion fish > ~/.config/fish/completions/venice.fish

    It completes the commands' short forms' options, too, and inventories, components, pipelines and hosts by the files that are
    here; it never asks the network.
    """
    from click.shell_completion import get_completion_class

    from venice.cli import cli

    click.echo(get_completion_class(shell)(cli, {}, "venice", "_VENICE_COMPLETE").source())
