"""Training of an estimator: `gradstack.fit` with one look per epoch, or SciPy's L-BFGS-B."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning

import gradstack as gs
from gradstack import nn, optim
from gradstack.sklearn._net import linears

if TYPE_CHECKING:
    from gradstack._callbacks import FitState
    from gradstack.sklearn._base import BaseMLP

Array = npt.NDArray[Any]

_SMALLEST_LR = 1e-6  # where scikit-learn's adaptive rate ends
_ADAPTIVE_DIVISOR = 5.0


class TrainingSet(NamedTuple):
    """Arrays in the net's dtype; weights are None or positive."""

    X: Array
    y: Array
    weight: Array | None

    @property
    def mean_weight(self) -> float:
        """Average weight of a sample."""
        return 1.0 if self.weight is None else float(self.weight.mean())


class HeldOut(NamedTuple):
    """Validation data; y as the user gives it."""

    X: Array
    y: Array
    weight: Array | None


def make_optimizer(est: BaseMLP, decay: float) -> optim.Optimizer:
    """The optimiser of a stochastic solver; `decay` is alpha per sample of a batch."""
    scale = est._head.scale
    lr = float(est.learning_rate_init)
    shared: dict[str, Any] = {"weight_decay": decay * scale, "decay_bias": False}
    if est.solver == "sgd":
        nesterov = bool(est.nesterovs_momentum and est.momentum > 0)
        return optim.SGD(lr / scale, momentum=est.momentum, nesterov=nesterov, **shared)
    betas = (est.beta_1, est.beta_2)
    return optim.Adam(lr, betas=betas, eps=est.epsilon * scale, **shared)


class Watch:
    """What scikit-learn does at the end of an epoch."""

    def __init__(
        self,
        est: BaseMLP,
        data: TrainingSet,
        steps: int,
        held_out: HeldOut | None,
        incremental: bool,
    ) -> None:
        self.est = est
        self.count = len(data.X)
        self.steps = steps
        self.penalty = 0.5 * est.alpha / (self.count * data.mean_weight)
        self.held_out = held_out
        self.incremental = incremental
        self.squares = squared_weights(est._net)
        self.best: Array | None = None
        # Of an optimiser that goes on, the rate may have fallen.
        self.lr = float(est._optimizer.lr) * (est._head.scale if est.solver == "sgd" else 1.0)

    def __call__(self, state: FitState) -> Any:
        """Record the epoch; `gs.STOP` where scikit-learn would stop."""
        est = self.est
        est.n_iter_ += 1
        est.t_ += self.count
        est.loss_ = self._loss(state.loss)
        est.loss_curve_.append(est.loss_)
        if est.verbose:
            print(f"Iteration {est.n_iter_}, loss = {est.loss_:.8f}")
        if self.held_out is None:
            self._compare_loss()
        else:
            self._compare_score(self.held_out)
        if est.solver == "sgd" and est.learning_rate == "invscaling":
            self._change_lr(est.learning_rate_init / (est.t_ + 1) ** est.power_t)
        if est._no_improvement_count > est.n_iter_no_change:
            if self._stop():
                return gs.STOP
            est._no_improvement_count = 0
        if est.n_iter_ == est.max_iter and not self.incremental:
            warnings.warn(
                f"Stochastic Optimizer: Maximum iterations ({est.max_iter}) reached and the "
                "optimization hasn't converged yet.",
                ConvergenceWarning,
                stacklevel=2,
            )
        return None

    def _loss(self, cost: float) -> float:
        """scikit-learn's loss: with the penalty at every step, between its known ends a line."""
        head = self.est._head
        before, self.squares = self.squares, squared_weights(self.est._net)
        total = self.steps * before + 0.5 * (self.steps - 1) * (self.squares - before)
        return cost * head.loss_scale + head.loss_offset + self.penalty * total

    def _compare_loss(self) -> None:
        est = self.est
        if est.loss_ > est.best_loss_ - est.tol:
            est._no_improvement_count += 1
        else:
            est._no_improvement_count = 0
        est.best_loss_ = min(est.best_loss_, est.loss_)

    def _compare_score(self, held_out: HeldOut) -> None:
        est = self.est
        score = float(est._score_raw(np.asarray(est._net(held_out.X)), held_out.y, held_out.weight))
        est.validation_scores_.append(score)
        if est.verbose:
            print(f"Validation score: {score:f}")
        if score < est.best_validation_score_ + est.tol:
            est._no_improvement_count += 1
        else:
            est._no_improvement_count = 0
        if score > est.best_validation_score_:
            est.best_validation_score_ = score
            self.best = np.array(est._net.w)

    def _stop(self) -> bool:
        est = self.est
        what = "Training loss" if self.held_out is None else "Validation score"
        message = (
            f"{what} did not improve more than tol={est.tol:f} for {est.n_iter_no_change} "
            "consecutive epochs."
        )
        if est.solver != "sgd" or est.learning_rate != "adaptive":
            self._say(f"{message} Stopping.")
            return True
        if self.lr <= _SMALLEST_LR:
            self._say(f"{message} Learning rate too small. Stopping.")
            return True
        self._change_lr(self.lr / _ADAPTIVE_DIVISOR)
        self._say(f"{message} Setting learning rate to {self.lr:f}")
        return False

    def _say(self, text: str) -> None:
        if self.est.verbose:
            print(text)

    def _change_lr(self, lr: float) -> None:
        """Change the rate of SGD. scikit-learn's velocity contains it, the core's does not."""
        optimizer = self.est._optimizer
        for velocity in optimizer.state.values():
            velocity[...] *= self.lr / lr
        optimizer.lr = lr / self.est._head.scale
        self.lr = lr


