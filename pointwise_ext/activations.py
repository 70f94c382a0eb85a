"""The activations: their names, parameters and formulas, and how a user's `activation=` argument is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch.nn.functional as F
from torch import Tensor, clamp, sigmoid, tanh

ActivationLike = str | tuple | None


@dataclass(frozen=True)
class Activation:
    """y = function(z, alpha, beta); `defaults` are those of its parameters, None where one must be given."""

    formula: str
    function: Callable[[Tensor, float, float], Tensor]
    parameters: tuple[str, ...] = ()
    defaults: tuple[float, ...] | None = ()


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation("max(z, 0)", lambda z, alpha, beta: F.relu(z)),
    "relu6": Activation("min(max(z, 0), 6)", lambda z, alpha, beta: F.relu6(z)),
    "leaky_relu": Activation(
        "z if z > 0 else slope z", lambda z, alpha, beta: F.leaky_relu(z, alpha), ("slope",), (0.01,)
    ),
    "silu": Activation("z sigmoid(z)", lambda z, alpha, beta: F.silu(z)),
    "gelu": Activation("z/2 (1 + erf(z / sqrt(2)))", lambda z, alpha, beta: F.gelu(z)),
    "gelu_tanh": Activation(
        "z/2 (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3)))", lambda z, alpha, beta: F.gelu(z, approximate="tanh")
    ),
    "hardswish": Activation("z min(max(z + 3, 0), 6) / 6", lambda z, alpha, beta: F.hardswish(z)),
    # torch.nn.functional.hardsigmoid has no second derivative.
    "hardsigmoid": Activation("min(max(z + 3, 0), 6) / 6", lambda z, alpha, beta: F.relu6(z + 3) / 6),
    "sigmoid": Activation("1 / (1 + exp(-z))", lambda z, alpha, beta: sigmoid(z)),
    "tanh": Activation("tanh(z)", lambda z, alpha, beta: tanh(z)),
    "clamp": Activation(
        "min(max(z, low), high)", lambda z, alpha, beta: clamp(z, alpha, beta), ("low", "high"), defaults=None
    ),
}


def _padded(values: tuple[float, ...]) -> tuple[float, float]:
    alpha, beta, *_ = (*values, 0.0, 0.0)
    return float(alpha), float(beta)


# What the common arguments mean to the operators: (name, alpha, beta).
PARSED: dict[Any, tuple[str, float, float]] = {None: ("none", 0.0, 0.0)} | {
    name: (name, *_padded(a.defaults)) for name, a in ACTIVATIONS.items() if a.defaults is not None
}


def parse_activation(activation: ActivationLike) -> tuple[str, float, float]:
    """(name, alpha, beta) of None, a name, or a tuple of a name and its parameters.

    Raises:
        TypeError: not one of these types. ValueError: an unknown name (lists the known ones), or a wrong number of
            parameters.
    """
    if activation is None:
        return PARSED[None]
    name, *values = activation if isinstance(activation, tuple) and activation else (activation,)
    if not isinstance(name, str):
        raise TypeError(
            f"activation is {activation!r}, expected None, a name or a tuple (name, parameters...); "
            f"known names: {', '.join(ACTIVATIONS)}"
        )
    if name not in ACTIVATIONS:
        raise ValueError(f"activation is {name!r}, expected None or one of {', '.join(ACTIVATIONS)}")
    if not values and name in PARSED:
        return PARSED[name]
    known = ACTIVATIONS[name].parameters
    if len(values) != len(known):
        usage = ", ".join((repr(name), *known)) if known else f"{name!r},"
        raise ValueError(
            f"activation {name!r} has {len(values)} parameters, expected {len(known)}; write activation=({usage})"
        )
    for parameter, value in zip(known, values, strict=True):
        if not isinstance(value, Real):
            raise TypeError(f"activation {name!r}: {parameter} is {value!r}, expected a number")
    return (name, *_padded(tuple(values)))
