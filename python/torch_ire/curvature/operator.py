"""What every eigensolver and estimator here works on: a symmetric operator known by its products with vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["CallableOperator", "Operator", "as_operator"]

#: Factor between the two products whose difference measures rounding: no power of two, so that all digits change.
_SCALED = 0.7
#: Roundings of a product by which v_i . H v_j and v_j . H v_i may differ: both are rounded, and measured to a factor.
ROUNDINGS_OF_A_PRODUCT = 8.0


class Operator(ABC):
    """A symmetric linear operator on flat vectors, with an honest count of its products.

    Subclasses write `_product`. Solvers enter `linearized()` around a run, which lets a subclass hold what stays the
    same between two products (the graph of a gradient, say).

    Args:
        size: number of coordinates p, at least 1.
        dtype: floating dtype of the flat vectors; half precisions are not accepted, since inner products need more.
        device: where the flat vectors live.

    Raises:
        ValueError: on a size below 1 or another dtype.

    Cost: that of the products.

    Example:
        >>> import torch
        >>> from torch_ire import curvature
        >>> H = curvature.as_operator(torch.eye(3))
        >>> H @ torch.ones(3), H.num_matvecs
        (tensor([1., 1., 1.]), 1)

    References:
        Golub, Van Loan, Matrix Computations (2013), chapter 10: methods that need products only.
    """

    #: Difference between v_i . H v_j and v_j . H v_i, relative to the norm of H, that passes as rounding without a
    #: measurement. Beyond it the rounding of a product is measured.
    symmetry_tolerance: float

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        if size < 1:
            raise ValueError(f"Operator: expected a size of at least 1, got {size}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"Operator: expected dtype float32 or float64, got {dtype}")
        self.size = size
        self.dtype = dtype
        self.device = device
        self.num_matvecs = 0
        self.symmetry_tolerance = torch.finfo(dtype).eps ** 0.5

    @property
    def shape(self) -> tuple[int, int]:
        """(p, p)."""
        return (self.size, self.size)

    @abstractmethod
    def _product(self, vector: Tensor) -> Tensor:
        """H v for a flat vector of the operator's size, dtype and device."""

    def matvec(self, vector: Tensor) -> Tensor:
        """H v.

        Args:
            vector: (p,), floating, on the operator's device.

        Returns:
            (p,), the operator's dtype. Counts one in `num_matvecs`.

        Raises:
            ValueError: on another shape or device, or where the operator returns another shape.
        """
        if vector.shape != (self.size,):
            raise ValueError(f"matvec: expected a vector of shape ({self.size},), got {tuple(vector.shape)}")
        if vector.device != self.device:
            raise ValueError(f"matvec: expected a vector on {self.device}, got one on {vector.device}")
        self.num_matvecs += 1
        result = self._product(vector.to(self.dtype))
        if result.shape != (self.size,):
            raise ValueError(f"matvec: the operator returned shape {tuple(result.shape)}, expected ({self.size},)")
        return result.detach().to(self.dtype)

    def __call__(self, vector: Tensor) -> Tensor:
        """H v; see `matvec`."""
        return self.matvec(vector)

    def __matmul__(self, other: Tensor) -> Tensor:
        """H @ v, or H @ V column by column."""
        if other.dim() == 1:
            return self.matvec(other)
        with self.linearized():
            return torch.stack([self.matvec(column) for column in other.unbind(1)], dim=1)

    @contextmanager
    def linearized(self) -> Iterator[Operator]:
        """Hold the point of linearization: inside, the parameters must not change. Nests."""
        yield self

    def rounding_at(self, vector: Tensor) -> float:
        """Norm of the rounding of H v, measured as the distance between H v and H(s v) / s.

        A product is a derivative of a gradient: its rounding follows the terms inside, not the norm of H v. Both
        products share a graph and its rounding, which perturbs H but keeps it symmetric.

        Args:
            vector: (p,), of unit length.

        Cost: two products.
        """
        other = self.matvec(_SCALED * vector) / _SCALED
        return float(torch.linalg.vector_norm(other - self.matvec(vector)))

    def compressed(self, rows: Tensor, products: Tensor, scale: float) -> tuple[Tensor, float]:
        """The matrix rows . H . rows^T, checked for symmetry.

        Args:
            rows: (m, p), unit vectors.
            products: (m, p), H times each of them.
            scale: a lower bound of the norm of H.

        Returns:
            the symmetric (m, m) matrix in float64 on the CPU, and the rounding of a product: 0 without suspicion.

        Raises:
            ValueError: if two entries differ by more than the rounding of a product.

        Cost: two products if two entries differ by more than `symmetry_tolerance`.
        """
        small = (rows @ products.T).to(torch.float64).cpu()
        rounding = 0.0
        difference = (small - small.T).abs()
        i, j = divmod(int(difference.argmax()), len(small))
        if difference[i, j] > self.symmetry_tolerance * scale:
            rounding = max(self.rounding_at(rows[i]), self.rounding_at(rows[j]))
            if difference[i, j] > ROUNDINGS_OF_A_PRODUCT * rounding:
                raise asymmetry(i, j, float(small[i, j]), float(small[j, i]), scale, rounding)
        return (small + small.T) / 2, rounding

    def dense(self) -> Tensor:
        """The (p, p) matrix, by p products: for tests and small models."""
        return self @ torch.eye(self.size, dtype=self.dtype, device=self.device)

    def to_scipy(self) -> Any:
        """The same operator as `scipy.sparse.linalg.LinearOperator`, on numpy vectors."""
        from scipy.sparse.linalg import LinearOperator

        def product(vector: Any) -> Any:
            flat = torch.as_tensor(vector.reshape(-1), dtype=self.dtype, device=self.device)
            return self.matvec(flat).cpu().numpy()

        numpy_dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        return LinearOperator(self.shape, matvec=product, rmatvec=product, dtype=numpy_dtype)


