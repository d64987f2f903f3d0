"""`lmworks explain positions`: how models are told where a token stands, in pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmworks.core.errors import UserError

if TYPE_CHECKING:
    from lmworks.evaluation.position_pictures import PositionPictures


@click.command()
@click.argument("reference", metavar="[MODEL]", default="")
@click.option("--length", default=256, show_default=True, help="Positions to draw.")
@click.option("--dimensions", type=int, help="Dimensions of a vector, and of a head. [default: 64]")
@click.option("--heads", type=int, help="Heads, for ALiBi's slopes. [default: 8]")
@click.option("--theta", type=float, help="Base of the wave lengths. [default: 10000]")
@click.option("--context", type=int, help="Trained context, for the scalings. [default: 128]")
@click.option("--factor", default=4.0, show_default=True, help="How far scalings stretch it.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write a page (.html)."
)
@click.option("--json", "as_json", is_flag=True, help="Print wave lengths, decay, slopes as JSON.")
def command(
    reference: str, length: int, factor: float, out: Path | None, as_json: bool, **given: object
) -> None:
    """Show how positions are told: sinusoidal, rotary with each scaling, ALiBi, relative.

    With MODEL, sizes are taken from it, and what it has learned is drawn as well.

    \b
    Examples:
      lmworks explain positions --context 2048 --factor 4 --out positions.html
      lmworks explain positions smollm2-135m --factor 2 --out smollm2.html
    """
    import dataclasses

    from lmworks.cli.printing import reference_name
    from lmworks.core.files import write_text
    from lmworks.evaluation import position_pictures, positions_page

    if out and out.suffix.lower() != ".html":
        raise UserError(f"{out} is no .html: choose a name that ends so")
    own: list[position_pictures.Picture] = []
    parameters = position_pictures.Parameters(length=length)
    if reference:
        from lmworks.models.load import load_model

        model = load_model(reference)
        parameters = position_pictures.model_parameters(model, length)
        own = position_pictures.model_pictures(model, length)
    changes = {name: value for name, value in given.items() if value is not None}
    parameters = dataclasses.replace(parameters, factor=factor, **changes)  # type: ignore[arg-type]
    found = position_pictures.position_pictures(parameters)
    if out:
        write_text(out, positions_page.render(found, own, reference_name(reference)))
    if as_json:
        click.echo(json.dumps(position_pictures.plain(found), indent=1))
        return
    _print(found)
    if out:
        click.echo(f"\nwritten: {out}")


def _print(found: PositionPictures) -> None:
    p = found.parameters
    click.echo(f"rotary wave lengths in positions, {p.dimensions} dimensions, theta {p.theta:g}; "
               f"scalings from {p.context} by {p.factor:g}")  # fmt: skip
    click.echo(f"  {'':<14} {'shortest':>10} {'middle':>12} {'longest':>14}  q, k times")
    for waves in found.waves:
        short, long = waves.lengths[0], waves.lengths[-1]
        middle = waves.lengths[len(waves.lengths) // 2]
        click.echo(f"  {waves.name:<14} {short:>10.1f} {middle:>12.1f} {long:>14.1f}  "
                   f"{waves.attention_factor:.4f}")  # fmt: skip
    click.echo("\nALiBi: a weight halves after")
    click.echo("  " + ", ".join(f"{slope.halves_at:.1f}" for slope in found.slopes) + " tokens")
