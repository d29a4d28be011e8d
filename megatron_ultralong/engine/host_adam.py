"""Adam on the host: main weights and moments in host memory, stepped there by PyTorch's fused kernel for CPUs.

What goes to the host leaves megatron-core's optimizer, which updates the rest as it always does. The gradient's norm is
taken of all gradients where they are, on the device and in their order, so it has the same bits. Then a piece of a
parameter at a time: while one steps, the next one's gradient comes and the last one's weights go back, on two streams
from and to pinned memory. bf16 gradients are widened here, a piece at a time, and clipped after that, as on a device.

State does not move, so it is not pinned: a forked process can write it while training goes on, and PyTorch's allocator
of pinned memory would round each tensor up to a power of two. Of a bf16 parameter the host alone has the fp32 weights;
of an fp32 one the device does, and they come with the gradient. On a CPU all copies are plain ones, which save nothing
and are there so that the same code is tested. The streams have not been run on a GPU.

Bytes a parameter and step: over the link 2 or 4 down and 2 up for bf16, 8 down and 4 up for fp32; of host memory
`planning/step_time.py` counts them. The weights are those of the same steps on a device to its kernel's rounding, and
on a CPU the same bits (tests/on_device/test_host_adam.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.overrides import TorchFunctionMode

from megatron_ultralong.engine import fused, groups, host_link, mcore, optimizer_parts
from megatron_ultralong.engine.host_link import Link, Slot
from megatron_ultralong.engine.optimizer_parts import Stretch

MOMENTS = ("exp_avg", "exp_avg_sq")
PIECE = 2**21
"""Elements that step at once; of whole vectors of any CPU, so that pieces get the bits of the whole."""


def split(make: Callable[[], Any], fraction: float) -> Any:
    """megatron-core's optimizer with a share of its state on the host, which `of` finds.

    Args:
        make: makes the optimizer of a model in megatron-core's DDP. fp32 weights of what goes to the host are made
            there at once: the device never has all of them.
        fraction: of the elements that this rank updates, above 0. Whole stretches of parameters go, in their order, as
            long as no more than this share of those before them and themselves has gone.
    """
    share = _Share(fraction)
    with _MainWeights(share) as mains:
        optimizer = make()
    fused.gradient_norms(always=True)
    for part in optimizer_parts.parts(optimizer):
        every = optimizer_parts.stretches(part)
        part.host_adam = HostAdam(part, every, [one for one in every if _goes(one, share, mains.made)])
    return optimizer


def of(optimizer: Any) -> Iterator[HostAdam]:
    """What `split` put on the host of megatron-core's `optimizer`; nothing if that was not called."""
    for part in optimizer_parts.parts(optimizer):
        if hasattr(part, "host_adam"):
            yield part.host_adam


class _Share:
    """Says of one stretch after another whether it goes to the host."""

    def __init__(self, fraction: float) -> None:
        self.fraction, self.seen, self.gone = fraction, 0, 0

    def takes(self, elements: int) -> bool:
        self.seen += elements
        goes = self.gone + elements <= self.fraction * self.seen
        self.gone += elements if goes else 0
        return goes


class _MainWeights(TorchFunctionMode):
    """Within it, bf16 tensors are widened on the host, as far as its share goes.

    megatron-core widens main weights alone while it makes an optimizer, each by `Tensor.float`.
    """

    def __init__(self, share: _Share) -> None:
        super().__init__()
        self.share, self.made = share, list[Tensor]()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        wide = func is torch.Tensor.float and args[0].dtype == torch.bfloat16
        if not (wide and self.share.takes(args[0].numel())):
            return func(*args, **(kwargs or {}))
        main = host_link.on_host(args[0].numel()).view(args[0].shape)
        self.made.append(main.copy_(args[0].detach().to("cpu")))
        return main


def _goes(stretch: Stretch, share: _Share, made: list[Tensor]) -> bool:
    if stretch.main is None:
        return share.takes(stretch.updated.numel())
    return any(stretch.updated is main for main in made)


@dataclasses.dataclass(frozen=True)
class Hosted:
    """A stretch whose state is on the host.

    Attributes:
        stretch: of which parameter.
        weights: the model's, flat, on the device.
        gradient: in DDP's buffer, flat, on the device.
        moments: by name, flat, in fp32, on the host.
    """

    stretch: Stretch
    weights: Tensor
    gradient: Tensor
    moments: dict[str, Tensor]


