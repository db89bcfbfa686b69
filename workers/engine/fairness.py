"""Whose turn it is: of the tenants that wait, the one with the fewest tokens served.

Sheng et al., "Fairness in Serving Large Language Models" (arXiv 2401.00588), on two levels: first
tenants, then the users of one. What a running request has yet to take counts as well, so that one
who holds much does not get more at once; when it ends, its tokens are those that were computed.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from workers.engine.sequence import TokenSequence

REMEMBERED = 1024
"""Tenants, and users of one, that have got more than the others and asked for nothing since."""


@dataclass
class Account:
    """Tokens of one tenant, or of one user."""

    served: int = 0
    """Computed; also what it was lifted by when it came."""
    promised: int = 0
    """That its running requests may yet take."""
    open: int = 0
    """Requests that wait or run."""

    @property
    def level(self) -> int:
        """What its turn goes by."""
        return self.served + self.promised


class Accounts:
    """Those who share something. Who was away has no claim to what went on meanwhile."""

    def __init__(self) -> None:
        self._by_id: dict[str, Account] = {}

    def __getitem__(self, id: str) -> Account:
        return self._by_id[id]

    @property
    def open(self) -> set[str]:
        """Who has requests."""
        return {id for id, account in self._by_id.items() if account.open}

    def enter(self, id: str) -> None:
        """A request comes. A newcomer is lifted to the one that has had least."""
        account = self._by_id.pop(id, None) or Account()
        if not account.open:
            account.served = max(account.served, self._least())
        account.open += 1
        self._by_id[id] = account  # the last one now

    def leave(self, id: str) -> None:
        """A request has gone. When all have, all begin alike again."""
        self._by_id[id].open -= 1
        if not self.open:
            self._by_id.clear()
        elif not self._by_id[id].open:
            self._forget()

    def _least(self) -> int:
        return min((one.served for one in self._by_id.values() if one.open), default=0)

    def _forget(self) -> None:
        """Those who would be lifted anyway, and of the others the ones away longest."""
        least = self._least()
        away = [id for id, account in self._by_id.items() if not account.open]
        ahead = [id for id in away if self._by_id[id].served > least]
        for id in {*away} - {*ahead[-REMEMBERED:]}:
            del self._by_id[id]


@dataclass
class Claim:
    """What an open request has been counted for."""

    promised: int = 0
    counted: int = 0


@dataclass
class Ledger:
    """Who has got how much of an engine."""

    tenants: Accounts = field(default_factory=Accounts)
    _users: dict[str, Accounts] = field(default_factory=dict)
    _claims: dict[TokenSequence, Claim] = field(default_factory=dict)

    def enter(self, sequence: TokenSequence) -> None:
        """A request waits from now on."""
        for known in self._claims:
            self._count(known)  # what a newcomer is lifted to is of this moment
        self._claims[sequence] = Claim()
        tenant, user = sequence.asker
        self.tenants.enter(tenant)
        self._users.setdefault(tenant, Accounts()).enter(user)

    def leave(self, sequence: TokenSequence) -> None:
        """A request has ended; one that never entered is no error."""
        if sequence not in self._claims:
            return
        self.promise(sequence, 0)
        del self._claims[sequence]
        tenant, user = sequence.asker
        self._users[tenant].leave(user)
        self.tenants.leave(tenant)
        if not self._users[tenant].open:
            del self._users[tenant]

    def promise(self, sequence: TokenSequence, tokens: int) -> None:
        """A request may take so many tokens from now on; 0 where it does not run any more."""
        self._count(sequence)
        claim = self._claims[sequence]
        for account in self._accounts(sequence):
            account.promised += tokens - claim.promised
        claim.promised = tokens

    def turn(self, sequence: TokenSequence) -> tuple[int, int, int]:
        """The smaller, the sooner."""
        tenant, user = self._accounts(sequence)
        return tenant.level, user.level, sequence.number

    def _accounts(self, sequence: TokenSequence) -> tuple[Account, Account]:
        tenant, user = sequence.asker
        return self.tenants[tenant], self._users[tenant][user]

    def _count(self, sequence: TokenSequence) -> None:
        """Bring what was computed for it from promised to served."""
        claim = self._claims[sequence]
        new = sequence.computed - claim.counted
        kept = min(new, claim.promised)
        claim.counted, claim.promised = claim.counted + new, claim.promised - kept
        for account in self._accounts(sequence):
            account.served += new
            account.promised -= kept


def gives_way(waiting: Collection[TokenSequence], newcomer: TokenSequence) -> TokenSequence | None:
    """Whose place in a full queue is a newcomer's: the latest request of the tenant with the most,
    of its user with the most. None where the newcomer's own have as many."""
    tenants = Counter(one.asker.tenant for one in waiting)
    askers = Counter(one.asker for one in waiting)
    most = max(
        (one for one in waiting if not one.tokens),  # an answer that has begun goes on
        key=lambda one: (tenants[one.asker.tenant], askers[one.asker], one.number),
        default=None,
    )
    if most is None:
        return None
    there, own = most.asker, newcomer.asker
    if there.tenant == own.tenant:
        return most if askers[there] > askers[own] + 1 else None
    return most if tenants[there.tenant] > tenants[own.tenant] + 1 else None
