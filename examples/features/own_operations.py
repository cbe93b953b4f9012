"""An operation's journal, undo and dry-run answer, tried on the bench without a server or a worker."""

import sys
from pathlib import Path

import shop  # noqa: F401 - makes its operations known

from longshore.orchestration import Plan
from longshore.orchestration.testing import Sandbox

ledger = Path(sys.argv[1]) / "ledger"
plan = Plan("own-operations")
plan.step("charge", "shop.charge", order={"number": "o-1", "amount": 30}, ledger=str(ledger))
plan.step("ship", "noop.execute").after("charge")

bench = Sandbox()
bench.fail("ship", "no lorry")
report = bench.run(plan)
print(report.state, report.step("charge").undo.status, [line.split()[0] for line in ledger.read_text().splitlines()])
