"""`longshore init`: the secrets of an installation, the rotation of its signing keys, and example plans."""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
import time
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from longshore.orchestration.cli.common import current_options, global_options, print_result
from longshore.orchestration.cli.example_plans import EXAMPLES, example
from longshore.orchestration.cli.inputs import read_duration
from longshore.orchestration.errors import UsageError
from longshore.orchestration.installation import acl
from longshore.orchestration.messaging import signing
from longshore.orchestration.plans import loading
from longshore.orchestration.settings import get_settings

#: Files in the folder. Each reader has a folder of its own, which is mounted as a whole: a rotation replaces the files.
KEYS, CLIENT_KEYS, USERS, ENVIRONMENT = "worker/keys.json", "client/keys.json", "redis/users.acl", "env"
#: The folder of secrets that plans may refer to. Operators fill this folder.
PLAN_SECRETS = "plans"
#: The schema beside the example plans.
SCHEMA = "longshore-plan.schema.json"


@click.command("plan")
@click.argument("file", default="plan.yaml", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--kind",
    type=click.Choice(list(EXAMPLES)),
    default="commands",
    show_default=True,
    help="commands: commands and files on a host; saga: Celery tasks with compensations; release: a release of a "
    "Compose stack; backup: a nightly copy of the data of a stopped stack.",
)
@global_options
def plan(file: Path, kind: str) -> None:
    """Write an example plan with comments.

    The command writes FILE (default: plan.yaml). Editors complete and check plans with longshore-plan.schema.json,
    which the command writes into the same folder. If FILE exists, the command is refused. An existing schema is kept.
    """
    if file.suffix not in {".yaml", ".yml"}:
        raise UsageError(f"{file} is not a YAML file", remedy="use a name that ends with .yaml")
    if file.exists() or file.is_symlink():
        raise UsageError(f"{file} exists already", remedy="choose another file")
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", file.stem).strip("-") or "example"
    schema = file.with_name(SCHEMA)
    texts = {file: example(kind, str(file), name, f"./{SCHEMA}")}
    if not schema.exists():
        texts[schema] = json.dumps(loading.schema(), ensure_ascii=False, indent=2) + "\n"
    names = " and ".join(map(str, texts))
    if current_options().dry_run:
        print_result(f"would write {names}", files=[str(path) for path in texts], kind=kind)
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            with path.open("x", encoding="utf-8") as opened:
                opened.write(text)
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}", remedy="choose another file") from None
    kept = "" if schema in texts else f"; {schema} existed and was kept"
    print_result(
        f"wrote {names}{kept}; next: longshore plan simulate {file}", files=[str(path) for path in texts], kind=kind
    )