def asymmetry(i: int, j: int, one: float, other: float, scale: float, rounding: float) -> ValueError:
    """The error that names two products that should agree."""
    return ValueError(
        f"the operator is not symmetric: v{i} . H v{j} = {one:.6g}, but v{j} . H v{i} = {other:.6g}. They differ by "
        f"{abs(one - other):.3g}; the norm of H is at least {scale:.3g} and the rounding of a product is {rounding:.3g}"
    )


class CallableOperator(Operator):
    """Any function v -> H v on flat vectors, as an operator.

    Args:
        product: maps a (p,) tensor to a (p,) tensor; must be linear and symmetric.
        size: p.
        dtype: float32 or float64.
        device: where the vectors live.

    Raises:
        ValueError: on a size below 1 or another dtype.
        TypeError: at a product, where the function returns no tensor.

    Cost: that of the function.

    References:
        Golub, Van Loan, Matrix Computations (2013), chapter 10: methods that need products only.

    Example:
        >>> import torch
        >>> from torch_ire.curvature import CallableOperator
        >>> CallableOperator(lambda v: 2 * v, 3).matvec(torch.ones(3))
        tensor([2., 2., 2.])
    """

    def __init__(
        self,
        product: Callable[[Tensor], Tensor],
        size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(size, dtype, torch.device(device))
        self._function = product

    def _product(self, vector: Tensor) -> Tensor:
        result = self._function(vector)
        if not isinstance(result, Tensor):
            raise TypeError(f"matvec: the callable returned {type(result).__name__}, expected a tensor")
        return result


def as_operator(source: Any, *, size: int | None = None) -> Operator:
    """Whatever can multiply a vector, as an `Operator`.

    Args:
        source: an `Operator`; a symmetric matrix (a (p, p) tensor); a scipy `LinearOperator` or sparse matrix, or a
            numpy matrix; a curvlinops operator; or a callable v -> H v, which needs `size`.
        size: p, for a callable only; its vectors are float32 on the CPU (take `CallableOperator` for others).

    Returns:
        an `Operator`; `source` itself where it already is one.

    Raises:
        ValueError: where the operator is not square, or a callable comes without `size`.
        TypeError: where nothing can be made of `source`.

    Cost: none; a half-precision matrix is widened once.

    Example:
        >>> import torch
        >>> from torch_ire import curvature
        >>> curvature.as_operator(lambda v: 2 * v, size=3).matvec(torch.ones(3))
        tensor([2., 2., 2.])

    References:
        Golub, Van Loan, Matrix Computations (2013), chapter 10: methods that need products only.
    """
    if isinstance(source, Operator):
        return source
    shape = getattr(source, "shape", None)
    if shape is not None:
        rows, columns = (int(n) for n in shape) if len(shape) == 2 else (-1, -2)
        if rows != columns:
            raise ValueError(f"as_operator: expected a square operator, got shape {tuple(shape)}")
        if isinstance(source, Tensor):
            dtype = source.dtype if source.dtype in (torch.float32, torch.float64) else torch.float32
            matrix = source.detach().to(dtype)
            return CallableOperator(lambda v: matrix @ v, rows, dtype=dtype, device=source.device)
        if isinstance(getattr(source, "dtype", None), torch.dtype):  # curvlinops: torch tensors in and out
            dtype = source.dtype if source.dtype in (torch.float32, torch.float64) else torch.float32
            return CallableOperator(
                lambda v: source @ v.to(source.dtype), rows, dtype=dtype, device=torch.device(source.device)
            )
        if hasattr(source, "__matmul__"):
            return _numpy_operator(source, rows)
    if callable(source):
        if size is None:
            raise ValueError("as_operator: a callable v -> Hv needs size=p, the length of v")
        return CallableOperator(source, size)
    raise TypeError(f"as_operator: cannot multiply vectors by a {type(source).__name__}")


def _numpy_operator(source: Any, size: int) -> Operator:
    """Scipy operators, sparse matrices and numpy arrays: products on the CPU in the source's own precision."""
    import numpy as np

    dtype = torch.float32 if np.dtype(source.dtype or np.float64) == np.float32 else torch.float64
    return CallableOperator(lambda v: torch.as_tensor(np.asarray(source @ v.numpy()).reshape(-1)), size, dtype=dtype)