class HostAdam:
    """Adam for what is on the host of one part of megatron-core's optimizer.

    Args:
        part: has known all of it so far.
        every: stretches that the part updates, in their order.
        gone: those of them that go to the host.

    Attributes:
        hosted: what is there.
        steps: updates done.
    """

    def __init__(self, part: Any, every: list[Stretch], gone: list[Stretch]) -> None:
        self.steps, self._slots = 0, list[Slot]()
        self._wide: Tensor | None = None
        self.hosted = [_hosted(stretch) for stretch in gone]
        part.get_grad_norm = _norm_of(part, every, self.hosted)
        optimizer_parts.remove(part, gone)
        if not self.hosted:
            return
        first = self.hosted[0]
        device = first.weights.device
        if device.type == "cuda":
            groups.share_cores()
        self.link = Link(device)
        size, pinned = min(PIECE, max(len(one.weights) for one in self.hosted)), device.type == "cuda"
        for _ in range(2):
            gradient, weights = (host_link.on_host(size, x.dtype, pinned) for x in (first.gradient, first.weights))
            self._slots.append(Slot(gradient, weights))
        if first.gradient.dtype != torch.float32:
            self._wide = host_link.on_host(size)

    def tensors(self) -> Iterator[Tensor]:
        """What this rank holds in host memory for it: the state, and what pieces wait in."""
        for one in self.hosted:
            yield from one.moments.values()
            if one.stretch.main is not None:
                yield one.stretch.main
        for slot in self._slots:
            yield from (slot.gradient, slot.weights)
        if self._wide is not None:
            yield self._wide

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Update what is on the host and send its weights to the device.

        Args:
            factor: of the gradients, which clips them.
        """
        self.steps += 1
        pieces = [(one, at) for one in self.hosted for at in range(0, len(one.weights), PIECE)]
        if not pieces:
            return
        self.link.begin()
        self._fetch(self._slots[0], *pieces[0])
        for number, (one, at) in enumerate(pieces):
            if number + 1 < len(pieces):
                self._fetch(self._slots[(number + 1) % 2], *pieces[number + 1])
            slot, weights = self._slots[number % 2], one.weights[at : at + PIECE]
            self.link.wait(slot.fetched)
            self._update(slot, one, at, factor)
            slot.sent = self.link.send(slot.weights[: len(weights)], weights)
        self.link.end()

    def _fetch(self, slot: Slot, one: Hosted, at: int) -> None:
        """Start to fetch a piece into a slot, whose last one has been stepped, once the weights of that have gone."""
        pairs = [(one.gradient[at : at + PIECE], slot.gradient)]
        if one.stretch.main is None:
            pairs.append((one.weights[at : at + PIECE], slot.weights))
        slot.fetched = self.link.fetch([(there, here[: len(there)]) for there, here in pairs], slot.sent)

    def _update(self, slot: Slot, one: Hosted, at: int, factor: float) -> None:
        """Step the piece that is in a slot."""
        moments = [one.moments[name][at : at + PIECE] for name in MOMENTS]
        size, main = len(moments[0]), one.stretch.main
        gradient, back = slot.gradient[:size], slot.weights[:size]
        if self._wide is not None:
            gradient = self._wide[:size].copy_(gradient)
        if factor != 1.0:
            gradient.mul_(factor)
        fp32 = back if main is None else main[at : at + PIECE]
        _adam(fp32, gradient, moments, one.stretch.group, self.steps)
        if main is not None:
            back.copy_(fp32)


def _adam(fp32: Tensor, gradient: Tensor, moments: list[Tensor], group: dict[str, Any], step: int) -> None:
    """Update number `step`, as torch.optim.AdamW with fused=True takes it."""
    beta1, beta2 = group["betas"]
    adamw(
        [fp32],
        [gradient],
        [moments[0]],
        [moments[1]],
        [],
        [torch.tensor(float(step - 1))],  # it counts on by itself
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def _hosted(stretch: Stretch) -> Hosted:
    parameter: Any = stretch.parameter
    moments = {name: host_link.on_host(stretch.updated.numel()) for name in MOMENTS}
    return Hosted(stretch, stretch.of(parameter), stretch.of(parameter.main_grad), moments)


def _norm_of(part: Any, every: list[Stretch], hosted: list[Hosted]) -> Callable[[], float]:
    """In the place of a part's get_grad_norm: of all gradients in their order, whichever are on the host's account."""
    gradients = {id(one.stretch.updated): one.gradient for one in hosted}
    counted = [
        stretch.updated
        for stretch in every
        if mcore.param_is_not_shared(stretch.updated)
        and mcore.param_is_not_tensor_parallel_duplicate(stretch.updated, tp_group=part.tp_group)
    ]

    @torch.no_grad()
    def norm() -> float:
        found = [gradients[id(one)] if id(one) in gradients else one.grad for one in counted]
        group = part.get_grad_stats_parallel_group()
        return float(mcore.clip_grads.get_grad_norm_fp32(found, grad_stats_parallel_group=group))

    return norm
