# The compiled core, see cpp/bindings.
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]
_Shape = tuple[int, ...]

__version__: str

def ops() -> list[dict[str, Any]]: ...
def costs() -> list[dict[str, Any]]: ...
def rules() -> list[dict[str, Any]]: ...
def show_config() -> dict[str, Any]: ...
def max_threads() -> int: ...

class _Clock:
    now: int

clock: _Clock

class ShortCall:
    def __call__(self, *args: Any, out: Any = ...) -> Any: ...

class NetBase:
    def _settle(self, call: ShortCall | None, /) -> None: ...

class Graph:
    def __init__(self) -> None: ...
    def parameter(self, name: str, shape: Sequence[int]) -> None: ...
    def add(self, kind: str, name: str, inputs: Sequence[str], **attrs: Any) -> None: ...
    def finish(self, outputs: Sequence[str]) -> None: ...
    @property
    def n_params(self) -> int: ...
    @property
    def input_shapes(self) -> list[_Shape]: ...
    @property
    def output_shapes(self) -> list[_Shape]: ...
    @property
    def outputs(self) -> list[str]: ...
    def stages(self) -> list[dict[str, Any]]: ...
    def parameters(self) -> list[dict[str, Any]]: ...

class _Cost(Protocol):
    def value(
        self, ybar: _Array, y: _Array | None, sample_weight: _Array | None = ...
    ) -> float: ...
    def per_sample(self, ybar: _Array, y: _Array | None) -> _Array: ...
    def gradient(
        self, ybar: _Array, y: _Array | None, sample_weight: _Array | None = ...
    ) -> _Array: ...
    def curvature(
        self,
        ybar: _Array,
        y: _Array | None,
        v: _Array,
        sample_weight: _Array | None = ...,
    ) -> _Array: ...

class _Jacobian(Protocol):
    def evaluate(
        self, w: _Array, xs: Sequence[_Array], out: _Array | None = ..., threads: int = ...
    ) -> _Array: ...
    def short_call(self, w: _Array) -> ShortCall: ...

class _PerSample(Protocol):
    def gradients(
        self,
        w: _Array,
        xs: Sequence[_Array],
        y: _Array | None,
        out: _Array | None = ...,
        threads: int = ...,
    ) -> _Array: ...
    def norms(
        self, w: _Array, xs: Sequence[_Array], y: _Array | None, threads: int = ...
    ) -> _Array: ...
    def clipped(
        self,
        w: _Array,
        xs: Sequence[_Array],
        y: _Array | None,
        max_norm: float,
        threads: int = ...,
    ) -> _Array: ...
    def fisher_diagonal(
        self, w: _Array, xs: Sequence[_Array], y: _Array | None, threads: int = ...
    ) -> _Array: ...
    def fisher_product(
        self,
        w: _Array,
        xs: Sequence[_Array],
        y: _Array | None,
        v: _Array,
        threads: int = ...,
    ) -> _Array: ...

class _Curvature(Protocol):
    def product(
        self,
        w: _Array,
        xs: Sequence[_Array],
        y: _Array | None,
        v: _Array,
        sample_weight: _Array | None = ...,
        threads: int = ...,
    ) -> _Array: ...

class _InputDerivatives(Protocol):
    def values(self) -> _Array: ...
    def directional(self) -> tuple[_Array, _Array | None]: ...
    def hessian(self) -> _Array: ...
    def pullback(
        self,
        dy: _Array | None = ...,
        djac: _Array | None = ...,
        ddiag: _Array | None = ...,
    ) -> tuple[_Array, _Array]: ...

class _Linearization(Protocol):
    @property
    def outputs(self) -> list[_Array]: ...
    def pull(
        self, dys: Sequence[_Array | None], want_dx: bool = ..., want_dw: bool = ...
    ) -> tuple[list[_Array], _Array]: ...
    def push(self, dxs: Sequence[_Array | None], dw: _Array | None = ...) -> list[_Array]: ...

