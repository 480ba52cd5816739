# Written by tests/stubs.py from the op table.

from gradstack.nn.pointwise import PointwiseModule

__all__: tuple[str, ...]

class Identity(PointwiseModule):
    def __init__(self, inplace: bool = False) -> None: ...

class ReLU(PointwiseModule):
    def __init__(self, inplace: bool = False) -> None: ...

class LeakyReLU(PointwiseModule):
    negative_slope: float
    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None: ...

class ELU(PointwiseModule):
    alpha: float
    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None: ...

class SELU(PointwiseModule):
    def __init__(self, inplace: bool = False) -> None: ...

class CELU(PointwiseModule):
    alpha: float
    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None: ...

class GELU(PointwiseModule):
    approximate: str
    def __init__(self, approximate: str = "none", inplace: bool = False) -> None: ...

class SiLU(PointwiseModule):
    def __init__(self, inplace: bool = False) -> None: ...

class Mish(PointwiseModule):
    def __init__(self, inplace: bool = False) -> None: ...

class Softplus(PointwiseModule):
    beta: float
    threshold: float
    def __init__(
        self, beta: float = 1.0, threshold: float = 20.0, inplace: bool = False
    ) -> None: ...

class Softsign(PointwiseModule):
    def __init__(self, inplace: bool = False) -> None: ...

class Sigmoid(PointwiseModule):
    def __init__(self, inplace: bool = False) -> None: ...

class LogSigmoid(PointwiseModule):
    def __init__(self, inplace: bool = False) -> None: ...

class Tanh(PointwiseModule):
    def __init__(self, inplace: bool = False) -> None: ...

class Tanhshrink(PointwiseModule):
    def __init__(self, inplace: bool = False) -> None: ...

class Hardtanh(PointwiseModule):
    min_val: float
    max_val: float
    def __init__(
        self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
    ) -> None: ...

class ReLU6(PointwiseModule):
    def __init__(self, inplace: bool = False) -> None: ...

class Hardsigmoid(PointwiseModule):
    def __init__(self, inplace: bool = False) -> None: ...

class Hardswish(PointwiseModule):
    def __init__(self, inplace: bool = False) -> None: ...

class Sine(PointwiseModule):
    def __init__(self, inplace: bool = False) -> None: ...
