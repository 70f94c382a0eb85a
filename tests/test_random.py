"""Random problems: any sizes, options, dtypes and layouts together. A failure prints a line that repeats it."""

from __future__ import annotations

import os

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, note, settings

from tests.layouts import LAYOUTS
from tests.problem import Problem

EXAMPLES = int(os.environ.get("POINTWISE_EXT_EXAMPLES", "100"))  # random problems per test
ACTIVATIONS = [None, "relu", "relu6", "silu", "gelu", "gelu_tanh", "hardswish", "hardsigmoid", "sigmoid", "tanh"]
SIZES = st.one_of(st.integers(1, 9), st.sampled_from([16, 17, 31, 32, 33, 49, 64, 65]))


@st.composite
def problems(draw, integers: bool) -> Problem:
    spatial = draw(st.integers(1, 3))
    per_dimension = lambda values: draw(st.one_of(values, st.tuples(*[values] * spatial)))  # noqa: E731
    size = tuple(draw(st.lists(SIZES if spatial == 1 else st.integers(1, 9), min_size=spatial, max_size=spatial)))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    channels = draw(st.lists(SIZES, min_size=1, max_size=draw(st.sampled_from([1, 1, 2, 3, 8]))))
    channels[-1] += -sum(channels) % groups
    activations = st.one_of(
        st.sampled_from([None, "relu", "relu6"] if integers else ACTIVATIONS),
        st.tuples(st.just("leaky_relu"), st.sampled_from([0.5, -0.25])),
        st.tuples(st.just("clamp"), st.integers(-3, 0).map(float), st.integers(0, 3).map(float)),
    )
    layouts = st.sampled_from(LAYOUTS)
    return Problem(
        channels=tuple(channels),
        out_channels=draw(SIZES) * groups,
        batch=draw(st.sampled_from([None, 1, 2, 3])),
        size=size,
        groups=groups,
        stride=per_dimension(st.integers(1, 4)),
        padding=per_dimension(st.integers(0, 3)),
        bias=draw(st.booleans()),
        residual=draw(st.booleans()),
        activation=draw(activations),
        dtype=draw(st.sampled_from(["float32", "float64", "float16", "bfloat16"])),
        layout=draw(layouts),
        weight_layout=draw(layouts.filter(lambda layout: layout != "expanded")),
        integers=integers,
        seed=draw(st.integers(0, 2**16)),
    )


def run(problem: Problem, device: str) -> None:
    problem = Problem(**{**problem.__dict__, "device": device})
    note(problem.repro())
    problem.check()


QUIET = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="POINTWISE_EXT_EXAMPLES" not in os.environ,  # the same problems every time, unless asked for more
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@QUIET
@given(problem=problems(integers=True))
def test_integers_are_exact(device: str, problem: Problem) -> None:
    run(problem, device)


@QUIET
@given(problem=problems(integers=False))
def test_floats_are_within_pytorchs_error(device: str, problem: Problem) -> None:
    run(problem, device)


def test_the_line_repeats_the_problem() -> None:
    problem = Problem(channels=(3, 4), stride=(1, 2), activation=("clamp", 0.0, 6.0), batch=None)
    line = problem.repro()
    assert line.startswith("python -m tests.repro '")
    assert Problem.from_json(line.split("'")[1]) == problem


def test_a_wrong_result_is_caught() -> None:
    """The check itself: a bias forgotten in one element, an output wrong by two units in the last place of float32."""
    from pointwise_ext import reference

    def forgetful(input, weight, bias, **options):
        return reference.pointwise_conv(input, weight, bias.index_fill(0, bias.new_zeros(1).long() + 2, 0), **options)

    def imprecise(*arguments, **options):
        return reference.pointwise_conv(*arguments, **options) * (1 + 1e-5)

    for wrong in (forgetful, imprecise):
        with pytest.raises(AssertionError, match=r"error .* at .*, allowed"):
            Problem(channels=(16,), size=(8, 8)).check(wrong)
    with pytest.raises(AssertionError, match="values differ"):
        Problem(integers=True).check(forgetful)