class _Program(Protocol):
    def short_call(self, w: _Array, as_tuple: bool) -> ShortCall: ...
    def short_gradient(self, w: _Array, cost: _Cost, y: _Array | None) -> ShortCall: ...
    def forward(
        self,
        w: _Array,
        xs: Sequence[_Array],
        *,
        train: bool = ...,
        seed: int = ...,
        step: int = ...,
        threads: int = ...,
        outs: list[_Array] | None = ...,
    ) -> list[_Array]: ...
    def vjp(
        self,
        w: _Array,
        xs: Sequence[_Array],
        *,
        train: bool = ...,
        seed: int = ...,
        step: int = ...,
        threads: int = ...,
    ) -> _Linearization: ...
    def linearize(
        self,
        w: _Array,
        xs: Sequence[_Array],
        *,
        train: bool = ...,
        seed: int = ...,
        step: int = ...,
        threads: int = ...,
    ) -> _Linearization: ...
    def jvp(
        self,
        w: _Array,
        xs: Sequence[_Array],
        dxs: Sequence[_Array | None],
        dw: _Array | None = ...,
    ) -> tuple[list[_Array], list[_Array]]: ...
    def value_and_grad(
        self,
        w: _Array,
        xs: Sequence[_Array],
        y: _Array | None,
        cost: _Cost,
        sample_weight: _Array | None = ...,
        *,
        train: bool = ...,
        seed: int = ...,
        step: int = ...,
        threads: int = ...,
    ) -> tuple[float, _Array]: ...
    def backprop(
        self,
        w: _Array,
        xs: Sequence[_Array],
        y: _Array | None,
        cost: _Cost,
        per_sample: bool = ...,
    ) -> dict[str, Any]: ...

class _Optimizer(Protocol):
    t: int
    @property
    def state(self) -> _Array: ...
    @property
    def scalars(self) -> npt.NDArray[np.float64]: ...

class _Updater(Protocol):
    def step(self, w: _Array, dw: _Array, lr: float) -> None: ...

class _Trainer(Protocol):
    def short_call(self, w: _Array, y: _Array | None, threads: int, seed: int) -> ShortCall: ...
    def step(
        self,
        w: _Array,
        xs: Sequence[_Array],
        y: _Array | None,
        sample_weight: _Array | None,
        lr: float,
        threads: int = ...,
        train: bool = ...,
        seed: int = ...,
    ) -> float: ...
    def begin(
        self,
        w: _Array,
        X: Sequence[_Array],
        y: _Array | None,
        sample_weight: _Array | None,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        threads: int,
        check_finite: bool,
        allow_nonfinite_loss: bool,
    ) -> None: ...
    def run(self, lrs: npt.NDArray[np.float64]) -> list[float]: ...
    @property
    def position(self) -> dict[str, Any]: ...
    def seek(self, position: Mapping[str, Any]) -> None: ...
    @property
    def epoch(self) -> int: ...
    @property
    def step_in_epoch(self) -> int: ...
    @property
    def global_step(self) -> int: ...
    @property
    def steps_per_epoch(self) -> int: ...
    @property
    def last_loss(self) -> float: ...
    # Of devices: loss scale and good steps since it changed; updates until the end of each epoch.
    loss_scaling: tuple[float, int]
    @property
    def updates(self) -> list[int]: ...

class Connectivity:
    def __init__(
        self, out_features: int, in_features: int, edges: npt.NDArray[np.int32]
    ) -> None: ...
    @property
    def edges(self) -> npt.NDArray[np.int32]: ...
    @property
    def in_features(self) -> int: ...

class _Search(Protocol):
    def ask(self, left: int) -> _Array: ...
    def tell(self, values: npt.NDArray[np.float64]) -> None: ...
    @property
    def best(self) -> _Array: ...
    @property
    def best_value(self) -> float: ...
    @property
    def step(self) -> float: ...
    @property
    def generation(self) -> int: ...

class _Population(Protocol):
    def evaluate(self, w: _Array, threads: int = ...) -> npt.NDArray[np.float64]: ...
    def generation(self, search: _Search, left: int, threads: int = ...) -> int: ...

class _Evaluates:
    def evaluate(
        self,
        program: _Program,
        w: _Array,
        X: Sequence[_Array],
        y: _Array | None,
        cost: _Cost,
        sample_weight: _Array | None = ...,
        threads: int = ...,
    ) -> float: ...

