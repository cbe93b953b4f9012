"""Selection of services: stale ones, those that run an image, and named ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from longshore.orchestration.errors import UnknownName, UsageError
from longshore.orchestration.language.quantities import quantity
from longshore.orchestration.language.targets import listed
from longshore.orchestration.stacks.drift import Note, Reason, Stale, find_drift
from longshore.orchestration.stacks.image_names import matches_image
from longshore.orchestration.stacks.inventory import Inventory, Remote
from longshore.orchestration.stacks.rules import StackRules
from longshore.orchestration.store.caches import digest_of


@dataclass(frozen=True)
class Selection:
    """The stale services, notes about others, and the inventories (`seen`, by host) in which they were found."""

    chosen: tuple[Stale, ...] = ()
    notes: tuple[Note, ...] = ()
    #: Hosts without an inventory, and why.
    errors: dict[str, str] = field(default_factory=dict)
    seen: dict[str, Inventory] = field(default_factory=dict, repr=False)
    #: Projects whose state cannot be determined.
    undetermined: tuple[Note, ...] = ()
    #: By host, the host that stands for all hosts with the same engine.
    twins: dict[str, str] = field(default_factory=dict)

    def name(self, one: Stale) -> str:
        """The name for `restart`, with the host where several hosts have the project."""
        several = sum(one.project in seen.projects for seen in self.seen.values()) > 1
        return f"{one.host}:{one.name}" if several else one.name

    @property
    def incomplete(self) -> bool:
        """Whether a host or a project could not be inspected."""
        return bool(self.errors or self.undetermined)

    @property
    def index(self) -> str:
        """Digest of the selected services and of their projects' inventories."""
        prints = sorted(
            {(one.host, one.project, self.seen[one.host].projects[one.project].fingerprint) for one in self.chosen}
        )
        return digest_of([prints, sorted(one.name for one in self.chosen)])[:12]


def choose(
    rules: StackRules,
    seen: Mapping[str, Inventory],
    errors: Mapping[str, str],
    *,
    labels: Iterable[str] = (),
    image: str | None = None,
    running: bool = False,
    retry: bool = False,
) -> Selection:
    """Select the stale services in these inventories. Of several hosts that share an engine, the first by name is used.

    `labels` are `key` or `key=value` of the containers, all of which must match; `image`: only services that run this
    image, and with `running` also those that are up to date; `retry`: also versions that have failed before. `errors`:
    why other hosts have no inventory.
    """
    first: dict[str, str] = {}
    for host in sorted(seen):
        first.setdefault(seen[host].engine, host)
    mine = {host: seen[host] for host in sorted(first.values())}
    wanted = [_label(text) for text in labels]
    stale: list[Stale] = []
    notes: list[Note] = [] if errors else _unknown(rules, mine)
    undetermined: list[Note] = []
    for host, one in mine.items():
        drift = find_drift(host, one, retry=retry)
        found = [each for each in drift if _has(one, each, wanted) and _runs(one, each, image)]
        stale += [each for each in found if isinstance(each, Stale)]
        notes += [each for each in found if isinstance(each, Note) and not each.undetermined]
        undetermined += [each for each in found if isinstance(each, Note) and each.undetermined]
        if not wanted and image is None:
            notes += [
                Note(host, "", "", f"image {ref}: its registry could not be queried: {remote.error}", general=True)
                for ref, remote in one.remotes.items()
                if remote.error
            ]
        if image is not None and running:
            stale += _running(host, one, image, wanted, stale, notes)
    stale.sort(key=lambda each: (each.host, each.project, each.service))
    twins = {host: first[one.engine] for host, one in seen.items()}
    return Selection(tuple(stale), tuple(notes), dict(errors), mine, tuple(undetermined), twins)


def with_reused_answers(selection: Selection, stored: Mapping[str, Mapping[str, Remote]]) -> Selection:
    """The selection with a note about each host with images that `stored` answers of registries call up to date.

    `stored` has the answers by host and image, as they were before the selection asked the registries.
    """
    notes = []
    for host, one in selection.seen.items():
        newer = {each.image for project in one.projects.values() for each in project.services.values() if each.newer}
        answers = stored.get(host, {})
        reused = [ref for ref, remote in one.remotes.items() if not remote.error and answers.get(ref) == remote]
        if count := len(set(reused) - newer):
            what = f"registries were not asked again about {quantity(count, 'image')} on host {host}"
            why = "answers from the last ten minutes; to ask again: longshore rebuild --force --registry"
            notes.append(Note(host, "", "", f"{what}, because of {why}", general=True))
    return replace(selection, notes=(*selection.notes, *notes))


def named(names: Iterable[str], selection: Selection, labels: Sequence[str] = ()) -> tuple[Stale, ...]:
    """The services of these names: `service`, `project`, `project/service`, each with `host:` before it.

    A named service is restarted even if it is up to date; of a whole project, only running services. `labels`, as in
    `choose`, narrow the named services; `selection` has all stale ones, since a stale service needs its own action.
    Raises UnknownName for an unknown name, and UsageError for a service name that several projects have, and if no
    named service has the labels.
    """
    wanted = [_label(text) for text in labels]
    stale = {(one.host, one.project, one.service): one for one in selection.chosen}
    found: dict[tuple[str, str, str], Stale] = {}
    for name in names:
        for key in _matching(name, selection):
            containers = selection.seen[key[0]].projects[key[1]].services[key[2]].containers
            requested = Stale(*key, (Reason("asked", "requested"),), "restart" if containers else "up")
            found[key] = stale.get(key, requested)
    labelled = tuple(one for one in found.values() if _has(selection.seen[one.host], one, wanted))
    if found and not labelled:
        raise UsageError(
            f"no named service has the labels {', '.join(labels)}", remedy="omit --label to restart the named services"
        )
    return labelled


