"""Write the help of every command into a Markdown file, below its marker; what stands above it is written by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from registry.cli.main import cli

MARKER = "<!-- Below: the program's own help, written by scripts/docs. -->\n"
WIDTH = 100  # columns, whatever the terminal has


def all_help() -> str:
    """Return the help of the program and of each command, as Markdown."""
    parts = []
    with click.Context(cli, info_name="adapter-registry", terminal_width=WIDTH, max_content_width=WIDTH) as parent:
        parts.append(f"## adapter-registry\n\n```text\n{cli.get_help(parent)}\n```\n")
        for name in cli.list_commands(parent):
            command = cli.get_command(parent, name)
            if command is not None:
                with click.Context(command, parent, name, terminal_width=WIDTH, max_content_width=WIDTH) as context:
                    parts.append(f"## adapter-registry {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def with_help(text: str) -> str:
    """Return a page with the help below its marker, in place of what stood there.

    Raises:
        ValueError: the page has no marker.
    """
    above, marker, _ = text.partition(MARKER)
    if not marker:
        raise ValueError(f"write the commands' help: expected the line {MARKER.strip()}, found none")
    return f"{above}{marker}\n{all_help()}"


def main() -> None:
    """Write the page that the command line names."""
    page = Path(sys.argv[1])
    page.write_text(with_help(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
