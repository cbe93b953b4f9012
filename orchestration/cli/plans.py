"""`longshore plan …`: look at a plan without running it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from longshore.orchestration.cli.common import command, current, leave, load_plan, read_params, say, say_lines
from longshore.orchestration.errors import PlanError

if TYPE_CHECKING:
    from longshore.orchestration.runs.report import Report


@click.group("plan")
def plan_group() -> None:
    """Check, explain, rehearse and draw a plan."""


@command(plan_group, "validate")
@click.argument("plan")
def validate(plan: str) -> None:
    """Say whether PLAN can be run, and everything that is wrong with it."""
    from longshore.orchestration.plans.policy import reject_forbidden  # noqa: PLC0415 - see cli.common
    from longshore.orchestration.settings import get_settings  # noqa: PLC0415

    options = current()
    try:
        checked = load_plan(plan)
        reject_forbidden(checked, get_settings())
    except PlanError as error:
        if options.json:
            options.show({"valid": False, "problems": [_as_json(problem) for problem in error.problems]})
        else:
            for problem in error.problems:
                say(f"error: {error.source or plan}: {problem}", err=True)
        leave(2)
        return
    if options.json:
        options.show({"valid": True, "plan": checked.name, "steps": len(checked.steps), "problems": []})
    else:
        say(f"{checked.name}: {len(checked.steps)} steps, no problems")


def _as_json(problem: object) -> dict[str, object]:
    return {name: getattr(problem, name) for name in ("message", "step", "line")}


@command(plan_group, "levels")
@click.argument("plan")
def levels(plan: str) -> None:
    """Print the levels of PLAN: what runs at the same time."""
    from longshore.orchestration.plans.compiled import CompiledPlan  # noqa: PLC0415 - slow to import

    compiled = CompiledPlan(load_plan(plan))
    names = [[compiled.steps[i].name for i in members] for members in compiled.levels]
    if current().json:
        current().show(names)
        return
    for level, members in enumerate(names):
        say(f"{level}: {', '.join(members)}")


@command(plan_group, "explain")
@click.argument("plan")
def explain(plan: str) -> None:
    """Tell what PLAN would do: order, retries, undo, and what would stand."""
    from longshore.orchestration.plans.compiled import CompiledPlan  # noqa: PLC0415 - slow to import
    from longshore.orchestration.plans.explain import explain as told  # noqa: PLC0415

    text = told(CompiledPlan(load_plan(plan)))
    if current().json:
        current().show({"explanation": text.splitlines()})
    else:
        say_lines(text)


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
    from longshore.orchestration.plans.compiled import CompiledPlan  # noqa: PLC0415 - slow to import
    from longshore.orchestration.runs.diagram import FORMATS  # noqa: PLC0415

    say_lines(FORMATS[form](CompiledPlan(load_plan(plan))))


@command(plan_group, "simulate")
@click.argument("plan")
@click.option("-p", "--param", "pairs", multiple=True, metavar="NAME=VALUE", help="A parameter of the plan.")
@click.option("--params", "file", metavar="FILE", help="Parameters from a YAML or JSON file.")
def simulate(plan: str, pairs: tuple[str, ...], file: str | None) -> None:
    """Fail each step of PLAN in turn, in memory, and show how each such run would end.

    Nothing is touched: the steps are pretended. Ends as the run in which all goes well, or with 3 if another would
    leave something standing.
    """
    from importlib import import_module  # noqa: PLC0415 - slow to import

    checked = load_plan(plan)
    simulate_failures = import_module("longshore.orchestration.testing").simulate
    found = list(simulate_failures(checked, read_params(checked, pairs, file)))
    if current().json:
        current().show([{"fails": each.step, **each.report.model_dump(mode="json")} for each in found])
    else:
        for each in found:
            _tell(each.step, each.report)
    good, *others = found
    leave(good.report.exit_code or (3 if any(each.report.exit_code == 3 for each in others) else 0))


def _tell(failed: str | None, report: Report) -> None:
    undone = [step.name for step in report.steps if step.undo and step.undo.status == "undone"]
    what = "all goes well" if failed is None else f"{failed} fails"
    parts = [f"{what}: {report.state}, exit code {report.exit_code}"]
    parts += [f"undone: {', '.join(reversed(undone))}"] if undone else []
    parts += [f"left over: {', '.join(report.left_over)}"] if report.left_over else []
    for step in report.steps:
        if step.undo and step.undo.status == "undo_failed":
            parts.append(f"the undo of {step.name} fails: {step.undo.error}")
    if failed is None and report.error:
        parts.append(f"{f'step {report.error.step}: ' if report.error.step else ''}{report.error.message}")
    say("; ".join(parts))


@command(plan_group, "schema")
def schema() -> None:
    """Print the JSON Schema of plans, for editors."""
    from longshore.orchestration.plans.loading import schema as made  # noqa: PLC0415 - slow to import

    current().show(made())
