"""Estimators for scikit-learn: `MLPClassifier` and `MLPRegressor`, trained by gradstack's core.

They take scikit-learn's constructor and have its attributes; see docs/scikit-learn.md for what is
added and what differs.
"""

from __future__ import annotations

try:
    import sklearn as _sklearn  # noqa: F401
except ImportError as error:
    raise ImportError(
        "gradstack.sklearn needs scikit-learn: pip install gradstack[sklearn]"
    ) from error

from gradstack.sklearn._classifier import MLPClassifier
from gradstack.sklearn._regressor import MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor"]
