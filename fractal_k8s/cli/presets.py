"""`fractal-k8s presets`: the sweeps that come with the program."""

from __future__ import annotations

import click

from fractal_k8s.cli.common import Command, echo_json, json_option


@click.command(cls=Command)
@json_option
def command(as_json: bool) -> None:
    """List the sweeps that come with fractal-k8s."""
    from fractal_k8s.sweep.load import parse_text, preset_names, preset_text, resolve

    rows = []
    for name in preset_names():
        text = preset_text(name)
        sweep = resolve(parse_text(text, source=name), source=name)
        comment = " ".join(
            line.removeprefix("# ")
            for line in text.split("\n\n")[0].splitlines()
            if line[:1] == "#"
        )
        rows.append(
            {
                "preset": name,
                "model": sweep.model,
                "y": sweep.y_knob.name,
                "x": sweep.x_knob.name,
                "resolution": [sweep.rows, sweep.columns],
                "about": comment,
            }
        )
    if as_json:
        echo_json(rows)
        return
    for row in rows:
        size = "{} x {}".format(*row["resolution"])
        click.echo(f"{row['preset']}  {row['y']} x {row['x']}, {size}")
        click.echo(click.wrap_text(str(row["about"]), 96, "    ", "    ") + "\n")
