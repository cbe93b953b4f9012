"""`longshore plan …`: validation, explanation, diagrams and simulation of plans."""

from __future__ import annotations

import click

from longshore.orchestration import testing
from longshore.orchestration.cli.common import command, current_options, exit_with, print_line, print_lines
from longshore.orchestration.cli.inputs import load_plan, read_params
from longshore.orchestration.cli.names import complete_plan
from longshore.orchestration.errors import PlanError, Problem
from longshore.orchestration.language.quantities import quantity
from longshore.orchestration.plans import explain as explanation
from longshore.orchestration.plans import loading
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.plans.policy import reject_forbidden
from longshore.orchestration.runs.diagram import FORMATS
from longshore.orchestration.runs.report import Report
from longshore.orchestration.runs.styles import style_of
from longshore.orchestration.settings import get_settings


@click.group("plan")
def plan_group() -> None:
    """Validate, explain, draw and simulate plans.

    PLAN is a file (YAML or JSON), or the name of a plan in a folder of LONGSHORE_PLANS or in an installed package.
    These commands start no run, and need neither Redis nor workers.

    """


@command(plan_group, "validate")
@click.argument("plan", shell_complete=complete_plan)
def validate(plan: str) -> None:
    """Validate PLAN and print every problem, with its line.

    Exit code 2 if PLAN is not valid.
    """
    options = current_options()
    try:
        checked = load_plan(plan)
        reject_forbidden(checked, get_settings())
    except PlanError as error:
        if options.json:
            problems = [_problem_data(problem) for problem in error.problems]
            options.show({"valid": False, "code": error.code, "problems": problems})
        else:
            for problem in error.problems:
                print_line(f"error[{error.code}]: {error.source or plan}: {problem}", err=True)
        exit_with(2)
        return
    if options.json:
        options.show({"valid": True, "plan": checked.name, "steps": len(checked.steps), "problems": []})
    else:
        print_line(f"{checked.name}: {quantity(len(checked.steps), 'step')}, no problems")


def _problem_data(problem: Problem) -> dict[str, object]:
    return {"message": problem.message, "step": problem.step, "line": problem.line}


@command(plan_group, "levels")
@click.argument("plan", shell_complete=complete_plan)
def levels(plan: str) -> None:
    """Print the levels of PLAN; the steps of a level run in parallel.

    A level begins after all steps of the level before it have ended.

    """
    compiled = CompiledPlan(load_plan(plan))
    names = [[compiled.steps[i].name for i in members] for members in compiled.levels]
    if current_options().json:
        current_options().show(names)
        return
    for level, members in enumerate(names):
        print_line(f"{level}: {', '.join(members)}")


@command(plan_group, "explain")
@click.argument("plan", shell_complete=complete_plan)
def explain(plan: str) -> None:
    """Explain the order, retries and undo of the steps of PLAN.

    The command also names the steps whose effect has no undo.

    """
    text = explanation.explain(CompiledPlan(load_plan(plan)))
    if current_options().json:
        current_options().show({"explanation": text.splitlines()})
    else:
        print_lines(text)


@command(plan_group, "graph")
@click.argument("plan", shell_complete=complete_plan)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "mermaid", "dot", "svg"]),
    default="text",
    show_default=True,
    help="Format of the diagram.",
)
def graph(plan: str, form: str) -> None:
    """Print PLAN as a diagram."""
    diagram = FORMATS[form](CompiledPlan(load_plan(plan)))
    if current_options().json:
        current_options().show({"format": form, "diagram": diagram})
    else:
        print_lines(diagram)


@command(plan_group, "simulate")
@click.argument("plan", shell_complete=complete_plan)
@click.option("-p", "--param", "pairs", multiple=True, metavar="NAME=VALUE", help="Parameter of the plan; repeatable.")
@click.option("--params", "file", metavar="FILE", help="File with parameters, YAML or JSON; -p overrides them.")
def simulate(plan: str, pairs: tuple[str, ...], file: str | None) -> None:
    """Simulate PLAN in memory, with a failure of each step in turn.

    No operation runs. The first simulated run has no failure. In each further run, another step fails. For each run,
    the command prints the end, the undone steps and the remaining effects. The command needs longshore[testing].

    Exit code: that of the simulated run without a failure, or 3 if this code is 0 and another simulated run ends with
    3.
    """
    checked = load_plan(plan)
    found = list(testing.simulate(checked, read_params(checked, pairs, file)))
    if current_options().json:
        current_options().show([{"fails": each.step, **each.report.model_dump(mode="json")} for each in found])
    else:
        for each in found:
            _print_simulated(each.step, each.report)
    without_failure, *others = found
    exit_with(without_failure.report.exit_code or (3 if any(each.report.exit_code == 3 for each in others) else 0))


def _print_simulated(failed: str | None, report: Report) -> None:
    undone = [step.name for step in report.steps if step.undo and step.undo.status == "undone"]
    title = "no step fails" if failed is None else f"{failed} fails"
    parts = [f"{title}: {style_of(report.state).label}, exit code {report.exit_code}"]
    parts += [f"undone: {', '.join(reversed(undone))}"] if undone else []
    parts += [f"left over: {', '.join(report.left_over)}"] if report.left_over else []
    parts += [f"in doubt: {', '.join(report.in_doubt)}"] if report.in_doubt else []
    for step in report.steps:
        if step.undo and step.undo.status == "undo_failed":
            parts.append(f"the undo of {step.name} fails: {step.undo.error}")
        if step.undo and step.undo.status == "held_back":
            parts.append(f"{step.name} is not undone: {step.undo.error}")
    if failed is None and report.error:
        parts.append(f"{f'step {report.error.step}: ' if report.error.step else ''}{report.error.message}")
    print_line("; ".join(parts))


@command(plan_group, "schema")
def schema() -> None:
    """Print the JSON Schema of plans, for editors."""
    current_options().show(loading.schema())
