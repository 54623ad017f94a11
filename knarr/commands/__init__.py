"""One file per family of commands; each registers its own on the `typer.Typer` that it exports."""
