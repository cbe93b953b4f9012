"""Typed results: the data of a step keep their types in later steps, and the report decodes the data into a model."""

import shop

from longshore.orchestration import Client, DecodeError, Plan

plan = Plan("results", on_error="continue")
made = plan.step("made", "noop.execute", data={"number": "o-7", "amount": 42, "tags": ["new", "1.10"]})
plan.step("used", "noop.execute", data={"amount": made.data.amount, "text": f"order {made.data.number}"}).after(made)
plan.step("hosts", "shop.health", hosts=["web1", "db1"]).tolerate(1)

report = Client().start(plan).wait(timeout=60)
print(report.decode("made", shop.Order))
print(report.step("used").data)
print([(host.host, str(host.status)) for host in report.step("hosts").hosts])
try:
    report.step("used").decode(shop.Order)
except DecodeError as error:
    print(error)
