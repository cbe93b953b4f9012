"""Argument lists of Compose."""

from __future__ import annotations

import shlex

import pytest

from longshore.tasks.operations.compose import command_lines
from longshore.tasks.operations.compose.cli import Source

FILES = Source("shop", "/srv/shop", ("/srv/shop/a.yml", "/srv/shop/b.yml"), ("/srv/shop/.env",), ("debug",))


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (Source("shop").options(), "--project-name shop"),
        (FILES.options(), "--project-name shop --project-directory /srv/shop --file /srv/shop/a.yml"
                          " --file /srv/shop/b.yml --env-file /srv/shop/.env --profile debug"),
        (command_lines.CONFIG, "config --format json"),
        (command_lines.HASHES, "config --hash '*'"),
        (command_lines.SERVICES, "config --services"),
        (command_lines.CHECK, "config --quiet"),
        (command_lines.up([]), "up --detach --no-build --pull never"),
        (command_lines.up(["web", "db"], ["--no-deps", *command_lines.timeout(2.6)]),
         "up --detach --no-build --pull never --no-deps --timeout 3 web db"),
        (command_lines.create(["db", "web"], {"web": 2}), "create --no-build --pull never --scale web=2 db web"),
        (command_lines.build(["web"], no_cache=False, pull=False), "build web"),
        (command_lines.build(["web"], no_cache=True, pull=True), "build --no-cache --pull web"),
        (command_lines.run("web", ["echo", "a b"], name="one", labels={"k": "v", "l": "w"}, user="7", workdir="/srv"),
         "run --detach --no-deps --no-TTY --name one --label k=v --label l=w --user 7 --workdir /srv web echo 'a b'"),
        (command_lines.run("web", [], name="one", labels={}, user=None, workdir=None),
         "run --detach --no-deps --no-TTY --name one web"),
        (command_lines.stop(["web"], None), "stop web"),
        (command_lines.stop(["web", "db"], 0.0), "stop --timeout 0 web db"),
        (command_lines.down(None, orphans=False), "down"),
        (command_lines.down(30, orphans=True), "down --timeout 30 --remove-orphans"),
        (command_lines.scale({"web": 2, "db": 1}), "--scale web=2 --scale db=1"),
    ],
)  # fmt: skip
def test_arguments_of_compose(argv: list[str], line: str) -> None:
    assert shlex.join(argv) == line
