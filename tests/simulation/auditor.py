"""The auditor: knows from what was fed to the machines what each call must cost, and compares that with the book."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID

from billing.hot.connection import Argument
from models.call import CallRequest, Charge, Endpoint, HoldRequest
from models.catalog import BackendKind, Meter, Model
from models.errors import TollgateError
from models.usage import Ending
from tests.simulation.backends import Fact
from tests.simulation.tally import TEMPLATE_TOKENS, OwnCount, Sold, Tally, Terms, prices_of

STALE_PRICE_US: Final = 150_000_000
"""How long after its end a price may still be pinned by a gateway that has not heard of its successor: it was frozen,
and Postgres away after that."""

SILENCE_US: Final = 30_000_000
"""Silence of a gateway before which nobody may take it for dead."""

JOURNAL_PATIENCE_US: Final = 1_000_000
SETTLE_PATIENCE_US: Final = 2_000_000
"""How long a client waits for its last byte where the journal takes no charge, and then where Redis takes none."""

NOTED_EVERY_US: Final = 250_001
"""A quarter of a second, and what simulated time is rounded by."""

_KEPT_EVENTS: Final = 4_000


class Violation(AssertionError):
    """A promise does not hold; `story` is the call in question, where it is about one."""

    def __init__(self, sentence: str, story: Story | None = None) -> None:
        super().__init__(sentence)
        self.story = story


@dataclass(eq=False, slots=True)
class Story:
    """One call as the auditor knows it."""

    call_id: UUID
    owner: UUID
    request: CallRequest
    hold: HoldRequest
    model: Model
    terms: Terms
    gateway: str
    machine: str
    events: list[tuple[int, str, object]] = field(default_factory=list)
    tally: Tally = field(default_factory=lambda: Tally(BackendKind.OPENAI))
    is_held: bool = False
    is_sent: bool = False
    status: int = 0
    own: OwnCount | None = None
    amount: int | None = None
    """What the machine was told to settle, which is what the auditor had worked out."""
    is_released: bool = False
    was_asked: bool = False
    """Its hold was asked for: there was room for it at a backend."""
    journal_failed_us: int = 0
    """When the journal gave up its charge, or when its time is over."""
    settle_failed_us: int | None = None
    is_journaled: bool = False
    is_in_redis: bool = False
    is_over: bool = False
    is_orphan: bool = False
    """Its gateway was killed before the call was over."""
    kept: int | None = None
    """The price at the last checkpoint that Redis has; None without one of an accepted call."""
    ever_kept: set[int] = field(default_factory=set)
    sign: tuple[str, str] = ("", "")
    """Where its gateway shows signs of life, and under which name."""
    redis_forgot: bool = False
    """Redis lost something while the call was open or not booked."""
    disk_lost: bool = False
    has_notes: bool = False
    """Its gateway could make the file in which it notes its calls."""
    noted: int | None = None
    """The price at its last note in that file; None without one of an accepted call."""
    noted_us: int = 0
    notes_lost: bool = False
    """The memory or the disk of its machine was lost."""
    end_lost: bool = False
    """Redis lost something after it had been told its end."""
    was_free: bool = False
    """Its hold was given back when it might have been, by what was known then; what is lost later does not matter."""
    _priced: tuple[Tally, int, Terms] | None = None
    _price: int = 0

    @property
    def is_left_noted(self) -> bool:
        """Whether the next process on its machine finds a note of it, and of no charge of its."""
        return self.is_orphan and self.noted is not None and not self.notes_lost

    @property
    def is_accepted(self) -> bool:
        """Whether a backend has the call, so that it spends tokens on it."""
        return self.is_sent and self.status in (0, 200)

    @property
    def possible(self) -> set[int]:
        """What it may cost in the end; where nothing was lost it is one amount."""
        if self.amount is not None:
            if self.is_journaled and not self.disk_lost:
                return {self.amount}
            # Without its journal nobody knows better than a sweeper that was first, or the last note.
            return {self.amount} | self._ever_known
        return self._ever_known

    @property
    def _ever_known(self) -> set[int]:
        return self.ever_kept | {self.noted} if self.is_orphan and self.noted is not None else self.ever_kept

    @property
    def may_be_free(self) -> bool:
        """Whether it may end without a charge."""
        if self.was_free:
            return True
        if self.amount is not None:
            if self.is_journaled and not self.disk_lost:
                return False
            if self.is_left_noted and not self.is_in_redis:
                return self.end_lost
            return self.redis_forgot or (self.is_orphan and not self.is_in_redis and self.kept is None)
        if self.is_orphan and self.has_notes and not self.notes_lost:
            # A note that no backend has it is younger than the checkpoint.
            return self.is_released or self.noted is None or self.end_lost
        return self.is_released or self.kept is None or not self.is_orphan or self.redis_forgot

    def so_far(self) -> int:
        """What it costs up to now, by what a checkpoint can know."""
        # It is asked four times a second of every call, and there is seldom news.
        news = (self.tally, self.tally.reads, self.terms)
        if news != self._priced:
            self._priced, self._price = news, self.terms.cost(self.tally.so_far(self.request.input_bound))
        return self._price


@dataclass(slots=True)
class Money:
    """An organization's money as the auditor knows it, in units. `slack` is what known bounds add to its limit."""

    credits: int = 0
    limit: int = 0
    spent: int = 0
    held: dict[str, int] = field(default_factory=dict)
    slack: int = 0

    @property
    def free(self) -> int:
        """What is left for the next hold."""
        return self.credits - self.spent - sum(self.held.values()) + self.limit + self.slack


