"""`fractal-k8s show`: a sweep file to read, copy and change."""

from __future__ import annotations

import json
from typing import Any

import click

from fractal_k8s.cli.common import Command, echo_json, json_option, open_store, store_option
from fractal_k8s.cli.where import Where, cluster_options, stored_at


@click.command(cls=Command)
@click.argument("name", metavar="ID|PRESET")
@store_option
@cluster_options
@json_option
def command(name: str, store_uri: str, where: Where, as_json: bool) -> None:
    """Print a sweep file: of a stored sweep or of a preset.

    With --context, of a sweep in the store that a cluster's sweeps write to.

    \b
        fractal-k8s show tanh > mine.toml
        fractal-k8s launch mine.toml
    """
    from fractal_k8s.sweep.load import parse_text, preset_names, preset_text, resolve

    if name in preset_names():
        text = preset_text(name)
        raw = resolve(parse_text(text, source=name), source=name).to_dict()
    else:
        uri, found = stored_at(where, name, store_uri)
        _, plan = open_store(uri).plan(found)
        raw = plan.sweep.to_dict()
        text = f"# {plan.sweep.id}\n{toml_text(raw)}"
    if as_json:
        echo_json(raw)
    else:
        click.echo(text, nl=False)


def toml_text(content: dict[str, Any], path: str = "") -> str:
    """Plain data as TOML: values first, then tables."""
    lines = [
        f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in content.items()
        if value is not None and not isinstance(value, dict)
    ]
    parts = ["\n".join(lines) + "\n"] if lines else []
    for key, value in content.items():
        if isinstance(value, dict):
            name = f"{path}.{key}" if path else key
            holds_values = any(not isinstance(child, dict) for child in value.values())
            head = f"\n[{name}]\n" if holds_values else ""
            parts.append(head + toml_text(value, name))
    return "".join(parts)
