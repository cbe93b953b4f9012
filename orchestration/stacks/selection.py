"""Which services are meant: what is stale, what runs an image, what has a name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from longshore.orchestration.errors import UnknownName, UsageError
from longshore.orchestration.language.targets import listed
from longshore.orchestration.stacks.drift import Note, Reason, Stale, find_drift
from longshore.orchestration.stacks.image_names import is_meant
from longshore.orchestration.stacks.inventory import Inventory
from longshore.orchestration.stacks.rules import StackRules
from longshore.orchestration.store.caches import digest_of


@dataclass(frozen=True)
class Selection:
    """What is stale, what else there is to tell, and what it was found in: `seen`, by host."""

    chosen: tuple[Stale, ...] = ()
    notes: tuple[Note, ...] = ()
    #: Hosts that nothing is known of, and why.
    errors: dict[str, str] = field(default_factory=dict)
    seen: dict[str, Inventory] = field(default_factory=dict, repr=False)
    #: Projects of which it cannot be told whether they are right.
    wrong: tuple[Note, ...] = ()
    #: The host that counts, by another one with the same engine.
    twins: dict[str, str] = field(default_factory=dict)

    def name(self, one: Stale) -> str:
        """As `restart` takes it: with its host where another one has a service of that name."""
        several = sum(one.project in seen.projects for seen in self.seen.values()) > 1
        return f"{one.host}:{one.name}" if several else one.name

    @property
    def incomplete(self) -> bool:
        """Whether there is something that nobody could look at."""
        return bool(self.errors or self.wrong)

    @property
    def index(self) -> str:
        """Of what was selected, and what it was found in."""
        prints = sorted(
            {(one.host, one.project, self.seen[one.host].projects[one.project].fingerprint) for one in self.chosen}
        )
        return digest_of([prints, sorted(one.name for one in self.chosen)])[:12]


def choose(
    said: StackRules,
    seen: Mapping[str, Inventory],
    errors: Mapping[str, str],
    *,
    labels: Iterable[str] = (),
    image: str | None = None,
    running: bool = False,
) -> Selection:
    """What is stale in what was seen. Of hosts with one engine the first one counts.

    `labels` are `key` or `key=value` of the containers, all of them; `image`: only what runs this one, and with
    `running` also what runs it and is right as it is. `errors`: why nothing was seen of other hosts.
    """
    first: dict[str, str] = {}
    for host in sorted(seen):
        first.setdefault(seen[host].engine, host)
    mine = {host: seen[host] for host in sorted(first.values())}
    wanted = [_label(text) for text in labels]
    stale: list[Stale] = []
    notes: list[Note] = [] if errors else _unknown(said, mine)
    wrong: list[Note] = []
    for host, one in mine.items():
        found = [told for told in find_drift(host, one) if _has(one, told, wanted) and _runs(one, told, image)]
        stale += [told for told in found if isinstance(told, Stale)]
        notes += [told for told in found if isinstance(told, Note) and not told.wrong]
        wrong += [told for told in found if isinstance(told, Note) and told.wrong]
        if not wanted and image is None:
            notes += [
                Note(host, "", "", f"image {ref}: its registry could not be asked: {remote.error}")
                for ref, remote in one.remotes.items()
                if remote.error
            ]
        if image is not None and running:
            stale += _running(host, one, image, wanted, stale, notes)
    stale.sort(key=lambda told: (told.host, told.project, told.service))
    twins = {host: first[one.engine] for host, one in seen.items()}
    return Selection(tuple(stale), tuple(notes), dict(errors), mine, tuple(wrong), twins)


def named(names: Iterable[str], selection: Selection) -> tuple[Stale, ...]:
    """The services of these names: `service`, `project`, `project/service`, each with `host:` before it.

    What is not stale is restarted because it was asked for; of a whole project only what runs. UnknownName for what
    is not there, UsageError where a service's name alone is of several projects.
    """
    stale = {(one.host, one.project, one.service): one for one in selection.chosen}
    found: dict[tuple[str, str, str], Stale] = {}
    for name in names:
        for key in _meant(name, selection):
            there = selection.seen[key[0]].projects[key[1]].services[key[2]].containers
            asked = Stale(*key, (Reason("asked", "asked for"),), "restart" if there else "up")
            found[key] = stale.get(key, asked)
    return tuple(found.values())


def _unknown(said: StackRules, seen: Mapping[str, Inventory]) -> list[Note]:
    """What the file says of projects and services that there are none of: a slip of the pen, mostly."""
    services: dict[str, set[str]] = {}
    for one in seen.values():
        for name, project in one.projects.items():
            services.setdefault(name, set()).update(project.services)
    found = (
        [Note("", "", "", f"no project is one of {', '.join(said.only)} (only)")] if said.only and not services else []
    )
    for name, spec in said.stacks.items():
        if name not in services:
            found.append(Note("", name, "", "the file of LONGSHORE_STACKS tells of it, and there is no such project"))
            continue
        missing = sorted(spec.services.keys() - services[name])
        found += [
            Note("", name, one, "the file of LONGSHORE_STACKS tells of it, and there is no such service")
            for one in missing
        ]
    after = {
        (name, other) for one in seen.values() for name, project in one.projects.items() for other in project.after
    }
    found += [
        Note("", name, "", f"it is to come after {other}, and there is no such project")
        for name, other in sorted(after)
        if other not in services
    ]
    return found


def _label(text: str) -> tuple[str, str | None]:
    key, sign, value = text.partition("=")
    if not key:
        raise UsageError(f"label {text!r} is no label: key, or key=value")
    return key, value if sign else None


def _has(seen: Inventory, said: Stale | Note, wanted: Sequence[tuple[str, str | None]]) -> bool:
    if not wanted:
        return True
    service = seen.projects[said.project].services.get(said.service)
    labels = {"com.docker.compose.project": said.project, "com.docker.compose.service": said.service}
    labels |= service.declared | service.labels if service is not None else {}
    return all(key in labels and value in {None, labels[key]} for key, value in wanted)


def _runs(seen: Inventory, said: Stale | Note, image: str | None) -> bool:
    if image is None:
        return True
    service = seen.projects[said.project].services.get(said.service)
    if service is None:
        return False
    ids = {one.image_id for one in service.containers} | ({service.image_id} if service.image_id else set())
    return is_meant(image, service.image, ids)


def _running(
    host: str,
    seen: Inventory,
    image: str,
    wanted: Sequence[tuple[str, str | None]],
    stale: list[Stale],
    notes: list[Note],
) -> list[Stale]:
    """What runs an image and is right as it is."""
    told = {(said.host, said.project, said.service) for group in (stale, notes) for said in group}
    found = []
    for name, project in seen.projects.items():
        for service, said in project.services.items():
            one = Stale(host, name, service, (Reason("asked", f"runs {said.image}"),), "restart")
            live = any(replica.runs for replica in said.containers)
            if live and (host, name, service) not in told and _runs(seen, one, image) and _has(seen, one, wanted):
                found.append(one)
    return found


def _meant(name: str, selection: Selection) -> list[tuple[str, str, str]]:
    host, colon, rest = name.rpartition(":")
    host, seen = selection.twins.get(host, host), selection.seen
    stale = {(one.host, one.project, one.service) for one in selection.chosen}
    project, slash, service = rest.rpartition("/")
    found = [
        (where, stack, one)
        for where, all_of_it in seen.items()
        if not colon or where == host
        for stack, said in all_of_it.projects.items()
        for one, about in said.services.items()
        if about.hash and ((stack == project and one == service) if slash else rest in {stack, one})
    ]
    if not slash and (whole := [key for key in found if key[1] == rest]):
        runs = [key for key in whole if any(c.runs for c in seen[key[0]].projects[key[1]].services[key[2]].containers)]
        if chosen := [key for key in whole if key in runs or key in stale]:
            return chosen
        raise UsageError(f"nothing of project {rest} runs", remedy="name its services, to have them started")
    if not found:
        for where, one in seen.items():
            for stack, said in one.projects.items():
                if said.error and rest in {stack, *(f"{stack}/{s}" for s in said.services), *said.services}:
                    raise UsageError(f"{stack} on {where} cannot be restarted: {said.error}")
        there = sorted({f"{p}/{s}" for one in seen.values() for p, said in one.projects.items() for s in said.services})
        raise UnknownName(f"there is no deployment {name!r}", remedy=f"there are: {listed(there)}")
    if len({key[1] for key in found}) > 1:
        several = ", ".join(f"{key[1]}/{key[2]}" for key in found)
        raise UsageError(f"{name!r} is a service of several projects ({several})", remedy="name one")
    return found
