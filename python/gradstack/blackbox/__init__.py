"""Zeroth-order methods: minimise a function that has values but no useful gradient.

For objectives with holes, stairs or plateaus, such as the share of samples that a net classifies
wrongly. `minimize` takes any callable; an `Objective` is the loss of a net as a function of its
parameters, of which whole populations are evaluated in parallel by the core.
"""

from gradstack.blackbox._methods import methods
from gradstack.blackbox._minimize import minimize
from gradstack.blackbox._objective import Objective
from gradstack.blackbox._result import Progress, Result

__all__ = ["Objective", "Progress", "Result", "methods", "minimize"]