class _Typed(_Evaluates):
    """What exists once for float32 and once for float64."""

    Optimizer: type[_Optimizer]
    def Cost(
        self,
        name: str,
        params: Sequence[float],
        class_weight: _Array | None = ...,
        reduction: str = ...,
    ) -> _Cost: ...
    def PyCost(self, impl: Any) -> _Cost: ...
    def Program(self, graph: Graph) -> _Program: ...
    def Trainer(
        self, graph: Graph, cost: _Cost, optimizer: _Optimizer, *, frozen: Sequence[str] = ...
    ) -> _Trainer: ...
    def Updater(
        self, graph: Graph, optimizer: _Optimizer, *, frozen: Sequence[str] = ...
    ) -> _Updater: ...
    def Jacobian(self, graph: Graph, wrt: Any, output: int = ...) -> _Jacobian: ...
    def PerSample(self, graph: Graph, cost: _Cost) -> _PerSample: ...
    def Curvature(self, graph: Graph, cost: _Cost, kind: str) -> _Curvature: ...
    def InputDerivatives(
        self, graph: Graph, w: _Array, x: _Array, order: int, threads: int = ...
    ) -> _InputDerivatives: ...
    def Search(
        self, method: str, x0: _Array, scale: _Array, population: int, budget: int, seed: int
    ) -> _Search: ...
    def Population(
        self,
        graph: Graph,
        cost: _Cost,
        xs: Sequence[_Array],
        y: _Array | None,
        sample_weight: _Array | None = ...,
    ) -> _Population: ...

class _OpenDevice(Protocol):
    @property
    def name(self) -> str: ...
    def to_half(self, values: _Array, precision: str) -> npt.NDArray[np.uint16]: ...
    def epilogues(self, op: str, precision: str = ...) -> list[str]: ...
    def from_half(
        self, bits: npt.NDArray[np.uint16], precision: str
    ) -> npt.NDArray[np.float32]: ...

class _DeviceArray:
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def device(self) -> str: ...
    def numpy(self) -> _Array: ...
    def take(self, rows: Any) -> _Array: ...
    def reshape(self, *shape: int) -> Self: ...
    def __len__(self) -> int: ...
    def __dlpack__(
        self,
        *,
        stream: int | None = ...,
        max_version: tuple[int, int] | None = ...,
        dl_device: tuple[int, int] | None = ...,
        copy: bool | None = ...,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

class _Device(_Evaluates):
    """Devices with memory of their own; float32."""

    DeviceArray: type[_DeviceArray]
    LentArray: Any
    def empty(self, device: _OpenDevice, shape: Sequence[int]) -> Any: ...
    def lend(self, device: _OpenDevice, array: Any, name: str, writable: bool = ...) -> Any: ...
    def synchronize(self, device: _OpenDevice) -> None: ...
    def outputs_into(self, at: Any, outs: Sequence[Any]) -> None: ...
    def pull_into(
        self, at: Any, dys: Sequence[Any], dxs: Sequence[Any], dw: _DeviceArray
    ) -> None: ...
    def value_and_grad_into(
        self,
        program: _Program,
        w: _Array,
        xs: Sequence[Any],
        y: Any,
        cost: _Cost,
        sample_weight: _Array | None,
        dw: _DeviceArray,
        *,
        train: bool = ...,
        seed: int = ...,
    ) -> float: ...
    def Device(self, capsule: Any) -> _OpenDevice: ...
    def DeviceProgram(
        self, graph: Graph, device: _OpenDevice, precision: str = ...
    ) -> _Program: ...
    def DeviceJacobian(
        self, graph: Graph, device: _OpenDevice, wrt: Any, output: int = ...
    ) -> _Jacobian: ...
    def DevicePerSample(self, graph: Graph, device: _OpenDevice, cost: _Cost) -> _PerSample: ...
    def DeviceGaussNewton(self, graph: Graph, device: _OpenDevice, cost: _Cost) -> _Curvature: ...
    def DeviceTrainer(
        self,
        graph: Graph,
        cost: _Cost,
        optimizer: _Optimizer,
        device: _OpenDevice,
        *,
        frozen: Sequence[str] = ...,
        precision: str = ...,
    ) -> _Trainer: ...

f32: _Typed
f64: _Typed
device: _Device
