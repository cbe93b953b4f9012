"""The options that the commands for stacks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import click

from longshore.orchestration.cli.inputs import read_duration
from longshore.orchestration.stacks.plan import RolloutOptions, with_defaults

HOST = click.option("--host", "hosts", multiple=True, metavar="HOST", help="Only this host; repeatable.")
REGISTRY = click.option(
    "--registry",
    is_flag=True,
    help="Ask registries for newer images, unless the stored answer is younger than ten minutes. Default: use only the "
    "stored answers.",
)
LABEL = click.option(
    "--label", "labels", multiple=True, metavar="KEY[=VALUE]", help="Only services with this label; repeatable."
)
RETRY = click.option("--retry", is_flag=True, help="Also select services whose new version has failed before.")


def image_option(effect: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("--image", metavar="IMAGE", help=f"{effect}. IMAGE is NAME, NAME:TAG or an id.")


def _time_option(name: str, default: str, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(name, metavar="TIME", default=default, show_default=True, help=text)


def rollout_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--max-parallel", type=click.IntRange(1), help="Maximum number of stacks to restart at a time."),
        click.option(
            "--canary",
            type=click.IntRange(1),
            help="Number of stacks to restart first; if one fails, no other restarts.",
        ),
        click.option(
            "--on-failure",
            type=click.Choice(["keep", "undo"]),
            default="keep",
            show_default=True,
            help="keep: undo only the stacks that fail; undo: undo all stacks if one fails.",
        ),
        _time_option("--healthy-deadline", "60s", "Time for each service to become healthy after its start."),
        _time_option(
            "--min-healthy-time", "5s", "Time that a container without health check must run without a restart."
        ),
        RETRY,
        click.option(
            "--no-way-back",
            type=click.Choice(["refuse", "accept"]),
            default="refuse",
            show_default=True,
            help="Whether to restart a stack although the image of an existing container is not on the host.",
        ),
        click.option(
            "--run-id", metavar="ID", help="Id of the run. An existing run with this id and plan is watched instead."
        ),
        click.option("--detach", is_flag=True, help="Return once the run, if any, has started, and print its id."),
    ):
        function = option(function)
    return function


def rollout_from(options: dict[str, Any]) -> RolloutOptions:
    for name in ("healthy_deadline", "min_healthy_time"):
        options[name] = read_duration(options[name], f"--{name.replace('_', '-')}")
    return with_defaults(cast("RolloutOptions", options))


# --- check ------------------------------------------------------------------------------------------
