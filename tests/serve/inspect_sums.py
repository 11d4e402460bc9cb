"""A task of three items for `inspect eval`; run by the clients' own Python, which has nothing of ours."""

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import match
from inspect_ai.solver import generate


@task
def sums() -> Task:
    """Any answer will do: what is tested is the way there and back."""
    samples = [Sample(id=str(n), input=f"What is {n}+2?", target=str(n + 2)) for n in range(3)]
    return Task(dataset=samples, solver=generate(), scorer=match())
