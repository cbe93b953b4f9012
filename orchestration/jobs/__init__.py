"""Jobs: stop a stack, run a job container on its volumes, and always restart the stack.

Labels and files describe jobs (`labels`, `file`); each host with an engine publishes its labels (`discovery`). A job
runs as an ordinary plan (`plan`); its outcome is in the run's report (`longshore.orchestration.runs.job_outcome`). The
tick of beat starts jobs that have a schedule (`schedule`).
"""

from longshore.orchestration.jobs.jobs import Jobs
from longshore.orchestration.jobs.labels import Discovered, Entity, Finding, Job, Mount, discover
from longshore.orchestration.jobs.plan import job_plan
from longshore.orchestration.runs.job_outcome import JobReport

__all__ = ["Discovered", "Entity", "Finding", "Job", "JobReport", "Jobs", "Mount", "discover", "job_plan"]