def squared_weights(net: nn.Sequential) -> float:
    """Sum of the squares of all weights, biases left out."""
    return math.fsum(float(np.vdot(layer.weight, layer.weight)) for layer in linears(net))


def train_stochastic(
    est: BaseMLP,
    data: TrainingSet,
    held_out: HeldOut | None,
    incremental: bool,
    random_state: np.random.RandomState,
) -> None:
    """Epochs of SGD or Adam."""
    n = len(data.X)
    batch_size = min(200, n) if est.batch_size == "auto" else int(est.batch_size)
    if batch_size > n:
        warnings.warn(
            f"batch_size={batch_size} is larger than the {n} samples to train on; it is clipped",
            stacklevel=4,
        )
        batch_size = n
    made = make_optimizer(est, est.alpha / (batch_size * data.mean_weight))
    before = est._optimizer
    if not incremental or type(before) is not type(made):
        est._optimizer = made
    elif before.weight_decay != made.weight_decay:  # this call has another number of samples
        made.import_state(*before.export_state())
        made.lr = before.lr
        est._optimizer = made
    est.n_iter_ = 0
    watch = Watch(est, data, math.ceil(n / batch_size), held_out, incremental)
    try:
        gs.fit(
            est._net,
            data.X,
            data.y,
            cost=est._head.cost,
            optimizer=est._optimizer,
            batch_size=batch_size,
            epochs=1 if incremental else est.max_iter,
            shuffle=est.shuffle,
            seed=int(random_state.randint(np.iinfo(np.int32).max)),
            sample_weight=data.weight,
            callbacks=watch,
            num_threads=est.n_threads,
        )
    except KeyboardInterrupt:
        warnings.warn("Training interrupted by user.", stacklevel=4)
    except FloatingPointError as error:
        raise ValueError(
            f"Solver produced non-finite values: {error}. The data may contain large values and "
            "need to be preprocessed, or the learning rate is too large."
        ) from error
    if watch.best is not None:
        est._net.w[...] = watch.best


def train_lbfgs(est: BaseMLP, data: TrainingSet) -> None:
    """SciPy's L-BFGS-B, as scikit-learn calls it, on the loss and gradient of the core."""
    from scipy.optimize import minimize

    net, head = est._net, est._head
    fun, x0 = gs.as_scipy(net, head.cost, data.X, data.y, data.weight)
    is_weight = np.concatenate(
        [np.full(p.size, name.endswith("weight")) for name, p in net.named_parameters()]
    )
    decay = est.alpha / (len(data.X) * data.mean_weight)

    def penalty(w: Array) -> tuple[float, Array]:
        weights = np.where(is_weight, w, 0.0)
        return 0.5 * decay * float(weights @ weights), decay * weights

    def objective(w: Array) -> tuple[float, Array]:
        value, gradient = fun(w)
        more, slope = penalty(w)
        return value / head.scale + more, gradient / head.scale + slope

    options = {"maxfun": est.max_fun, "maxiter": est.max_iter, "gtol": est.tol}
    result = minimize(objective, x0, method="L-BFGS-B", jac=True, options=options)
    if not np.isfinite(result.x).all():
        raise ValueError("Solver produced non-finite weights: the data may need preprocessing.")
    net.w[...] = result.x
    est.n_iter_ = int(result.nit)
    est.loss_ = fun(result.x)[0] * head.loss_scale + head.loss_offset + penalty(result.x)[0]
    if est.verbose:
        print(f"L-BFGS-B: {result.nit} iterations, {result.nfev} evaluations, loss {est.loss_:.8f}")
    if not result.success:
        warnings.warn(
            f"lbfgs failed to converge after {result.nit} iterations: {result.message}",
            ConvergenceWarning,
            stacklevel=4,
        )
