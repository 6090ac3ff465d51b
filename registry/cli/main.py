"""The command line: parse, call, print. Data goes to stdout, progress and notes to stderr.

Commands are in the ``cli_*`` files; nothing here or there imports torch, transformers or pandas before a command
runs, so ``--help`` answers at once. Errors of ours end as one line and an exit code; any other error is a bug.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from registry.cli.bench import bench, demo
from registry.cli.compare import compare, report
from registry.cli.hub import Place, pull, push, sync
from registry.cli.lists import add_completion, doctor, list_command, list_methods, list_recipes, list_tasks
from registry.cli.options import Settings
from registry.cli.predict import evaluate, predict
from registry.cli.serve import serve
from registry.cli.store import (
    alias,
    export_command,
    gc,
    import_command,
    init,
    merge,
    remove,
    show,
    verify,
)
from registry.cli.train import train
from registry.errors import RegistryError, closest
from registry.validation import printable
from registry.version import __version__

# What torch's libraries read when they are imported, unless the caller has set it. oneDNN keeps what it compiled for a
# shape, 1,024 of them by default; packed batches hardly ever have a shape again, so most are kept for nothing. GNU's
# OpenMP lets a thread that waits for another spin 300,000 times before it sleeps: where a core is busy otherwise, that
# is most of a training's time. 10,000 bridge the gaps of an idle machine, which no spinning at all would not.
_BEFORE_TORCH = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
    "LRU_CACHE_CAPACITY": "128",
    "GOMP_SPINCOUNT": "10000",
}


class Commands(click.Group):
    """A group that lists commands in the order a newcomer meets them and suggests the closest one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order they were added."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that ``args`` begin with, or say which one is meant."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in self.commands:
            hint = closest(name, self.commands) or f"expected one of {', '.join(self.commands)}"
            raise click.UsageError(f"no command '{name}'; {hint}", ctx)
        found = super().resolve_command(ctx, args)
        if found[1] is not None:
            _refuse_repeated(found[1], ctx, found[2])
        return found

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a reader that has gone away (``| head``) is a good end, where click would exit with 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as err:
            raise click.exceptions.Exit(0) from err


def _refuse_repeated(command: click.Command, ctx: click.Context, args: list[str]) -> None:
    """Refuse an option of one value that is given twice, of which only the last would count.

    Raises:
        UsageError: there is one.
    """
    own = click.Context(command, info_name=command.name, parent=ctx)
    try:
        given = command.make_parser(own).parse_args(list(args))[2]
    except click.UsageError:
        return  # told when the command itself parses
    for parameter in given:
        several = isinstance(parameter, click.Option) and (parameter.multiple or parameter.is_flag or parameter.count)
        if isinstance(parameter, click.Option) and not several and given.count(parameter) > 1:
            hint = "; --label-cols a,b,… takes several" if parameter.name == "label_col" else ""
            found = f"found it {given.count(parameter)} times{hint}"
            raise click.UsageError(f"expected {parameter.opts[0]} once, {found}", own)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--store",
    type=Place(),
    default="adapters_store",
    envvar="ADAPTER_REGISTRY_STORE",
    show_default=True,
    show_envvar=True,
    help="Folder of stored adapter sets, or an address on object storage: s3://…, gs://…, az://…",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False),
    envvar="ADAPTER_REGISTRY_CACHE",
    show_envvar=True,
    help="Folder of what was read from object storage; of the user's own by default.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
@click.option("--offline", is_flag=True, help="Never ask the network; HF_HUB_OFFLINE=1 means the same.")
@click.version_option(__version__, prog_name="adapter-registry")
@click.pass_context
def cli(ctx: click.Context, store: Path | str, cache: str | None, device: str, dtype: str, offline: bool) -> None:
    """One frozen BERT in memory, many small adapter sets beside it: train, store, switch and compare them."""
    ctx.obj = Settings(store=store, device=device, dtype=dtype, offline=offline, cache=cache)
    if cache is not None:
        os.environ["ADAPTER_REGISTRY_CACHE"] = cache  # where stores are opened without these settings


_COMMANDS = (
    *(demo, init, train, bench, report),
    *(list_command, show, predict, serve, evaluate, compare, verify, alias, remove),
    *(export_command, import_command, push, pull, sync, merge, gc),
    *(list_tasks, list_recipes, list_methods, doctor),
)
for _command in _COMMANDS:
    add_completion(_command)
    cli.add_command(_command)


def _show(err: click.ClickException) -> None:
    """Tell in one line what was wrong with the arguments; where there were none, the help is the answer."""
    message = err.format_message().rstrip(".")
    if "\n" in message:
        err.show()
        return
    if isinstance(err, click.NoSuchOption) and err.ctx is not None and err.ctx.info_name == "predict":
        message += "; a text that begins with a dash stands after --"
    path = err.ctx.command_path if isinstance(err, click.UsageError) and err.ctx else "adapter-registry"
    click.echo(f"adapter-registry: {message}; see '{path} --help'", err=True)


_NO_OUTPUT = (errno.ENOSPC, errno.EBADF, errno.EIO)


class _Stderr:
    """Standard error that may be full or closed: a note that cannot be written ends no training."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError, AttributeError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line and exit with the code that tells what happened."""
    if not isinstance(sys.stderr, _Stderr):
        sys.stderr = _Stderr(sys.stderr)
    for name, value in _BEFORE_TORCH.items():
        os.environ.setdefault(name, value)
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        code = cli.main(args=arguments, prog_name="adapter-registry", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as err:
        code = err.exit_code
    except click.ClickException as err:
        _show(err)
        code = err.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; what was finished is kept", err=True)
        code = 130
    except RegistryError as err:
        click.echo(f"adapter-registry: {printable(err)}", err=True)
        code = err.exit_code
    except OSError as err:
        if isinstance(err, BrokenPipeError):
            code = 0
        elif err.filename is None and err.errno in _NO_OUTPUT:
            click.echo(f"adapter-registry: cannot write to standard output: {err.strerror}", err=True)
            code = 1
        else:
            raise
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would try again when it ends
    sys.exit(code if isinstance(code, int) else 0)
