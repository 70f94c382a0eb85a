"""Random small models as Python source: modules, statements that read, join, view and overwrite values, and an input.

Each line runs as it is drawn, and is dropped where PyTorch refuses it, so that shapes always fit.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from tests.fusion.nets import Net, conv, norm

NAMESPACE: dict[str, Any] = {
    "torch": torch, "F": F, "nn": nn, "Net": Net, "conv": conv, "norm": norm, "operator": operator, "prune": prune,
    "parametrizations": parametrizations,
}  # fmt: skip

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {  # of a leaf: what the model is handed, which it may overwrite
    "contiguous": lambda leaf: leaf * 1,
    "channels_last": lambda leaf: (leaf * 1).to(memory_format=torch.channels_last),
    "sliced": lambda leaf: F.pad(leaf, (1, 2))[..., 1:-2],
    "transposed": lambda leaf: leaf.mT.clone(memory_format=torch.contiguous_format).mT,
    "every other channel": lambda leaf: leaf.repeat_interleave(2, -3)[..., ::2, :, :],
    "unbatched": lambda leaf: (leaf * 1)[0],
}

CONVS = (
    "conv({c}, {k})", "conv({c}, {k})", "conv({c}, {c})", "conv({c}, {c})", "conv({c}, {k}, bias=False)",
    "conv({c}, {c}, groups={c})", "nn.Conv2d({c}, {k}, 1, stride=2)", "nn.Conv2d({c}, {k}, 1, padding=(1, 0))",
    "nn.Conv2d({c}, {k}, 1, padding=1, padding_mode='circular')", "nn.Conv2d({c}, {c}, 1, padding='same')",
)  # fmt: skip
NORMS = (
    "norm({c})", "norm({c})", "norm({c}, affine=False)", "norm({c}, momentum=None)", "norm({c}, eps=0.1)",
    "norm({c}, track_running_stats=False)", "nn.InstanceNorm2d({c})", "nn.GroupNorm(1, {c})", "nn.BatchNorm1d({h})",
)  # fmt: skip
ACTIVATIONS = (
    "nn.ReLU()", "nn.ReLU(inplace=True)", "nn.ReLU6()", "nn.LeakyReLU(0.2, inplace=True)", "nn.SiLU(inplace=True)",
    "nn.GELU()", "nn.GELU('tanh')", "nn.Hardswish()", "nn.Hardsigmoid(inplace=True)", "nn.Sigmoid()", "nn.Tanh()",
    "nn.Hardtanh(0.0, 6.0)", "nn.Hardtanh()", "nn.ELU(inplace=True)", "nn.PReLU()", "nn.Softplus()", "nn.Identity()",
)  # fmt: skip
ACTIVATION_CALLS = (
    "F.relu({a})", "F.relu({a}, inplace=True)", "F.relu({a}, True)", "torch.relu_({a})", "{a}.relu()", "{a}.relu_()",
    "F.relu6({a})", "F.leaky_relu({a}, 0.2)", "F.leaky_relu_({a}, 0.1)", "F.silu({a}, inplace=True)", "F.silu({a})",
    "F.gelu({a}, approximate='tanh')", "F.hardswish({a})", "F.hardsigmoid({a})", "torch.sigmoid({a})",
    "{a}.sigmoid_()", "{a}.tanh()", "torch.tanh({a})", "{a}.clamp(-0.5, 0.5)", "{a}.clamp_(min=0.1)",
    "torch.clamp({a}, max=0.7)", "torch.clamp_min({a}, 0.1)", "{a}.clip(min=-1)", "F.hardtanh({a}, 0.0, 6.0)",
    "F.hardtanh({a})", "{a}.clamp({b})", "F.elu_({a})",
)  # fmt: skip
JOINS = (
    "{a} + {b}", "{b} + {a}", "{a}.add({b})", "{a}.add_({b})", "torch.add({b}, {a})", "torch.add(input={a}, other={b})",
    "{b}.add_({a})", "operator.iadd({a}, {b})", "{a}.add({b}, alpha=2)", "torch.add({a}, {b}, alpha=-0.5)",
    "{a} - {b}", "{a} * {b}", "{a} + {b}[:, :1]", "{a} + {b}.mean((2, 3), keepdim=True)", "{b}[0] + {a}", "{a} + 1.0",
    "0.5 + {a}", "{a} + {a}", "{a} + {a}.size(0)", "{a}.__iadd__({b})", "torch.cat([{a}, {b}])",
)  # fmt: skip
CATS = (
    "torch.cat([{a}, {b}], 1)", "torch.cat([{a}, {b}, {c}], 1)", "torch.cat(({a}, {b}), dim=-3)",
    "torch.concat([{a}, {a}], axis=1)", "torch.cat(tensors=[{b}, {a}], dim=1)", "torch.cat([{a}], 1)",
    "torch.cat([{a}, {b}], 2)", "torch.cat({a}.chunk(2, 1), 1)", "torch.cat([{a}] * 9, 1)",
)  # fmt: skip
VIEWS = (
    "{a}[:, :1]", "{a}[:, 1:]", "{a}[..., ::2]", "{a}.view({a}.shape)", "{a}.permute(0, 1, 3, 2)", "{a}.flatten(2)",
    "{a}.flatten(1, 2).unflatten(1, (-1, {a}.size(2)))", "{a}.unsqueeze(0)[0]", "{a}.transpose(-1, -2)", "{a}.detach()",
    "{a}.contiguous()", "{a}.reshape({a}.shape)", "{a}.chunk(2, 1)[0]", "{a}.split(1, 1)[-1]", "{a}.expand_as({b})",
    "{a}[:, [0, 0]]", "{a}.to(memory_format=torch.channels_last)", "{a}.clone()", "{a}.to({b}.dtype)",
    "{a}.mean(1, keepdim=True)", "{a}.mean((2, 3), keepdim=True)", "F.max_pool2d({a}, 2, 1)", "F.avg_pool2d({a}, 2)",
    "F.interpolate({a}, scale_factor=2)", "{a}.unbind(0)[0]", "{a}.data", "{a}.requires_grad_()",
    "F.dropout({a}, 0.5, m.training)", "F.dropout({a}, 0.5)", "{a}.view(-1).view({a}.shape)",
)  # fmt: skip
STATEMENTS = (
    "{a}.add_({b})", "{a}.mul_(0.5)", "{a}[:, :1].mul_(2)", "{a}[0].sub_(1)", "{a}.view(-1).add_(1)", "{a}.copy_({b})",
    "{a}.relu_()", "F.relu({a}, inplace=True)", "F.silu({a}, True)", "{a} += {b}", "{a} *= 2", "{a} -= {b}",
    "{a} **= 2", "{a} /= 2", "{a}[:, 0] = {b}[:, 0]", "{a}[:, :1] += 1", "{a}.data.mul_(2)", "{a}.neg_()",
    "operator.ipow({a}, 2)", "{a}.chunk(2, 1)[0].mul_(2)", "{a}.transpose(0, 1).add_(1)", "{a} = {b}",
    "torch.mul({a}, 2, out={b})",
)  # fmt: skip
BLOCKS = (
    "Net(lambda m, x: m.b(F.relu(m.a(x))) + x, a=conv({c}, {c}), b=conv({c}, {c}))",
    "nn.Sequential(conv({c}, {k}), norm({k}), nn.ReLU(inplace=True), nn.Identity(), conv({k}, {k}), nn.SiLU())",
    "nn.Sequential(nn.Sequential(conv({c}, {c}), norm({c})), nn.ReLU(inplace=True))",
    "nn.Sequential(nn.ReLU(inplace=True), conv({c}, {c}), nn.Dropout(0.5, inplace=True))",
    "Net(lambda m, x: m.a(x) if x.sum() > 0 else m.b(x), a=conv({c}, {c}), b=conv({c}, {c}))",
    "Net(lambda m, x: m.s(x) if x.sum() > 0 else m.s(-x), s=nn.Sequential(conv({c}, {k}), norm({k}), nn.Tanh()))",
    "Net(lambda m, x: x.mul_(2) if x.sum() > -9e9 else x)",
    "Net(lambda m, x: m.act(x) if x.sum() > -9e9 else x, act=nn.ReLU(inplace=True))",
    "Net(lambda m, x: x if m.training else m.a(x), a=conv({c}, {c}))",
    "Net(lambda m, x: (m.a(x), m.a(x).relu())[1], a=conv({c}, {c}))",
    "Net(lambda m, x: m.l[1](m.l[0](x)), l=nn.ModuleList([conv({c}, {c}), nn.Sequential(conv({c}, {c}), norm({c}))]))",
    "Net(lambda m, x: sum(f(x) for f in m.l), l=nn.ModuleList([conv({c}, {c}), nn.Sequential(conv({c}, {c}))]))",
)  # fmt: skip
OTHERS = (
    "conv({c}, {k}, 3)", "conv({c}, {c}, 3, groups={c})", "nn.Conv2d({c}, {k}, 2, bias=False)", "nn.MaxPool2d(2, 1)",
    "nn.Dropout(0.5)", "nn.Dropout2d(0.5)", "nn.Upsample(scale_factor=2)", "nn.ConvTranspose2d({c}, {k}, 1)",
)  # fmt: skip
SETUPS = (
    "{m}.register_forward_hook(lambda m, i, o: o * 2)", "{m}.register_forward_hook(lambda m, i, o: i[0].mul_(2))",
    "{m}.register_forward_pre_hook(lambda m, i: (i[0] * 2,))", "{m}.register_full_backward_hook(lambda m, i, o: None)",
    "{m}.eval()", "{m}.requires_grad_(False)", "{m}.bias = None", "{m}.weight = {n}.weight", "m.again = {m}",
    "prune.l1_unstructured({m}, 'weight', 0.5)", "parametrizations.weight_norm({m})", "nn.utils.weight_norm({m})",
)  # fmt: skip
WEIGHTS = (
    "F.conv2d({a}, {m}.weight)", "F.conv2d({a}, {m}.weight, {m}.bias)", "F.conv_transpose2d({a}, {m}.weight)",
    "{a} * {m}.weight.sum()", "{a} + {m}.bias[:, None, None]", "{a} + {m}.running_mean.sum()",
)  # fmt: skip


@dataclass
class Program:
    """A model: its modules as expressions, the lines of its forward, what is done to it then; and what it is handed."""

    seed: int = 0
    shape: tuple[int, ...] = (2, 4, 4, 3)
    layout: str = "contiguous"
    training: bool = False
    children: dict[str, str] = field(default_factory=dict)
    body: list[str] = field(default_factory=list)
    result: str = "x"
    setup: list[str] = field(default_factory=list)

    def source(self, dtype: torch.dtype = torch.float64) -> str:
        lines = "".join(f"    {line}\n" for line in [*self.body, f"return {self.result}"])
        children = "".join(f", {name}={made}" for name, made in self.children.items())
        setup = "".join(f"{line}\n" for line in self.setup)
        made = f"m = Net(body{children}).to({dtype}).train({self.training})"
        return f"torch.manual_seed({self.seed})\ndef body(m, x):\n{lines}{made}\n{setup}"

    def build(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        values = dict(NAMESPACE)
        exec(self.source(dtype), values)
        return values["m"]

    def leaf(self, dtype: torch.dtype = torch.float64) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    def input(self, leaf: Tensor) -> Tensor:
        return LAYOUTS[self.layout](leaf)


class _Drawing:
    """Adds drawn lines to a program, as far as they run."""

    def __init__(self, draw: Callable[[st.SearchStrategy], Any], program: Program) -> None:
        self.draw, self.program, self.names = draw, program, ["x"]
        self.model: Any = program.build(torch.float32)
        self.values = {**NAMESPACE, "m": self.model, "x": program.input(program.leaf(torch.float32))}

    def one(self, choices: Any) -> Any:
        return self.draw(st.sampled_from(list(choices)))

    def value(self) -> str:
        return self.one([self.names[-1]] * 3 + self.names[::-1])

    def like(self, name: str) -> str:
        """A value of the same shape, mostly."""
        same = [n for n in self.names[::-1] if self.values[n].shape == self.values[name].shape]
        return self.one([*same * 3, *self.names])

    def runs(self, line: str) -> bool:
        try:
            exec(line, self.values)
            [self.values[name].grad_fn for name in self.names]  # views of several that are overwritten raise
        except Exception:
            return False
        self.program.body.append(line)
        return True

    def expression(self, templates: tuple[str, ...], a: str = "") -> None:
        a = a or self.value()
        self.assign(self.one(templates).format(a=a, b=self.like(a), c=self.like(a), m=f"m.{self.module()}"))

    def assign(self, expression: str) -> bool:
        name = f"v{len(self.program.body)}"
        if not self.runs(f"{name} = {expression}") or not isinstance(self.values[name], Tensor):
            return False
        self.names.append(name)
        return True

    def statement(self) -> None:
        a = self.value()
        self.runs(self.one(STATEMENTS).format(a=a, b=self.like(a)))

    def module(self) -> str:
        return self.one([name for name, _ in self.model.named_modules() if name] or ["missing"])

    def reuse(self) -> None:
        self.assign(f"m.{self.module()}({self.value()})")

    def call(self, templates: tuple[str, ...], a: str = "") -> None:
        """Of a new module."""
        a = a or self.value()
        sizes = [*self.values[a].shape[-3:], 1, 1, 1]
        name = f"m{len(self.program.children)}"
        made = self.one(templates).format(c=sizes[0], h=sizes[1], k=self.one([sizes[0], 2, 4]))
        try:
            self.model.add_module(name, eval(made, self.values).train(self.program.training))
        except Exception:
            return
        if self.assign(f"m.{name}({a})"):
            self.program.children[name] = made
        else:
            delattr(self.model, name)

    def chain(self) -> None:
        """What is made to be fused: one after another, each on the last value, any of them left out."""
        for templates, add, share in (
            (CATS, self.expression, 3), (CONVS, self.call, 10), (NORMS, self.call, 5), (JOINS, self.expression, 5),
            (ACTIVATIONS, self.call, 4), (ACTIVATION_CALLS, self.expression, 4),
        ):  # fmt: skip
            if self.draw(st.integers(1, 10)) <= share:
                add(templates, self.names[-1])

    def step(self) -> None:
        kinds: dict[str, Callable[[], None]] = {
            "chain": self.chain,
            "join": lambda: self.expression(JOINS),
            "view": lambda: self.expression(VIEWS),
            "statement": self.statement,
            "block": lambda: self.call(BLOCKS),
            "other": lambda: self.call(OTHERS),
            "reuse": self.reuse,
            "weight": lambda: self.expression(WEIGHTS),
        }
        kinds[self.one(["chain"] * 4 + [*kinds, "view", "statement"])]()

    def set_up(self) -> None:
        m, n = self.module(), self.module()
        line = self.one(SETUPS).format(m=f"m.{m}", n=f"m.{n}")
        try:
            changed = replace(self.program, setup=[*self.program.setup, line])
            changed.build()(changed.input(changed.leaf()))
        except Exception:
            return
        self.program.setup.append(line)


@st.composite
def programs(draw, steps: int = 6) -> Program:
    drawing = _Drawing(
        draw,
        Program(
            seed=draw(st.integers(0, 99)),
            shape=draw(st.sampled_from([(2, 4, 4, 3), (1, 2, 2, 4), (3, 4, 5, 1), (2, 4, 4, 4)])),
            layout=draw(st.sampled_from(list(LAYOUTS))),
            training=draw(st.booleans()),
        ),
    )
    for _ in range(draw(st.integers(1, steps))):
        drawing.step()
    names = drawing.names
    results = [names[-1], f"({names[-1]}, {names[0]})", f"[{names[-1]}, {names[-2:][0]}]", f"{{'y': {names[-1]}}}"]
    drawing.program.result = drawing.one([names[-1], *results])
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        drawing.set_up()
    return drawing.program
