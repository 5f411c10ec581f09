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
    from venice import completion

    click.echo(completion.script(shell))
