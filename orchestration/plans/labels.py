"""Labels that features put on their plans, so that a report or the coordinator recognizes a run by its plan alone."""

from __future__ import annotations

#: The job that a plan carries out.
JOB_LABEL = "job"
#: Set on a job's plan that was made again from its worker container, after Redis had lost the run.
RECONSTRUCTED_LABEL = "reconstructed"
#: Set on the plans of `longshore orchestrate` and its parts; the value is the failure policy.
ORCHESTRATE_LABEL = "orchestrate"
#: The host or service whose recorded effects a plan applies again.
REPLAY_LABEL = "replay"
