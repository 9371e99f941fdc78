"""A profile as the text of its file."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hwprune.device.profile import DeviceProfile


def to_toml(profile: DeviceProfile) -> str:
    """A profile as the text of ``profile.toml``."""
    record = profile.model_dump(mode="json", by_alias=True, exclude_none=True)
    lines = [f"schema = {record.pop('schema')}", f"name = {json.dumps(record.pop('name'))}"]
    for section, content in record.items():
        tables = content if isinstance(content, list) else [content]
        for table in tables:
            lines.append("")
            lines.append(f"[[{section}]]" if isinstance(content, list) else f"[{section}]")
            lines += [f"{key} = {_toml_value(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _toml_value(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return json.dumps(value)
