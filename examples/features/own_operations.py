"""An operation of the application and its compensation in the sandbox, without a server or a worker."""

import sys
from pathlib import Path

import shop  # noqa: F401 - registers its operations

from longshore.orchestration import Plan
from longshore.orchestration.testing import Sandbox

ledger = Path(sys.argv[1]) / "ledger"
plan = Plan("own-operations")
plan.step("charge", "shop.charge", order={"number": "o-1", "amount": 30}, ledger=str(ledger))
plan.step("ship", "noop.execute").after("charge")

sandbox = Sandbox()
sandbox.fail("ship", "no lorry")
report = sandbox.run(plan)
print(report.state, report.step("charge").undo.status, [line.split()[0] for line in ledger.read_text().splitlines()])
