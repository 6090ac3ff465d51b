"""Write the help of every command into a Markdown file, below its marker; what stands above it is written by hand."""

from __future__ import annotations

import sys
from pathlib import Path

from registry.cli.main import cli

MARKER = "<!-- Below: the program's own help, written by scripts/docs. -->\n"
WIDTH = 100  # columns, whatever the terminal has


def all_help() -> str:
    """Return the help of the program and of each command, as Markdown."""
    # Made as the program makes them: a context of one's own would miss the settings, such as -h beside --help.
    width = {"terminal_width": WIDTH, "max_content_width": WIDTH, "resilient_parsing": True}
    with cli.make_context("adapter-registry", [], **width) as parent:
        parts = [f"## adapter-registry\n\n```text\n{cli.get_help(parent)}\n```\n"]
        for name in cli.list_commands(parent):
            context = cli.commands[name].make_context(name, [], parent=parent, **width)
            parts.append(f"## adapter-registry {name}\n\n```text\n{cli.commands[name].get_help(context)}\n```\n")
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
