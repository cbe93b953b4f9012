"""Plan labels of features, by which reports and the coordinator recognise their runs."""

from __future__ import annotations

#: The job that a plan executes.
JOB_LABEL = "job"
#: Set on a job's plan that was rebuilt from its job container after Redis lost the run.
RECONSTRUCTED_LABEL = "reconstructed"
#: Set on the plans of `longshore orchestrate` and its parts; the value is the failure policy.
ORCHESTRATE_LABEL = "orchestrate"
#: The host or service whose recorded effects a plan replays.
REPLAY_LABEL = "replay"
