"""Which part of a network's work and time is 1x1 convolutions."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from bench.roofline import Work

CALLS = 5
_CALL = "bench: one call"


def is_pointwise(module: nn.Module) -> bool:
    """Whether this is a convolution with a kernel of size 1."""
    convolution = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return convolution and all(size == 1 for size in module.kernel_size)


def pointwise_convolutions(model: nn.Module) -> int:
    return sum(map(is_pointwise, model.modules()))


def pointwise_work(model: nn.Module, call: Callable[[], object], dtype: str, device: str, threads: int) -> list[Work]:
    """What each 1x1 convolution of the model does in one call: it reads its input and weight, and writes its output."""
    found = []

    def add(conv: nn.Conv2d, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        flops = 2 * y.numel() * conv.in_channels // conv.groups
        moved = sum(t.numel() * t.element_size() for t in (inputs[0], conv.weight, y))
        found.append(Work(flops, moved, dtype, device, threads))

    hooks = [module.register_forward_hook(add) for module in model.modules() if is_pointwise(module)]
    call()
    for hook in hooks:
        hook.remove()
    return found


def pointwise_share(call: Callable[[], object]) -> float:
    """The share of a call's time that is spent in this package's operators, on the CPU."""
    call()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(CALLS):
            with record_function(_CALL):
                call()
    times = {event.key: event.cpu_time_total for event in profiler.key_averages()}
    return sum(time for key, time in times.items() if key.startswith("pointwise_ext::")) / times[_CALL]
