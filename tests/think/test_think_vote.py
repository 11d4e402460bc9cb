"""The vote: most wins, first given breaks ties, None never wins."""

from hypothesis import given
from hypothesis import strategies as st

from tutelage.think.vote import majority


def test_known_votes():
    assert majority(["1", "2", "2"]) == "2"
    assert majority(["1", "2"]) == "1"
    assert majority([None, None, "7"]) == "7"
    assert majority([None]) is None and majority([]) is None


@given(st.lists(st.none() | st.sampled_from("abc"), max_size=12))
def test_the_winner_has_the_most_votes_and_came_first_among_equals(answers):
    winner = majority(answers)
    given_ = [answer for answer in answers if answer is not None]
    assert (winner is None) == (not given_)
    if given_:
        most = max(given_.count(answer) for answer in given_)
        assert winner == next(answer for answer in given_ if given_.count(answer) == most)