class _Init(click.Group):
    """`longshore init [FOLDER]`, with the subcommand `plan` in place of the folder."""

    # As in a command without subcommands, options may follow the folder.
    allow_interspersed_args = True

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] == [plan.name]:
            return plan.make_context(f"{info_name} {plan.name}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


def _complete_folder(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    named = [CompletionItem("plan", help=plan.get_short_help_str())] if "plan".startswith(incomplete) else []
    # Bash forgets the items before a request for folders.
    return [CompletionItem(incomplete, type="dir"), *named]


@click.group(cls=_Init, commands=[plan], invoke_without_command=True, subcommand_metavar="")
@click.argument("folder", default="secrets", type=click.Path(file_okay=False), shell_complete=_complete_folder)
@click.option("--rotate", is_flag=True, help="Add new signing keys to both key files; write no other file.")
@click.option(
    "--after",
    default="1d",
    show_default=True,
    metavar="DURATION",
    help="With --rotate: time until the new keys sign messages.",
)
@click.option(
    "--queue",
    "queues",
    multiple=True,
    metavar="NAME",
    help="Queue of your own operations, which the Redis users may access; repeatable.",
)
@click.option(
    "--redis",
    "where",
    default="redis://redis:6379/0",
    show_default=True,
    help="URL of Redis, as workers and clients reach it.",
)
@click.option(
    "--owner",
    type=int,
    metavar="UID",
    help="User id that owns the files, such as that of the containers. Default: you, or with --rotate the present "
    "owner of each file.",
)
@global_options
@click.pass_context
def init(
    ctx: click.Context,
    folder: str,
    rotate: bool,
    after: str,
    queues: tuple[str, ...],
    where: str,
    owner: int | None,
) -> None:
    """Create the secrets of an installation, or an example plan.

    `longshore init plan --help` describes example plans. Without `plan`, the command writes these files into FOLDER
    (default: secrets):

    \b
    worker/keys.json   signing keys of workers
    client/keys.json   signing keys of applications and operators
    redis/users.acl    users of Redis
    env                URLs of Redis with passwords, for docker compose --env-file
    plans/             an empty folder for secrets that plans may use

    If one of the files exists, the command is refused.

    To replace the signing keys, use --rotate. Copy the new key files to all workers and clients before the time of
    --after has passed. After this time, the former keys, even leaked ones, remain valid for three days.
    """
    if folder == plan.name or ctx.invoked_subcommand:
        raise UsageError(
            "plan is a subcommand", remedy="begin with longshore init plan, or write ./plan for a folder of this name"
        )
    _create_secrets(Path(folder), rotate=rotate, after=after, queues=queues, where=where, owner=owner)


def _create_secrets(
    folder: Path, *, rotate: bool, after: str, queues: tuple[str, ...], where: str, owner: int | None
) -> None:
    made: dict[str, str] = {}
    if not re.match(r"(rediss?|unix|sentinel)://.", where):
        raise UsageError(f"--redis {where!r} is not a URL of Redis", remedy="use redis://host:6379/0, or rediss://…")
    for name in queues:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
            raise UsageError(f"--queue {name!r} is not a queue name")
    if rotate:
        keys = signing.rotated(signing.read(folder / KEYS).keys, time.time(), read_duration(after, "--after"))
    else:
        existing = [name for name in (KEYS, CLIENT_KEYS, USERS, ENVIRONMENT) if (folder / name).exists()]
        if existing:
            raise UsageError(
                f"{folder} has {', '.join(existing)} already",
                remedy="add new keys with longshore init --rotate, or choose another folder",
            )
        keys = [signing.new_key("worker"), signing.new_key("client")]
        passwords = {role: secrets.token_urlsafe(24) for role in acl.ROLES}
        admin, login = secrets.token_urlsafe(24), secrets.token_urlsafe(18)
        made[USERS] = acl.users(get_settings(), passwords, queues, admin=admin)
        lines = [f"LONGSHORE_{role.upper()}_URL={acl.url(role, passwords[role], where)}" for role in acl.ROLES]
        made[ENVIRONMENT] = "\n".join(
            [f"LONGSHORE_SECRETS={folder.absolute()}", *lines, f"REDIS_ADMIN_PASSWORD={admin}",
             f"FLOWER_BASIC_AUTH=operator:{login}", ""]
        )  # fmt: skip
    made[KEYS] = signing.written(keys)
    made[CLIENT_KEYS] = signing.written([key for key in keys if key.role == "client"])
    if current_options().dry_run:
        print_result(f"would write {', '.join(sorted(made))} in {folder}", folder=str(folder), files=sorted(made))
        return
    try:
        for inner in (folder, *((folder / name).parent for name in made), folder / PLAN_SECRETS):
            inner.mkdir(parents=True, exist_ok=True, mode=0o700)
            if owner is not None:
                os.chown(inner, owner, -1)
        for name, text in made.items():
            _write(folder / name, text, owner)
    except OSError as error:
        raise UsageError(
            f"{folder}: {error.strerror}", remedy="choose another folder, or run the command as root"
        ) from None
    line = f"wrote {', '.join(sorted(made))} in {folder}; protect these files like passwords"
    if rotate:
        line += f"; copy {KEYS} to the workers and {CLIENT_KEYS} to the clients within {after}"
    print_result(line, folder=str(folder), files=sorted(made))


def _write(path: Path, text: str, owner: int | None) -> None:
    """Write a file atomically. A replaced file keeps its owner and mode; only its owner can read a new one."""
    former = path.stat() if path.exists() else None
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if former is not None:
        os.chown(temporary, former.st_uid, former.st_gid)
        temporary.chmod(stat.S_IMODE(former.st_mode))
    if owner is not None:
        os.chown(temporary, owner, -1)
    temporary.replace(path)
