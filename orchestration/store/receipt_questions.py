"""Questions to hosts for their receipts, and the answers, where Redis may have lost writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

from longshore.orchestration.store.connection import milliseconds as _ms
from longshore.orchestration.store.records import UnrecordedAttempt
from longshore.orchestration.store.scripts import Scripts
from longshore.orchestration.transitions import RunRecord

#: Seconds after the start of Redis within which a run whose record was lost may be created again.
_BEGUN_AGAIN = 600.0


class ReceiptQuestions(Scripts):
    """Asks hosts for receipts. Methods raise StoreUnavailable where Redis does not answer."""

    def ask(self, run_id: str, epoch: int, question: str, hosts: Sequence[str]) -> bool:
        """Ask hosts for their receipts of a run; False where the epoch has changed or the question is recorded already.

        The hosts' index is written first: a host reads the index, then the record for whether the question is open.
        """
        pipe = self.client.pipeline(transaction=False)
        for host in hosts:
            pipe.sadd(self.keys.asked(host), run_id)
        pipe.hincrby(self.keys.clock, "asked", 1)
        self.call(pipe.execute)
        return bool(self._run("ask", run_id, epoch, question, " ".join(hosts)))

    def asked(self, host: str) -> list[str]:
        """The runs that ask a host for its receipts."""
        return sorted(self.call(self.client.smembers, self.keys.asked(host)))

    def note_answer(
        self,
        run_id: str,
        question: str,
        host: str,
        version: int,
        doubts: Sequence[str],
        found: Sequence[UnrecordedAttempt],
    ) -> bool:
        """Record a host's answer; False where the run no longer waits for this question."""
        flat = [part for one in found for part in astuple(one)]
        noted = self._run("answer", run_id, question, host, version, "\n".join(doubts), *flat)
        self.forget_asked(run_id, host)
        return bool(noted)

    def forget_asked(self, run_id: str, host: str) -> None:
        """Remove a run from the index of a host's open questions."""
        self.call(self.client.srem, self.keys.asked(host), run_id)

    def settle(self, run_id: str, run: RunRecord, doubts: Sequence[str], *, ending: bool) -> bool:
        """Record that the receipts were compared, except those that `doubts` names.

        False where the epoch has changed or more attempts were lost meanwhile.
        """
        return bool(self._run("settle", run_id, run.epoch, run.lost, "1" if ending else "", "\n".join(doubts)))

    def may_have_lost(self, since: int) -> bool:
        """Whether Redis may have lost acknowledged writes after `since`, ms: after a restart or a failover.

        A run that was created again after such a loss is younger than the server, by at most _BEGUN_AGAIN seconds.
        """
        server = self.call(self.client.info, "server")
        if int(self.call(self.client.info, "replication").get("second_repl_offset", -1)) >= 0:
            return True
        return since < self.now() - _ms(int(server["uptime_in_seconds"])) + _ms(_BEGUN_AGAIN)
