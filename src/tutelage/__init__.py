"""tutelage: teach a small model to reason, pay for every trace once, and prove that it worked."""

__version__ = "0.1.0"
