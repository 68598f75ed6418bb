"""An explicit-state model of names on S3 that are objects of their own or in batches.

Every actor is a little machine whose steps are single requests; `explore` visits every state that
any order of them leads to, and checks that each name is a linearizable register. An actor that is
never scheduled again has crashed, and a request that lands late is one whose actor was late: an
answer only adds to what must hold. An answer comes with the last request, an invocation with the
first. What waits for nobody else's doing (to PUT the batch itself) is no step.
"""

from __future__ import annotations

from explored import explore_all
from linearizability import History, Id, Operation, answer, begin, effects_of, invoke
from s3_batches_clients import ClientSteps
from s3_batches_collectors import CollectorSteps
from s3_batches_rules import (
    LIVE,
    VERBS,
    Client,
    Collector,
    Meaning,
    Rules,
    Scenario,
    State,
    Steps,
    put,
)


class Model:
    def __init__(self, scenario: Scenario, rules: Rules) -> None:
        self.scenario = scenario
        self.rules = rules
        self.meaning = Meaning(rules)
        operations: dict[Id, Operation] = {}
        for i, tasks in enumerate(scenario.clients):
            for t, task in enumerate(tasks):
                verb = VERBS.get(task.verb, task.verb)
                for again in range(2):  # a name below a prefix may be erased twice
                    operations[i, t, again] = Operation(verb, task.value, task.seen)
        self.effects = effects_of(operations)
        self.answers: dict[tuple[History, Id, object], History] = {}

    def begin(self) -> State:
        s = self.scenario
        meaning = Meaning(Rules())
        values = [meaning.value(i, single, s.root) for i, single in enumerate(s.singles)]
        return State(
            s.singles,
            s.root,
            tuple(map(begin, values)),
            (Client(),) * len(s.clients),
            (Collector(),) * s.collectors,
        )

    def steps(self, s: State) -> Steps:
        for i in range(len(s.clients)):
            if s.clients[i].task < len(self.scenario.clients[i]):
                yield from ClientSteps(self, s, i).steps()
        for i in range(len(s.collectors)):
            yield from CollectorSteps(self, s, i).steps()
        yield from self.hour(s)

    def hour(self, s: State) -> Steps:
        """An hour ends. What takes minutes sees one end at most; and begins anew if it took longer:
        its actor looks at its clock before it believes an answer, or signs a request."""
        ages = [age for e in s.root.entries for age in (e.named, e.age)]
        ages += [drop.age for drop in s.root.drops]
        if not s.collectors or not any(0 <= age < 2 for age in ages):
            return  # nobody looks at ages, or all are old
        entries = tuple(
            entry._replace(
                age=entry.age if entry.age == LIVE else min(2, entry.age + 1),
                named=min(2, entry.named + 1),
            )
            for entry in s.root.entries
        )
        drops = tuple(drop._replace(age=min(2, drop.age + 1)) for drop in s.root.drops)
        root = s.root._replace(entries=entries, drops=drops)
        clients = tuple(self.older(client) for client in s.clients)
        collectors = tuple(self.older_collector(each) for each in s.collectors)
        yield "hour", s._replace(root=root, clients=clients, collectors=collectors)

    def older(self, c: Client) -> Client:
        reading = c.at in ("root", "single", "both", "doubt") and self.rules.reads_take_minutes
        signing = c.at in ("weak", "tombstone") and self.rules.weak_take_minutes
        deleting = c.at == "delete" and self.rules.deletes_take_minutes
        if not (reading or signing or deleting):
            return c
        if c.hours == 0:
            return c._replace(hours=1)
        return c._replace(at="read", hours=0, single=None, root=None, number=0)

    def older_collector(self, c: Collector) -> Collector:
        shedding = c.at == "shed" and self.rules.shed_soon
        clearing = c.at == "clear" and self.rules.clear_soon
        if not (shedding or clearing):
            return c
        return c._replace(hours=1) if c.hours == 0 else Collector()

    def invoke(self, s: State, names: tuple[int, ...], *ids: Id) -> State:
        histories = s.histories
        for name in names:
            for operation in ids:
                histories = put(histories, name, invoke(histories[name], operation))
        return s._replace(histories=histories)

    def answer(self, s: State, names: tuple[int, ...], operation: Id, result: object) -> State:
        histories = s.histories
        for name in names:
            key = histories[name], operation, result
            if key not in self.answers:
                self.answers[key] = answer(key[0], self.effects, operation, result)
            histories = put(histories, name, self.answers[key])
        return s._replace(histories=histories)


def wrong(s: State) -> str:
    """What must never be."""
    for name, history in enumerate(s.histories):
        if not history.possible:
            return f"name {name}: no order explains that answer"
    return ""


def explore(scenario: Scenario, rules: Rules, *, states_max: int) -> tuple[int, list[str]]:
    """(states visited, the steps to the first that must never be). Raises AssertionError if there
    are more than `states_max`."""
    model = Model(scenario, rules)
    return explore_all(model.begin(), model.steps, wrong, states_max=states_max)
