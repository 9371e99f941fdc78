"""What the commands share: how errors are told, and options that several of them take."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TextIO

import click

from hwprune.errors import HwpruneError
from hwprune.interruption import tell_interruption
from hwprune.processes import TOLD_ELSEWHERE

Arguments = ParamSpec("Arguments")
#: Where the answer of the command goes that runs; ``None`` for stdout as it is.
_STDOUT: ContextVar[TextIO | None] = ContextVar("stdout", default=None)


def told(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Tells every error a user can cause in one message on stderr and exits with 1, or 130 if interrupted."""

    @wraps(command)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        token = _STDOUT.set(sys.stdout)
        try:
            # What the user's own code prints must not stand beside the object on stdout.
            with redirect_stdout(sys.stderr) if kwargs.get("as_json") else nullcontext():
                command(*args, **kwargs)
        except (HwpruneError, OSError) as error:
            if TOLD_ELSEWHERE not in getattr(error, "__notes__", ()):
                click.echo(f"Error: {_in_words(error)}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:  # of a command that keeps nothing to go on from
            tell_interruption("Start again", sys.argv[1:])
        finally:
            _STDOUT.reset(token)

    return run


def answer(record: object) -> None:
    """Prints what a command was asked for as one JSON object; nothing else stands on stdout then."""
    click.echo(json.dumps(record, indent=2), file=_STDOUT.get())


def _in_words(error: HwpruneError | OSError) -> str:
    if isinstance(error, HwpruneError):
        return str(error)
    return f"{error.strerror or error} ({error.filename or 'file system'})"  # a full disk, a vanished folder


def profiles_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option that names a folder of profiles."""
    return click.option(
        "--profiles", type=click.Path(path_type=Path), help="Look for profiles in this folder first."
    )(command)


@contextmanager
def telling_how_to_go_on(*, without: str, with_: Sequence[str] = ()) -> Iterator[None]:
    """Ends an interrupted command with the command that goes on with it.

    Args:
        without: An option that the further command must not have.
        with_: Options that it must have.
    """
    try:
        yield
    except KeyboardInterrupt:
        again = [argument for argument in sys.argv[1:] if argument != without]
        tell_interruption("Go on", [*again, *with_])


#: Of every seed: what both generators, torch's and numpy's, take.
SEED = click.IntRange(0, 2**63 - 1)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
