"""Calling what the user names as ``package.module:callable``."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from hwprune.errors import HwpruneError, WorkloadError

# A script that calls sys.exit() when imported or called must not end the run without a word.
_USER_ERRORS = (Exception, SystemExit)


def import_callable(spec: str, *, kind: str, known: Sequence[str]) -> Callable[..., Any]:
    """Imports what ``package.module:callable`` names; the current folder is searched first.

    Args:
        spec: What the user typed.
        kind: What it should be, for messages: ``model`` or ``data set``.
        known: Built-in names, for messages.

    Raises:
        WorkloadError: If there is no such thing, importing it fails, or it is not callable.
    """
    module_name, _, attribute = spec.partition(":")
    close = difflib.get_close_matches(module_name.lower(), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else None
    expected = f"one of {', '.join(known)}, or package.module:callable"
    if not module_name or not attribute:
        raise WorkloadError(f"unknown {kind} {spec!r}", expected=expected, hint=hint)
    if "" not in sys.path:
        # for good, not only for this import: the user's functions may import their neighbours later
        sys.path.insert(0, "")
    importlib.invalidate_caches()
    try:
        found = attrgetter(attribute)(importlib.import_module(module_name))
    except _USER_ERRORS as error:
        raise WorkloadError(
            f"the {kind} cannot be imported", where=spec, expected=expected, got=_told(error), hint=hint
        ) from error
    if not callable(found):
        raise WorkloadError(
            f"the {kind} is not callable", where=spec, expected="a callable", got=type(found).__name__
        )
    factory: Callable[..., Any] = found
    return factory


def call(factory: Callable[..., Any], offered: Mapping[str, object], spec: str) -> Any:
    """Calls the user's code with those of the offered keywords that it takes.

    Args:
        factory: The user's callable.
        offered: Keywords to values.
        spec: What the user typed, for messages.

    Raises:
        WorkloadError: If it raises anything; from that.
    """
    try:
        parameters = inspect.signature(factory).parameters.values()
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        taken = {
            parameter.name
            for parameter in parameters
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        }
        return factory(**{name: value for name, value in offered.items() if takes_all or name in taken})
    except HwpruneError:
        raise
    except _USER_ERRORS as error:
        keywords = f"takes only {', '.join(offered)}" if offered else "needs no argument"
        raise WorkloadError(
            "the callable failed", where=spec, expected=f"a callable that {keywords}", got=_told(error)
        ) from error


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
