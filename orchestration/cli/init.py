"""`longshore init`: the secrets of an installation, made once; and its keys, made anew from time to time."""

from __future__ import annotations

import os
import re
import secrets
import time
from pathlib import Path

import click

from longshore.orchestration.cli.common import current, global_options, tell
from longshore.orchestration.errors import UsageError
from longshore.orchestration.language.durations import parse_duration

#: Made in the folder: one for each reader, to be mounted as a whole, for what is made anew takes the old one's place.
KEYS, CLIENT_KEYS, USERS, ENVIRONMENT = "worker/keys.json", "client/keys.json", "redis/users.acl", "env"
#: A folder for secrets that plans may name, which are a person's to put there.
OF_PLANS = "plans"


@click.command()
@click.argument("folder", default="secrets", type=click.Path(path_type=Path, file_okay=False))
@click.option("--rotate", is_flag=True, help="Only add new keys to those that are there.")
@click.option("--after", default="1d", show_default=True, metavar="DURATION", help="When new keys begin to sign.")
@click.option("--queue", "queues", multiple=True, metavar="NAME", help="A queue of own operations; may be given again.")
@click.option("--redis", "where", default="redis://redis:6379/0", show_default=True, help="Where Redis will be.")
@click.option("--owner", type=int, metavar="UID", help="Who is to own the files: the user of the containers.")
@global_options
def init(folder: Path, rotate: bool, after: str, queues: tuple[str, ...], where: str, owner: int | None) -> None:
    """Make what an installation keeps secret: keys for messages, users and passwords of Redis, a login for Flower.

    FOLDER then has worker/keys.json, client/keys.json (applications and people), redis/users.acl, env for docker
    compose --env-file, and plans, an empty folder for the secrets that plans may name. Nothing that is there is
    replaced.
    """
    from longshore.orchestration.installation import acl  # noqa: PLC0415 - see cli.common
    from longshore.orchestration.messaging import signing  # noqa: PLC0415 - see cli.common
    from longshore.orchestration.settings import get_settings  # noqa: PLC0415

    made: dict[str, str] = {}
    if not re.match(r"(rediss?|unix|sentinel)://.", where):
        raise UsageError(f"--redis {where!r} is no address of a Redis", remedy="redis://host:6379/0, or rediss://…")
    for name in queues:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
            raise UsageError(f"--queue {name!r} is no name of a queue")
    if rotate:
        try:
            keys = signing.rotated(signing.read(folder / KEYS).keys, time.time(), parse_duration(after))
        except ValueError as error:
            raise UsageError(f"--after: {error}") from None
    else:
        there = [name for name in (KEYS, CLIENT_KEYS, USERS, ENVIRONMENT) if (folder / name).exists()]
        if there:
            raise UsageError(
                f"{folder} has {', '.join(there)} already",
                remedy="longshore init --rotate adds new keys; for all anew choose another folder",
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
    if current().dry_run:
        tell(f"would write {', '.join(sorted(made))} in {folder}", folder=str(folder), files=sorted(made))
        return
    try:
        for inner in (folder, *((folder / name).parent for name in made), folder / OF_PLANS):
            inner.mkdir(parents=True, exist_ok=True, mode=0o700)
            if owner is not None:
                os.chown(inner, owner, -1)
        for name, text in made.items():
            _write(folder / name, text, owner)
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}", remedy="choose another folder, or run it as root") from None
    line = f"{', '.join(sorted(made))} are in {folder}; keep them as you keep passwords"
    if rotate:
        line += f"; bring {KEYS} to the workers and {CLIENT_KEYS} to the clients: the new keys sign in {after}"
    tell(line, folder=str(folder), files=sorted(made))


def _write(path: Path, text: str, owner: int | None) -> None:
    """Whole or not at all; for its owner alone."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if owner is not None:
        os.chown(beside, owner, -1)
    beside.replace(path)