@dataclass(frozen=True, slots=True)
class Row:
    """A row of `charge`, read without the program's own code."""

    call_id: UUID
    owner: UUID
    corrects: UUID | None
    amount: int
    hold: int
    ending: str
    price_version_ids: tuple[UUID, ...]


class Auditor:
    """Fed by the actors with what happens; raises `Violation` at once where a promise is broken."""

    def __init__(self, now_us: Callable[[], int], report: Callable[[Violation], None]) -> None:
        self._now_us = now_us
        self._report = report
        self.calls: dict[str, Story] = {}
        self.money: dict[UUID, Money] = defaultdict(Money)
        self.versions: dict[UUID, Sold] = {}
        self.events: list[tuple[int, str, object]] = []
        self.endings: Counter[str] = Counter()
        self.trace = 0
        """A number that follows from all events and their times: two runs of a seed have the same."""
        self._settled: set[str] = set()
        self._signs: dict[tuple[str, str], int] = {}
        self._gone: set[str] = set()

    def broken(self, sentence: str, story: Story | None = None) -> Violation:
        # Said aloud too, because the program may catch what is raised in the middle of it.
        violation = Violation(sentence, story)
        self._report(violation)
        return violation

    # Told by gateways ------------------------------------------------------------------------------------------------

    def note(self, story: Story | None, sentence: str, about: object = "") -> None:
        """Remember an event, for the case that it matters."""
        self.trace = hash((self.trace, self._now_us(), len(sentence)))
        events = self.events if story is None else story.events
        if len(events) < _KEPT_EVENTS:
            events.append((self._now_us(), sentence, about))

    def began(self, request: CallRequest, hold: HoldRequest, model: Model, gateway: str, machine: str) -> Story:
        """A call was admitted: its hold must be its highest possible price at prices that are in force."""
        now_us = self._now_us()
        pinned = hold.rates.version_ids
        for name in pinned:
            sold = self.versions.get(name)
            if sold is None or sold.model != model.id or sold.since_us > now_us:
                raise self.broken(f"call {hold.origin.call_id} pins the price {name}, which is not in force")
            if sold.until_us is not None and now_us > sold.until_us + STALE_PRICE_US:
                raise self.broken(f"call {hold.origin.call_id} pins the price {name}, which has ended")
        terms = _terms(request, model, prices_of(self.versions, pinned))
        origin = hold.origin
        story = Story(origin.call_id, origin.organization_id, request, hold, model, terms, gateway, machine)
        self.calls[str(origin.call_id)] = story
        self.note(story, "begins", hold.amount)
        if hold.amount != terms.ceiling:
            raise self.broken(f"a hold of {hold.amount} for a call of at most {terms.ceiling}", story)
        return story

    def asks(self, story: Story) -> None:
        """Its hold is asked for."""
        story.was_asked = True

    def tightened(self, story: Story, hold: HoldRequest) -> None:
        """Its prompt was counted: the hold covers fewer tokens."""
        if hold.amount >= story.hold.amount:
            raise self.broken("a second hold is not smaller than the first", story)
        story.hold = hold
        story.terms = Terms(hold.input_bound, hold.output_bound, story.terms.prices)
        if hold.amount != story.terms.ceiling:
            raise self.broken(f"a hold of {hold.amount} for a call of at most {story.terms.ceiling}", story)

    def held(self, story: Story) -> None:
        """Its hold was acknowledged."""
        story.is_held = True
        self.note(story, "held")

    def connects(self, story: Story, kind: BackendKind) -> None:
        """It is about to be sent to a backend."""
        if not story.is_held:
            raise self.broken("a byte goes to a backend before the hold is acknowledged", story)
        if story.amount is not None or story.is_released:
            raise self.broken("a call is sent to a backend after its end", story)
        story.tally, story.is_sent, story.status = Tally(kind), False, 0
        self.note(story, "connects", kind.value)

    def sees(self, story: Story, events: tuple[tuple[Fact, ...], ...]) -> None:
        """Bytes of the backend are about to be fed to its machine."""
        story.tally.see(events, story.hold.output_bound)
        if events:
            self.note(story, "bytes", events)

    def settles(self, story: Story, charge: Charge) -> None:
        """Its machine says what it costs: to the unit what the auditor says."""
        expected = min(story.terms.cost(story.tally.owed(story.own, story.model.billed_count)), story.hold.amount)
        self.note(story, "settles", (charge.ending.value, charge.amount))
        if story.amount is not None or story.is_released:
            raise self.broken("a call ends twice", story)
        if charge.amount != expected:
            raise self.broken(f"charged {charge.amount}, the call cost {expected}", story)
        if not 0 <= charge.amount <= story.hold.amount:
            raise self.broken(f"charged {charge.amount} of a hold of {story.hold.amount}", story)
        if (charge.ending is Ending.HOLD_SPENT) != story.tally.is_spent:
            raise self.broken(f"ended as {charge.ending}; the hold was spent: {story.tally.is_spent}", story)
        if not story.is_accepted:
            raise self.broken("a call is charged that no backend has accepted", story)
        story.amount = charge.amount
        # From here on it is the journal's turn, which has a second.
        story.journal_failed_us = self._now_us() + JOURNAL_PATIENCE_US
        self.endings[charge.ending.value] += 1

    def releases(self, story: Story, reason: str) -> None:
        """Its machine gives the hold back: nothing may have been generated for it."""
        self.note(story, "releases", reason)
        if story.amount is not None or story.is_released:
            raise self.broken("a call ends twice", story)
        if story.is_accepted and story.tally.has_output:
            raise self.broken("nothing is charged for what was generated", story)
        story.is_released = True
        self.endings["void"] += 1

    def claims(self, story: Story, *, is_accepted: bool) -> None:
        """Its machine would let a checkpoint or a note say whether a backend has it."""
        if is_accepted is not story.is_accepted:
            raise self.broken(f"accepted, as its machine says: {is_accepted}; in truth: {story.is_accepted}", story)

    def notes(self, story: Story, *, is_accepted: bool) -> None:
        """How far it has come is noted beside the journal, where it outlives its process."""
        self.claims(story, is_accepted=is_accepted)
        story.noted, story.noted_us = story.so_far() if is_accepted else None, self._now_us()

    def durable(self, story: Story, *, journal: bool = False, redis: bool = False) -> None:
        """Its charge was acknowledged by the journal's disk, or by Redis."""
        story.is_journaled |= journal
        story.is_in_redis |= redis
        self.note(story, "is durable", "journal" if journal else "redis")

    def journal_failed(self, story: Story) -> None:
        """The journal has not taken its charge."""
        story.journal_failed_us = min(story.journal_failed_us, self._now_us())
        self.note(story, "is not journaled")

    def settle_failed(self, story: Story) -> None:
        """Redis has not taken its charge; it is offered again and again."""
        if story.settle_failed_us is None:
            story.settle_failed_us = self._now_us()
        self.note(story, "is not settled")

    def last_byte(self, story: Story) -> None:
        """The last byte of a call leaves: its charge is durable, or journal and Redis were both away for too long."""
        self.note(story, "last byte")
        if story.amount is None or story.is_journaled or story.is_in_redis:
            return
        failed_us = story.settle_failed_us
        if failed_us is None or self._now_us() < max(failed_us, story.journal_failed_us) + SETTLE_PATIENCE_US:
            raise self.broken("the last byte leaves before the charge is durable", story)

    def over(self, story: Story, error: TollgateError | None) -> None:
        """Its machine has ended and its client is served."""
        story.is_over = True
        if story.is_held and story.amount is None and not story.is_released:
            raise self.broken("a call has ended, and its hold has not", story)
        if story.amount is None and not story.is_released:
            self.note(story, "is refused", error)
            self.endings["refused" if story.was_asked else "turned away"] += 1

    def story_of(self, call: object) -> Story:
        """The call of this id."""
        story = self.calls.get(str(call))
        if story is None:
            raise self.broken(f"there is no call {call}")
        return story

    def orphaned(self, gateway: str, *, was_frozen: bool) -> None:
        """A gateway is gone, by what end ever: what is not over now stays as it is."""
        self._gone.add(gateway)
        for story in self.calls.values():
            if story.gateway == gateway and not (story.is_over and story.is_in_redis):
                story.is_orphan = True
                self.note(story, "its gateway is gone", story.noted)
                is_open = story.is_accepted and story.amount is None and not story.is_released
                if not (story.has_notes and is_open):
                    continue
                if story.noted is None:
                    raise self.broken("a call is at a backend and not noted", story)
                if not was_frozen and self._now_us() > story.noted_us + NOTED_EVERY_US:
                    raise self.broken("a call is at a backend, and its last note is old", story)

    def lost_memory(self, machine: str) -> None:
        """A machine has died: what its gateways had noted of their calls is lost, and no more than that."""
        for story in self.calls.values():
            if story.machine == machine:
                story.notes_lost = True
                self.note(story, "the memory of its machine is lost")

    def lost_disk(self, machine: str) -> None:
        """A machine lost its disk: charges that were on it are in Redis or Postgres alone."""
        for story in self.calls.values():
            if story.machine == machine:
                story.disk_lost = story.notes_lost = True
                self.note(story, "the disk of its machine is lost")

    # Told by Redis ---------------------------------------------------------------------------------------------------

    def observe(self, verb: str, keys: Sequence[Argument], values: Sequence[Argument]) -> Callable[[Any], None] | None:
        """A program sends a script; what is given is called with each of its replies, in the order of Redis."""
        match verb:
            case "hold":
                return lambda reply: self._hold_ran(str(keys[7]), values, reply)
            case "settle" | "recover":
                return lambda reply: self._settle_ran(verb, values) if reply else None
            case "void" | "abandon":
                return lambda reply: self._void_ran(verb, values) if reply else None
            case "checkpoint":
                sign = (str(keys[0]), str(values[0]))
                stories = [story for value in values if isinstance(value, str) and (story := self.calls.get(value))]
                points = [(story, story.so_far() if story.is_accepted else None) for story in stories]
                return lambda _: self._checkpoint_ran(sign, points)
            case "install":
                owners = [UUID(str(key).rpartition(":")[2]) for key in keys[3::5]]
                return lambda reply: self._install_ran(owners) if reply else None
            case _:
                return None

    def _hold_ran(self, instances: str, values: Sequence[Argument], reply: Any) -> None:
        call, amount, instance = str(values[1]), int(values[2]), str(values[5])
        story = self.calls[call]
        money = self.money[story.owner]
        if reply[0] != b"placed" or call in money.held:
            return
        story.sign = (instances, instance)
        self._alive(story.sign)
        money.held[call] = amount
        self.note(story, "is placed in Redis", amount)
        if money.free < 0:
            raise self.broken(f"organization {story.owner} is {-money.free} below its limit", story)

    def _settle_ran(self, verb: str, values: Sequence[Argument]) -> None:
        call, amount = str(values[0]), int(values[3])
        story = self.story_of(call)
        money = self.money[story.owner]
        is_recovered = b'"ending":"recovered"' in bytes(values[4])  # type: ignore[arg-type]
        held = money.held.pop(call, None)
        self.note(story, "is settled in Redis", ("recovered" if is_recovered else "", amount))
        if is_recovered:
            self._given_up(verb, story)
        if held is None or is_recovered:
            # Without a hold it was not foreseen; a recovered one may be corrected, and give money back.
            money.slack += amount
        if call not in self._settled:
            self._settled.add(call)
            money.spent += amount
        elif not story.redis_forgot:
            # Booking would leave it out and give the money back, but until then the customer is short of it.
            raise self.broken("a call is settled twice in Redis", story)

    def _void_ran(self, verb: str, values: Sequence[Argument]) -> None:
        call = str(values[0])
        story = self.calls[call]
        self.money[story.owner].held.pop(call, None)
        self.note(story, "is voided in Redis", values[3])
        story.was_free |= story.may_be_free
        if values[3] == "abandoned":
            self._given_up(verb, story)

    def _given_up(self, verb: str, story: Story) -> None:
        """A call is ended, and not by its machine."""
        if verb in ("recover", "abandon"):
            # A sweeper does, however long its sweep took: a gateway that came back meanwhile is left alone.
            if self._now_us() - self._signs.get(story.sign, -SILENCE_US) < SILENCE_US:
                raise self.broken("a sweeper ends a call whose gateway has just shown a sign of life", story)
            return
        # A gateway gives holds back of calls that have ended in it, where Redis may have lost that; and whoever takes
        # over the journal of a dead process knows that it is dead, and need not wait.
        has_ended = story.is_released or str(story.call_id) in self._settled
        if not (has_ended or story.gateway in self._gone):
            raise self.broken("a hold is given back before its call has ended", story)

    def _checkpoint_ran(self, sign: tuple[str, str], points: Sequence[tuple[Story, int | None]]) -> None:
        self._alive(sign)
        for story, cost in points:
            is_held = str(story.call_id) in self.money[story.owner].held
            if is_held:
                story.kept = cost
            if cost is not None and (is_held or story.redis_forgot):
                # A Redis that was put back has holds of which only it knows.
                story.ever_kept.add(cost)
            self.note(story, "is kept by a checkpoint", cost)

    def _install_ran(self, owners: Iterable[UUID]) -> None:
        """Balances are made anew, where Redis had lost writes too, and what was held meanwhile is held no more."""
        for owner in owners:
            money = self.money[owner]
            money.slack += sum(money.held.values())
            for call in money.held:
                story = self.calls[call]
                story.redis_forgot, story.kept = True, None
                self.note(story, "its hold is not carried over")
            money.held.clear()

    def _alive(self, sign: tuple[str, str]) -> None:
        self._signs[sign] = self._now_us()

    def redis_forgets(self, sentence: str, lost: Mapping[UUID, int]) -> None:
        """Redis lost what it knew, and with it settles of these amounts that may be in no book.

        Running calls have no hold now: they end late, beyond the limit of their organization at worst.
        """
        self.note(None, sentence, sum(lost.values()))
        self._signs.clear()
        for owner, money in self.money.items():
            money.slack += sum(money.held.values()) + lost.get(owner, 0)
            money.held.clear()
        for call, story in self.calls.items():
            story.redis_forgot = True
            story.end_lost |= call in self._settled
            story.kept = None

    def end_forgotten(self, story: Story) -> None:
        """Redis no longer remembers that this call has ended, and so takes another end of it."""
        self._settled.discard(str(story.call_id))

    # Told by the operator --------------------------------------------------------------------------------------------

    def granted(self, owner: UUID, amount: int) -> None:
        """An organization has more credit."""
        self.money[owner].credits += amount
        self.note(None, "credit is granted", (owner, amount))

    def taken_back(self, owner: UUID, amount: int) -> None:
        """What was left of a grant is gone; holds may have counted on it a moment before."""
        money = self.money[owner]
        money.credits -= amount
        money.slack += amount
        self.note(None, "a grant is voided", (owner, amount))

    def limited(self, owner: UUID, limit: int) -> None:
        """An organization has another credit limit; what is held already stays held."""
        money = self.money[owner]
        money.slack += max(0, money.limit - limit)
        money.limit = limit
        self.note(None, "the credit limit is changed", (owner, limit))

    def priced(self, version_id: UUID, sold: Sold) -> None:
        """A price was published; the one before it ends where it begins."""
        for name, earlier in self.versions.items():
            if (earlier.model, earlier.meter, earlier.until_us) == (sold.model, sold.meter, None):
                self.versions[name] = replace(earlier, until_us=sold.since_us)
        self.versions[version_id] = sold
        self.note(None, "a price is published", (sold.model, sold.meter.value, sold.price))

    # What must be true at rest ---------------------------------------------------------------------------------------

    def check_booked(self, rows: Iterable[Row]) -> None:
        """A minute after all parts are up: each call that must be charged has its row, none has two."""
        charged = self._by_call(rows)
        for story in self.calls.values():
            if not story.may_be_free and story.call_id not in charged:
                raise self.broken("a call that must be charged is not booked", story)

    def check_amounts(self, rows: Iterable[Row]) -> None:
        """After every journal was replayed: each call costs what it must, to the unit."""
        charged = self._by_call(rows)
        for story in self.calls.values():
            if story.call_id in charged:
                total = sum(row.amount for row in charged[story.call_id])
                if total not in story.possible:
                    raise self.broken(f"booked {total}, possible are {sorted(story.possible)}", story)
            elif not story.may_be_free:
                raise self.broken("a call that must be charged is not booked", story)

    def _by_call(self, rows: Iterable[Row]) -> dict[UUID, list[Row]]:
        charged: dict[UUID, list[Row]] = {}
        for row in sorted(rows, key=lambda row: row.corrects is not None):
            call_id = row.corrects or row.call_id
            story = self.calls.get(str(call_id))
            if story is None:
                raise self.broken(f"a charge of the unknown call {call_id}")
            before = charged.setdefault(call_id, [])
            if len(before) != (0 if row.corrects is None else 1):
                raise self.broken(f"a row of {row.amount} too many: {[one.amount for one in before]} are there", story)
            before.append(row)
            if (row.owner, row.hold, row.price_version_ids) != (
                story.owner, story.hold.amount, story.hold.rates.version_ids,
            ):  # fmt: skip
                raise self.broken(f"booked on other terms than those of its hold: {row}", story)
            if not 0 <= sum(one.amount for one in before) <= row.hold:
                raise self.broken(f"booked {[one.amount for one in before]}, held were {row.hold}", story)
        return charged


def _terms(request: CallRequest, model: Model, prices: Mapping[Meter, int]) -> Terms:
    text = request.input_bound
    prompt = model.context_length if text is None else min(model.context_length, text + TEMPLATE_TOKENS)
    made = 0
    if request.endpoint is not Endpoint.EMBEDDINGS:
        made = min(request.max_output_tokens or model.context_length, model.context_length) * request.choices
    return Terms(prompt, made, prices)
