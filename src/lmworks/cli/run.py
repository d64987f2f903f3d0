"""`lmworks run RECIPE`: several stages from one file."""

from __future__ import annotations

import click


@click.command()
@click.argument("recipe")
@click.option("--out", help="Folder for the artifacts, instead of the recipe's own.")
@click.option("--set", "sets", multiple=True, metavar="STEP.KEY=VALUE", help="Change a setting.")
@click.option("--dry-run", is_flag=True, help="Print every step's resolved config and stop.")
def command(recipe: str, out: str | None, sets: tuple[str, ...], dry_run: bool) -> None:
    """Run the steps of RECIPE, a YAML file or the name of one that comes with lmworks.

    What is finished is kept; a run that was stopped goes on where it was.

    \b
    Examples:
      lmworks run small --dry-run
      lmworks run small --set corpus.folder=~/notes --out runs/notes
      lmworks run my-recipe.yaml --set base.depth=6
    """
    from lmworks.cli.printing import print_artifact, print_config
    from lmworks.ops.recipes import load_recipe, run_recipe

    loaded = load_recipe(recipe, sets=sets, out=out)
    if dry_run:
        for step in loaded.steps:
            print_config(f"{step.name} ({step.stage})", step.config, str(loaded.folder_of(step)))
        return
    for artifact in run_recipe(loaded):
        print_artifact(artifact)
