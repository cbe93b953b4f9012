"""`longshore plan …`: look at a plan without running it."""

from __future__ import annotations

import click

from longshore.orchestration.cli.common import command, current, leave, load_plan
from longshore.orchestration.errors import PlanError


@click.group("plan")
def plan_group() -> None:
    """Check, explain and draw a plan."""


@command(plan_group, "validate")
@click.argument("plan")
def validate(plan: str) -> None:
    """Say whether PLAN can be run, and everything that is wrong with it."""
    options = current()
    try:
        checked = load_plan(plan)
    except PlanError as error:
        if options.json:
            options.show({"valid": False, "problems": [_as_json(problem) for problem in error.problems]})
        else:
            for problem in error.problems:
                click.echo(f"error: {error.source or plan}: {problem}", err=True)
        leave(2)
        return
    if options.json:
        options.show({"valid": True, "plan": checked.name, "steps": len(checked.steps), "problems": []})
    else:
        click.echo(f"{checked.name}: {len(checked.steps)} steps, no problems")


def _as_json(problem: object) -> dict[str, object]:
    return {name: getattr(problem, name) for name in ("message", "step", "line")}


@command(plan_group, "levels")
@click.argument("plan")
def levels(plan: str) -> None:
    """Print the levels of PLAN: what runs at the same time."""
    from longshore.orchestration.compiled import CompiledPlan  # noqa: PLC0415 - slow to import

    compiled = CompiledPlan(load_plan(plan))
    names = [[compiled.steps[i].name for i in members] for members in compiled.levels]
    if current().json:
        current().show(names)
        return
    for level, members in enumerate(names):
        click.echo(f"{level}: {', '.join(members)}")


@command(plan_group, "explain")
@click.argument("plan")
def explain(plan: str) -> None:
    """Tell what PLAN would do: order, retries, undo, and what would stand."""
    from longshore.orchestration.compiled import CompiledPlan  # noqa: PLC0415 - slow to import
    from longshore.orchestration.explain import explain as told  # noqa: PLC0415

    text = told(CompiledPlan(load_plan(plan)))
    if current().json:
        current().show({"explanation": text.splitlines()})
    else:
        click.echo(text)


@command(plan_group, "graph")
@click.argument("plan")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "mermaid", "dot", "svg"]),
    default="text",
    show_default=True,
)
def graph(plan: str, form: str) -> None:
    """Draw PLAN."""
    from longshore.orchestration.compiled import CompiledPlan  # noqa: PLC0415 - slow to import
    from longshore.orchestration.graph import FORMATS  # noqa: PLC0415

    click.echo(FORMATS[form](CompiledPlan(load_plan(plan))))


@command(plan_group, "schema")
def schema() -> None:
    """Print the JSON Schema of plans, for editors."""
    from longshore.orchestration.source import schema as made  # noqa: PLC0415 - slow to import

    current().show(made())
