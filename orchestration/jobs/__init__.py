"""Jobs: stop a stack, run a worker container on its volumes, and always start the stack again.

A job is found in labels and files (`labels`, `file`), becomes an ordinary plan (`plan`) and is run as one; what
became of it stands in the run's report (`outcome`). The hosts with an engine say what is on it (`board`), and the
jobs that have a schedule are started by beat's tick (`schedule`).
"""

from longshore.orchestration.jobs.jobs import Jobs
from longshore.orchestration.jobs.labels import Discovered, Entity, Finding, Job, Mount, discover
from longshore.orchestration.jobs.plan import job_plan
from longshore.orchestration.runs.job_outcome import JobReport

__all__ = ["Discovered", "Entity", "Finding", "Job", "JobReport", "Jobs", "Mount", "discover", "job_plan"]
