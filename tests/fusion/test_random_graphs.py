"""Random models, fused: outputs, gradients, buffers and overwritten inputs are eager's. A failure prints the model."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager
from torch.utils._pytree import tree_leaves

import pointwise_ext as pw
from pointwise_ext.fusion.dynamo import rewrite
from pointwise_ext.fusion.match import is_pointwise
from tests.fusion.programs import Program, programs

EXAMPLES = os.environ.get("POINTWISE_EXT_EXAMPLES")  # random models per test
Results = dict[str, Tensor]


def quiet(examples: int) -> settings:
    return settings(
        max_examples=int(EXAMPLES or examples),
        deadline=None,
        derandomize=EXAMPLES is None,  # the same models every time, unless asked for more
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


def forward(model: nn.Module, program: Program, leaf: Tensor) -> Results:
    """What the model returns, and what it leaves of its input."""
    torch.manual_seed(program.seed)  # dropout
    x = program.input(leaf)
    found = {f"output {i}": y for i, y in enumerate(tree_leaves(model(x)))}
    return {**found, "the input afterwards": x, "what the input is a part of": x if x._base is None else x._base}


def backward(model: nn.Module, results: Results, leaf: Tensor) -> Results | None:
    """The gradients of everything; None where PyTorch has none, since a value that it needs was overwritten."""
    outputs = [y for y in results.values() if y.requires_grad]
    weights = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape) for y in outputs]
    leaf.grad = None
    model.zero_grad()
    try:
        torch.autograd.backward(outputs, weights)
    except RuntimeError as error:
        if "modified by an inplace operation" in str(error):
            return None
        raise
    parameters = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**parameters, **({} if leaf.grad is None else {"gradient of the input": leaf.grad})}


def assert_close(got: Results, expected: Results) -> None:
    """In float64, where no wrong value is taken for rounding; PyTorch's hardswish has factors of float32 in it."""
    assert got.keys() == expected.keys()
    scale = max([1.0, *(t.detach().abs().max().item() for t in expected.values() if t.numel())])
    for name, value in expected.items():
        torch.testing.assert_close(
            got[name], value, rtol=1e-7, atol=1e-7 * scale, msg=lambda said, name=name: f"{name}: {said}"
        )


