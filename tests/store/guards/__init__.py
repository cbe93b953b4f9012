"""Scenarios that kill a script's mutants: one for each rule that a guard of a script is marked with.

The names of the rules have these terms:

- A *reopened* run has ended, and a command continues or undoes the run. The command begins a new *epoch*. An *older
  decision* is a transition that a worker chose in an earlier epoch.
- A *released* run is no longer suspended.
- A *parked* step waits without a worker: for a person, a time, a child run or a task of an application.
- A *task* is a Celery task of an application.
- A *held back* unit waits for other units of its step.
- A *delivery* is one arrival of a Celery message at a worker.
- A *question* asks hosts for their receipts of a run.
- An attempt or task is *lost* if its lease has expired.
- An *unrecorded* attempt has a receipt on a host. The record does not know the attempt, because Redis has lost writes.
- The record notes that a step *had no effect*, for example if its only attempt failed before it acted. Such a step is
  not compensated.
"""
