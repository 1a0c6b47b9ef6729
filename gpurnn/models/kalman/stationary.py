"""The stationary start: the mean and covariance that the states keep from step to step, and the gradient through them.

They solve m = F m + c and P = F P F^T + Q. SciPy solves the latter, a discrete Lyapunov equation; it is imported only
then.
"""

from __future__ import annotations

from typing import Any

import numpy as np

HostArray = np.ndarray[Any, Any]


def start(where: str, values: dict[str, HostArray]) -> dict[str, HostArray]:
    """m0 and P0 in float64, from F, Q and, if there is one, c.

    Raises
    ------
    ValueError
        F has an eigenvalue that is not inside the unit circle, so there is no stationary state.
    """
    F, Q = values["F"].astype(np.float64), values["Q"].astype(np.float64)
    largest = float(np.abs(np.linalg.eigvals(F)).max())
    if not largest < 1:
        raise ValueError(
            f"{where}: F has an eigenvalue of modulus {largest:.6g}, expected all below 1, as stationary is True; give "
            "P0 instead, or leave the start diffuse"
        )
    offset = values["c"].astype(np.float64) if "c" in values else np.zeros(len(F))
    return {"m0": np.linalg.solve(np.eye(len(F)) - F, offset), "P0": _lyapunov(F, Q)}


def add_gradient(values: dict[str, HostArray], grads: dict[str, HostArray]) -> None:
    """Add to the gradients by F, Q and c the part that comes through m0 and P0, which are functions of them."""
    F, m0, P0 = values["F"], values["m0"], values["P0"]
    by_P0 = _lyapunov(F.T, (grads["P0"] + grads["P0"].T) / 2)
    by_offset = np.linalg.solve((np.eye(len(F)) - F).T, grads["m0"])
    grads["Q"] = grads["Q"] + by_P0
    grads["F"] = grads["F"] + 2 * by_P0 @ F @ P0 + np.outer(by_offset, m0)
    if "c" in grads:
        grads["c"] = grads["c"] + by_offset


def _lyapunov(F: HostArray, Q: HostArray) -> HostArray:
    from scipy import linalg

    P: HostArray = linalg.solve_discrete_lyapunov(F, Q)
    return (P + P.T) / 2