def assert_reported(model: nn.Module, fast: nn.Module) -> None:
    report = pw.fusion_report(fast)
    assert all(left.reason for left in report.left)
    said = {entry.where for entry in [*report.fused, *report.left]}
    names: dict[nn.Module, set[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if is_pointwise(module):
            names.setdefault(module, set()).add(name)
    missing = [each for each in names.values() if not each & said]
    assert not missing, f"{missing} are not in the report, which names {said}"


def assert_keys(model: nn.Module, fast: nn.Module) -> None:
    """state_dict keeps its keys, but those of what is not called, and second names of the same."""
    uncalled = {left.where for left in pw.fusion_report(fast).left if left.reason == "is not called by forward"}
    expected, got = model.state_dict(keep_vars=True), fast.state_dict().keys()
    assert got <= expected.keys()
    kept = {id(expected[key]) for key in got}
    lost = {key for key, value in expected.items() if key not in got and id(value) not in kept}
    assert {key.rpartition(".")[0] for key in lost} <= uncalled, f"state_dict lost {lost}"


def folds(fast: nn.Module) -> bool:
    report = pw.fusion_report(fast)
    return bool(report.folded) or any("bn" in f.pattern for f in report.fused)


def train_one_step(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= 0.01 * p.grad


def buffers(model: nn.Module, names: set[str]) -> Results:
    return {f"buffer {name}": b.clone() for name, b in model.named_buffers() if name in names}


def finite(results: Results) -> bool:
    return all(t.isfinite().all() and t.abs().max() < 1e6 for t in results.values() if t.numel())


def check_alike(eager: nn.Module, fast: nn.Module, program: Program, trained: bool) -> bool:
    """Forward and backward, in float64; twice with a step between, where the parameters are the same (`trained`).
    Whether PyTorch has gradients."""
    leaf, ours = program.leaf(), program.leaf()
    with torch.no_grad():
        expected = forward(eager, program, leaf)
        assume(finite(expected))
        assert_close(forward(fast, program, ours), expected)
    for _ in range(2):
        expected, got = forward(eager, program, leaf), forward(fast, program, ours)
        assert_close(got, expected)
        known = dict(fast.named_buffers()).keys() & dict(eager.named_buffers()).keys()
        assert_close(buffers(fast, known), buffers(eager, known))
        wanted = backward(eager, expected, leaf)
        if wanted is None:
            return False
        found = backward(fast, got, ours)
        assert found is not None, "a value that backward needs was overwritten"
        if not trained:
            name = "gradient of the input"
            assert_close({name: found.get(name, ours)}, {name: wanted.get(name, leaf)})
            return True
        assert_close(found, wanted)
        train_one_step(eager)
        train_one_step(fast)
    return True


def check(program: Program) -> None:
    note(program.source())
    eager, source, inplace = program.build(), program.build(), program.seed % 2 == 1
    fast = pw.fuse(source, inplace=inplace)
    assert_reported(eager, fast)
    kept = source.state_dict().items() if not inplace else ()
    assert all(torch.equal(value, eager.state_dict()[key]) for key, value in kept), "the model was changed"
    trained = not folds(fast)
    if trained:
        assert_keys(eager, fast)
    if check_alike(eager, fast, program, trained) and trained:
        eager.train(not program.training)
        fast.train(not program.training)
        try:
            expected = forward(eager, program, program.leaf())
        except ValueError:  # statistics of a single value
            return
        assert_close(forward(fast, program, program.leaf()), expected)


@quiet(80)
@given(program=programs())
def test_a_fused_model_does_what_eager_does(program: Program) -> None:
    check(program)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@quiet(200)
@given(program=programs(steps=10))
def test_larger_models(program: Program) -> None:
    check(program)


@quiet(40)
@given(program=programs())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_no_less_accurate(dtype: torch.dtype, program: Program) -> None:
    note(program.source(dtype))
    assume("ropout" not in program.source())  # drops others in other dtypes
    eager, exact = program.build(dtype), program.build()
    exact.load_state_dict(eager.state_dict())
    fast = pw.fuse(eager)
    with torch.no_grad():
        right = forward(exact, program, program.leaf(dtype).detach().double())
        assume(finite(right))
        own = forward(eager, program, program.leaf(dtype))
        got = forward(fast, program, program.leaf(dtype))
    for name, value in right.items():
        assert (got[name].dtype, got[name].shape) == (own[name].dtype, value.shape)
        error, allowed = ((t[name].double() - value).abs().max() for t in (got, own) if value.numel())
        assert error <= 2 * allowed + 16 * torch.finfo(dtype).eps * max(1, value.abs().max()), name


def rewritten(gm, example_inputs):
    rewrite(gm)
    return aot_eager(gm, example_inputs)


def check_compiled(program: Program, backend: Callable) -> None:
    torch._dynamo.reset()
    results = []
    for compiled in (True, False):
        eager, leaf = program.build(), program.leaf()
        model = torch.compile(eager, backend=backend) if compiled else eager
        found = forward(model, program, leaf)
        gradients = backward(eager, found, leaf)
        results.append((found, gradients, buffers(eager, set(dict(eager.named_buffers())))))
    (found, gradients, kept), (expected, wanted, left) = results
    assume(finite(expected))
    assert_close(found, expected)
    assert_close(kept, left)
    if wanted is not None:
        assert gradients is not None, "a value that backward needs was overwritten"
        assert_close(gradients, wanted)


def check_rewritten(program: Program) -> None:
    note(program.source())
    try:
        check_compiled(program, rewritten)
    except Exception:
        try:
            check_compiled(program, aot_eager)
        except Exception:
            assume(False)  # PyTorch's own
        raise


@quiet(5)
@given(program=programs())
@pytest.mark.usefixtures("kernels")
def test_a_rewritten_graph_does_what_eager_does(program: Program) -> None:
    check_rewritten(program)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@quiet(20)
@given(program=programs())
@pytest.mark.usefixtures("kernels")
def test_more_rewritten_graphs(program: Program) -> None:
    check_rewritten(program)
