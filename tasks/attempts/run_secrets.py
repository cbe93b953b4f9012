"""The secrets of runs, by which this worker redacts all that an attempt leaves: records, logs, events and messages.

An attempt redacts every secret that the run's plan names, in whatever step, and those of its parent and child runs, as
far as this worker can read them. Values that the process has seen for a run stay known to it, also after the secret
was replaced; they are stored nowhere else.
"""

from __future__ import annotations

from collections import OrderedDict

from longshore.orchestration.language.secrets import Redaction
from longshore.tasks.host import secret_sources
from longshore.tasks.loaded_runs import Loaded

#: The number of runs whose values a process remembers.
_REMEMBERED = 256
#: The values by run; a parent and its child runs share one set.
_values: OrderedDict[str, set[str]] = OrderedDict()
_all = Redaction()


def redaction_of(loaded: Loaded) -> Redaction:
    """A redaction of all secrets of a run. Values that are added to it are remembered for the run."""
    family = loaded.instance_id.partition(".")[0]
    found = Redaction()
    if family:
        found.values = _values.setdefault(family, found.values)
        _values.move_to_end(family)
        while len(_values) > _REMEMBERED:
            _values.popitem(last=False)
    found.values |= secret_sources.known(loaded.secrets)
    return found


def redact(text: str) -> str:
    """Redact the values of all runs that this process remembers, as for a line of its log."""
    _all.values = set().union(*list(_values.values()))
    return _all.text(text)
