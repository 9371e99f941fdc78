"""Options from a YAML file: whatever a command takes, said once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import yaml

from hwprune.errors import InputError


def config_option(command: Any) -> Any:
    """The option that reads the others from a file; what is on the command line wins."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_take,
        help="YAML file with values for these options by their names; lists where one may be repeated. "
        "What is on the command line wins.",
    )(command)


def _take(context: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        context.default_map = read_config(path, context.command.params)
    except InputError as error:
        raise click.BadParameter(str(error), ctx=context, param_hint="--config") from error


def read_config(path: Path, parameters: list[click.Parameter]) -> dict[str, Any]:
    """The values of a file by the names of the parameters that take them.

    Args:
        path: A YAML mapping of option names, without dashes in front, to values.
        parameters: Of the command.

    Raises:
        InputError: If the file cannot be read, or holds something that is no option or of another form.
    """
    known = {
        parameter.opts[0].removeprefix("--"): parameter
        for parameter in parameters
        if isinstance(parameter, click.Option) and parameter.expose_value
    }
    content = _read(path)
    unknown = sorted(str(key) for key in content if key not in known)
    if unknown:
        raise InputError(
            "no such option",
            where=path,
            expected=f"some of {', '.join(sorted(known))}",
            got=", ".join(unknown),
        )
    return {str(known[key].name): _fitting(path, key, known[key], value) for key, value in content.items()}


def _fitting(path: Path, key: str, option: click.Option, value: Any) -> Any:
    """The value as the option takes it: a list where it may be repeated, else one scalar.

    ``true`` is an option that needs no value on the command line either, ``false`` one that is left out.
    """
    if isinstance(value, bool) and not option.is_flag and isinstance(option.flag_value, str):
        return option.flag_value if value else None
    values = value if isinstance(value, list) else [value]
    if not all(_is_scalar(item, option) for item in values) or (
        isinstance(value, list) and not option.multiple
    ):
        expected = "one value, or a list of them" if option.multiple else "one value"
        raise InputError(
            "the value does not fit the option", where=f"{path}: {key}", expected=expected, got=value
        )
    return values if option.multiple else value


def _is_scalar(item: object, option: click.Option) -> bool:
    """Whether it is something that can stand on a command line; yes and no are for flags."""
    if isinstance(item, bool):
        return option.is_flag
    return isinstance(item, (str, int, float)) and "\0" not in str(item)


def _read(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("the file cannot be read", where=path, got=error.strerror) from error
    except (yaml.YAMLError, ValueError) as error:  # of a day that there is not, say
        raise InputError("the file is not YAML", where=path, got=" ".join(str(error).split())) from error
    if not isinstance(content, dict):
        raise InputError(
            "the file holds no options",
            where=path,
            expected="a mapping of option names to values",
            got=content,
        )
    return content