def _unknown(rules: StackRules, seen: Mapping[str, Inventory]) -> list[Note]:
    """Notes about rules for projects and services that do not exist, mostly misspelled names."""
    services: dict[str, set[str]] = {}
    for one in seen.values():
        for name, project in one.projects.items():
            services.setdefault(name, set()).update(project.services)
    found: list[Note] = []

    def add(project: str, service: str, text: str) -> None:
        found.append(Note("", project, service, text, general=True))

    if rules.only and not services:
        add("", "", f"no project matches only: {', '.join(rules.only)}")
    for name, spec in rules.stacks.items():
        if name not in services:
            add(name, "", "no such project, but the file of LONGSHORE_STACKS has rules for it")
            continue
        for service in sorted(spec.services.keys() - services[name]):
            add(name, service, "no such service, but the file of LONGSHORE_STACKS has rules for it")
    after = {
        (name, other) for one in seen.values() for name, project in one.projects.items() for other in project.after
    }
    for name, other in sorted(after):
        if other not in services:
            add(name, "", f"no project {other}, which it must come after")
    return found


def _label(text: str) -> tuple[str, str | None]:
    key, sign, value = text.partition("=")
    if not key:
        raise UsageError(f"label {text!r}: expected KEY or KEY=VALUE")
    return key, value if sign else None


def _has(seen: Inventory, each: Stale | Note, wanted: Sequence[tuple[str, str | None]]) -> bool:
    if not wanted:
        return True
    service = seen.projects[each.project].services.get(each.service)
    labels = {"com.docker.compose.project": each.project, "com.docker.compose.service": each.service}
    labels |= service.declared | service.labels if service is not None else {}
    return all(key in labels and value in {None, labels[key]} for key, value in wanted)


def _runs(seen: Inventory, each: Stale | Note, image: str | None) -> bool:
    if image is None:
        return True
    service = seen.projects[each.project].services.get(each.service)
    if service is None:
        return False
    ids = {one.image_id for one in service.containers} | ({service.image_id} if service.image_id else set())
    return matches_image(image, service.image, ids)


def _running(
    host: str,
    seen: Inventory,
    image: str,
    wanted: Sequence[tuple[str, str | None]],
    stale: list[Stale],
    notes: list[Note],
) -> list[Stale]:
    """The services that run an image and are up to date."""
    listed_already = {(each.host, each.project, each.service) for group in (stale, notes) for each in group}
    found = []
    for name, project in seen.projects.items():
        for service, described in project.services.items():
            one = Stale(host, name, service, (Reason("asked", f"runs {described.image}"),), "restart")
            live = any(replica.runs for replica in described.containers)
            if (
                live
                and (host, name, service) not in listed_already
                and _runs(seen, one, image)
                and _has(seen, one, wanted)
            ):
                found.append(one)
    return found


def _unknown_name(name: str, selection: Selection, host: str) -> UnknownName:
    """The error for a name of no service, with the hosts that may have the service; `host` is that of the name."""
    known = sorted({f"{p}/{s}" for one in selection.seen.values() for p, q in one.projects.items() for s in q.services})
    errors = [f"{where}: {why}" for where, why in selection.errors.items() if host in {"", where}]
    message, remedy = f"no service or project {name!r}", f"choose one of: {listed(known)}"
    if errors:
        message += f" (hosts not inspected: {listed(errors)})"
        again = "repeat the command when these hosts can be inspected"
        remedy = f"{again}, or {remedy}" if known else again
    return UnknownName(message, remedy=remedy)


def _matching(name: str, selection: Selection) -> list[tuple[str, str, str]]:
    """Host, project and service of each service that has this name."""
    host, colon, rest = name.rpartition(":")
    host, seen = selection.twins.get(host, host), selection.seen
    stale = {(one.host, one.project, one.service) for one in selection.chosen}
    project, slash, service = rest.rpartition("/")
    found = [
        (where, stack, one)
        for where, inventory in seen.items()
        if not colon or where == host
        for stack, content in inventory.projects.items()
        for one, described in content.services.items()
        if described.hash and ((stack == project and one == service) if slash else rest in {stack, one})
    ]
    if not slash and (whole := [key for key in found if key[1] == rest]):
        runs = [key for key in whole if any(c.runs for c in seen[key[0]].projects[key[1]].services[key[2]].containers)]
        if chosen := [key for key in whole if key in runs or key in stale]:
            return chosen
        raise UsageError(f"no service of project {rest} is running", remedy="name the services to start")
    if not found:
        for where, one in seen.items():
            for stack, content in one.projects.items():
                if content.error and rest in {stack, *(f"{stack}/{s}" for s in content.services), *content.services}:
                    raise UsageError(f"project {stack} on host {where} cannot be restarted: {content.error}")
        raise _unknown_name(name, selection, host if colon else "")
    if len({key[1] for key in found}) > 1:
        several = ", ".join(f"{key[1]}/{key[2]}" for key in found)
        raise UsageError(f"several projects have a service {name!r} ({several})", remedy="name one: PROJECT/SERVICE")
    return found
