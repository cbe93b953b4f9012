"""Existing Celery tasks as a saga: the application's own worker runs them and their compensations."""

import bank

from longshore.orchestration import Client, Plan

plan = Plan("celery-tasks")
charge = plan.celery("charge", bank.charge.s(42), undo=bank.refund.s(42), timeout="1m")
ship = plan.celery("ship", bank.ship.s("o-1"), undo=bank.fetch_back.s("o-1"), timeout="1m").after(charge)

report = Client().start(plan).wait(timeout=60)
print(report.state, [(step.name, str(step.status), step.undo and str(step.undo.status)) for step in report.steps])
