"""Functions as steps: typed, retried, compensated, with the results of earlier steps."""

import sys

import shop

from longshore.orchestration import Client, Plan

plan = Plan("functions")
for number, amount in (("o-1", 30), ("o-2", 12)):
    plan.step(number, "shop.charge", order={"number": number, "amount": amount}, ledger=f"{sys.argv[1]}/ledger")
plan.step("total", "shop.total").after("o-1", "o-2")

report = Client().start(plan).wait(timeout=60)
print(report.state, report.step("total").data["total"], report.decode("o-1", shop.Order).number)
