"""Taking up a reply in its middle: the state of a machine after ids that were written earlier.

Promises: the state is the one that the machine had when it wrote these ids itself: budgets, phases and a
closing marker that is half written count on; a forced string of which the ids hold a part is completed; ids
that this policy could not have written are refused with their place. One thing is not known from ids: a
marker that we wrote because the model ended its text inside the thinking (`closed_by` "eos") is taken to be
the model's own.
Does not: take up replies under policies that refuse closes with wait strings or count refusals, or that look
at scores: what they did cannot be told from the ids.
"""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.errors import UsageError
from tutelage.think.machine import State
from tutelage.think.policy import ThinkingPolicy


def check_takes_up(policy: ThinkingPolicy) -> None:
    """Raises UsageError for a policy under which a reply cannot be taken up in its middle."""
    if policy.continuous:
        raise UsageError(
            "thinking policy: a reply cannot be taken up in its middle where each token starts from the last "
            "one's state (continuous); leave it out"
        )
    if policy.refuse_closes or (policy.min_tokens and policy.wait is not None):
        raise UsageError(
            "thinking policy: a reply cannot be taken up in its middle where closes are refused (wait, "
            "refuse_closes); leave them out"
        )
    if policy.rank is not None:
        raise UsageError(
            f'thinking policy: a reply cannot be taken up in its middle with close "{policy.close}", which '
            'needs the scores of every step; use "hard" or "newline"'
        )


def take_up(state: State, ids: Sequence[int]) -> None:
    """Bring `state`, fresh from `Machine.start`, to where it was after it had written `ids`; its `opening`
    becomes what is forced after them. The reply may be over by then (`state.finished`).

    Raises UsageError when the policy is one under which this cannot be told (see `check_takes_up`), and for
    ids that the policy could not have written."""
    check_takes_up(state.machine.policy)
    for place, token in enumerate(ids):
        if place == len(state.ids):
            if state.finished:
                raise UsageError(
                    f"the {len(ids)} ids to go on from hold more than one reply: it is over after {place}"
                )
            state.step(token)
        if place >= len(state.ids) or state.ids[place] != token:
            raise UsageError(
                f"the ids to go on from are no reply under this thinking policy: at place {place} it does "
                f"not allow the id {token}"
            )
    state.opening = tuple(state.ids[len(ids) :])
