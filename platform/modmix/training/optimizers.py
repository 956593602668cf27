"""SGD, Adam and AdamW for K models at once, with clipping, weight decay and schedules per model.

The parameters of all models are one (K, P) tensor with a row per model, and so are gradients and
moments: a step is a handful of operations, however many layers there are. Every row gets the update
that ``torch.optim`` and ``clip_grad_norm_`` compute for that model alone; NaN does not spread to
other rows.

On a CPU the update is a single pass over memory by torch's fused kernels. These take one learning
rate per call, so adjacent rows with equal settings (the seeds of a configuration, configurations
that differ only in β) share a call. On other devices each operation over all rows is one kernel
launch, with per-row settings broadcast.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from modmix.training.device import like_gpu
from modmix.training.weights import pick

Training = Mapping[str, Any]  # one model's training settings


class _Piece(NamedTuple):
    """The tensors that one fused-kernel call updates, and the settings they share."""

    rate: float
    momentum: float
    decay: float
    tensors: Mapping[str, list[Tensor]]  # "parameters", "gradient" and the optimizer's state


# A range of columns: start, stop (exclusive), and whether weight decay applies to it.
_Segment = tuple[int, int, bool]


class Optimizer:
    """One update rule for (K, P) parameters; stackable settings may differ between rows.

    ``training`` has one mapping per model. ``decays_P`` is 1 where weight decay applies,
    ``trained_P`` is 1 where parameters are trained (None: all). Each row of ``parts_QP`` is 1 for
    the parameters that are clipped together, by their own norm (None: the whole model).
    """

    def __init__(
        self,
        training: Sequence[Training],
        parameters_KP: Tensor,
        decays_P: Tensor,
        trained_P: Tensor | None = None,
        *,
        epochs: int | None = None,
        parts_QP: Tensor | None = None,
    ) -> None:
        self.training = list(training)
        self.settings = training[0]  # for structural settings, equal in all models
        self.kind: str = self.settings["optimizer"]
        self.epochs = self.settings["epochs"] if epochs is None else epochs
        self.decays_P = decays_P
        self.trained_P = trained_P
        self.parts_QP = parts_QP
        self.steps = 0
        # `steps` on the device, incremented by graph replays; float64 for 1 − 0.999^t.
        self._count = torch.zeros((), dtype=torch.float64, device=parameters_KP.device)
        self.state = {name: torch.zeros_like(parameters_KP) for name in self._state_names()}
        self._fused = not like_gpu(parameters_KP.device) and parameters_KP.dtype == torch.float32
        self._segments = _segments(decays_P, trained_P) if self._fused else []
        self._pieces: list[_Piece] = []
        self._of: tuple[int, int] | None = None  # data pointers of the tensors the pieces view
        self._read_rows(parameters_KP.device)
        self.rate_K1 = torch.zeros_like(self.momentum_K1)
        self._shrink_KP: Tensor | None = None
        if self.kind == "adamw" and self.decay_KP is not None:
            self._shrink_KP = torch.empty_like(self.decay_KP)
        self.start_epoch(0)

    def _state_names(self) -> tuple[str, ...]:
        if self.kind == "sgd":
            return ("momentum",) if any(t["momentum"] for t in self.training) else ()
        return ("first", "second")

    def _read_rows(self, device: torch.device) -> None:
        def column(name: str, null: float = 0.0) -> Tensor:
            values = [null if t[name] is None else float(t[name]) for t in self.training]
            return torch.tensor(values, device=device).unsqueeze(1)

        self.momentum_K1 = column("momentum")
        self.clip_K1 = column("clip_norm", null=math.inf)
        self.clips = any(t["clip_norm"] is not None for t in self.training)
        self.decay_KP: Tensor | None = None
        if any(t["weight_decay"] for t in self.training):
            trained = 1.0 if self.trained_P is None else self.trained_P
            self.decay_KP = column("weight_decay") * (self.decays_P * trained)

    def change(self, row: int, training: Training) -> None:
        """Give a row other settings, from the next epoch on."""
        self.training[row] = training
        self._read_rows(self.rate_K1.device)
        shape = len(self.training), self.decays_P.shape[0]
        for name in self._state_names():  # momentum, where no model had any
            self.state.setdefault(name, torch.zeros(shape, device=self.rate_K1.device))
        if self._shrink_KP is not None or (self.kind == "adamw" and self.decay_KP is not None):
            assert self.decay_KP is not None
            self._shrink_KP = torch.empty_like(self.decay_KP)

    def start_epoch(self, epoch: int, steps: int = 1) -> None:
        """Set every model's learning rate for this epoch (from 0) of so many steps."""
        self._epoch, self._falls = epoch, falls(self.settings, epoch, steps)
        self._set_rates(0)

    def start_step(self, step: int) -> None:
        """Set the learning rates of a step (from 0) of this epoch: a milestone may lie within."""
        if self._falls and bisect.bisect(self._falls, step) != self._fallen:
            self._set_rates(step)

    def _set_rates(self, step: int) -> None:
        device = self.momentum_K1.device
        self._of = None
        self._fallen = bisect.bisect(self._falls, step)
        self.rates = [
            float(t["learning_rate"]) * schedule(t, self._epoch, self.epochs, self._fallen)
            for t in self.training
        ]
        # In place: a captured graph reads from these addresses.
        self.rate_K1.copy_(torch.tensor(self.rates, device=device).unsqueeze(1))
        if self._shrink_KP is not None:
            assert self.decay_KP is not None
            torch.mul(self.rate_K1, self.decay_KP, out=self._shrink_KP).neg_().add_(1.0)

    def resume(self, steps: int) -> None:
        """Set the step count; the caller restores the tensors of ``state``."""
        self.steps = steps
        self._count.fill_(steps)

    @torch.no_grad()
    def step(self, parameters_KP: Tensor, gradient_KP: Tensor) -> None:
        """Update the parameters in place; the gradient is overwritten."""
        self.steps += 1
        if self.trained_P is not None:
            gradient_KP.mul_(self.trained_P)
        if self.clips:
            gradient_KP.mul_(self._clip_factors(gradient_KP))
        if self._fused:
            self._step_fused(parameters_KP, gradient_KP)
        else:
            self._step_broadcast(parameters_KP, gradient_KP)

    def _clip_factors(self, gradient_KP: Tensor) -> Tensor:
        """The factors by which `clip_grad_norm_` scales gradients: (K, 1), or (K, P) with parts."""
        if self.parts_QP is None:
            norm_K1 = torch.linalg.vector_norm(gradient_KP, dim=1, keepdim=True)
            return torch.clamp(self.clip_K1 / (norm_K1 + 1e-6), max=1.0)
        factors = torch.ones_like(gradient_KP)
        for part_P in self.parts_QP:
            of_part_KP = torch.where(part_P > 0, gradient_KP, 0.0)
            norm_K1 = torch.linalg.vector_norm(of_part_KP, dim=1, keepdim=True)
            factor_K1 = torch.clamp(self.clip_K1 / (norm_K1 + 1e-6), max=1.0)
            factors = torch.where(part_P > 0, factor_K1, factors)
        return factors

    # ------------------------------------------------------------ fused kernels (CPU)

    def _step_fused(self, parameters_KP: Tensor, gradient_KP: Tensor) -> None:
        memory = parameters_KP.data_ptr(), gradient_KP.data_ptr()
        if self._of != memory:
            self._pieces, self._of = list(self._cut(parameters_KP, gradient_KP)), memory
        for rate, momentum, decay, tensors in self._pieces:
            if self.kind == "sgd":
                self._fused_sgd(rate, momentum, decay, tensors)
            else:
                self._fused_adam(rate, decay, tensors)

    def _fused_sgd(
        self, rate: float, momentum: float, decay: float, tensors: Mapping[str, list[Tensor]]
    ) -> None:
        parameters = tensors["parameters"]
        # Momentum starts from zeros, so the first one is the gradient, as in torch.
        buffers: list[Tensor | None] = [None] * len(parameters)
        if momentum:
            buffers = list(tensors["momentum"])
        sgd(
            parameters,
            tensors["gradient"],
            buffers,
            fused=True,
            weight_decay=decay,
            momentum=momentum,
            lr=rate,
            dampening=0.0,
            nesterov=bool(momentum) and self.settings["nesterov"],
            maximize=False,
        )

    def _fused_adam(self, rate: float, decay: float, tensors: Mapping[str, list[Tensor]]) -> None:
        parameters = tensors["parameters"]
        beta_1, beta_2 = self.settings["betas"]
        adam(
            parameters,
            tensors["gradient"],
            tensors["first"],
            tensors["second"],
            [],
            [torch.tensor(float(self.steps - 1)) for _ in parameters],  # adam() adds 1
            fused=True,
            decoupled_weight_decay=self.kind == "adamw",
            amsgrad=False,
            beta1=beta_1,
            beta2=beta_2,
            lr=rate,
            weight_decay=decay,
            eps=self.settings["eps"],
            maximize=False,
        )

    def _cut(self, parameters_KP: Tensor, gradient_KP: Tensor) -> Iterator[_Piece]:
        """Yield pieces: runs of adjacent rows with equal settings, by range of columns."""
        whole = {"parameters": parameters_KP.detach(), "gradient": gradient_KP, **self.state}
        columns = parameters_KP.shape[1]
        settings = [
            (rate, float(t["momentum"] or 0.0), float(t["weight_decay"] or 0.0))
            for rate, t in zip(self.rates, self.training, strict=True)
        ]
        for setting, run in itertools.groupby(range(len(settings)), lambda row: settings[row]):
            rows = list(run)
            rate, momentum, decay = setting
            for start, stop, decays in self._segments if decay else _joined(self._segments):
                if (start, stop) == (0, columns):
                    cuts = [(rows[0], rows[-1] + 1, 0, columns)]
                else:
                    cuts = [(row, row + 1, start, stop) for row in rows]
                tensors = {
                    name: [value[a:b, c:d].flatten() for a, b, c, d in cuts]
                    for name, value in whole.items()
                }
                yield _Piece(rate, momentum, decay if decays else 0.0, tensors)

    # ------------------------------------------------------------ broadcast over rows (GPU)

    def _step_broadcast(self, parameters_KP: Tensor, gradient_KP: Tensor) -> None:
        self._count += 1
        if self._shrink_KP is not None:
            parameters_KP.mul_(self._shrink_KP)
        elif self.decay_KP is not None and self.kind != "adamw":
            gradient_KP.addcmul_(parameters_KP, self.decay_KP)
        if self.kind == "sgd":
            self._step_sgd(parameters_KP, gradient_KP)
        else:
            self._step_adam(parameters_KP, gradient_KP)

    def _step_sgd(self, parameters_KP: Tensor, gradient_KP: Tensor) -> None:
        update_KP = gradient_KP
        if "momentum" in self.state:
            velocity_KP = self.state["momentum"]
            velocity_KP.mul_(self.momentum_K1).add_(gradient_KP)
            update_KP = velocity_KP
            if self.settings["nesterov"]:
                update_KP = gradient_KP.addcmul_(velocity_KP, self.momentum_K1)
        parameters_KP.addcmul_(update_KP, self.rate_K1, value=-1)

    def _step_adam(self, parameters_KP: Tensor, gradient_KP: Tensor) -> None:
        first, second = self.state["first"], self.state["second"]
        beta_1, beta_2 = self.settings["betas"]
        first.lerp_(gradient_KP, 1 - beta_1)
        second.mul_(beta_2).addcmul_(gradient_KP, gradient_KP, value=1 - beta_2)
        # m̂ / (√v̂ + ε), with the bias corrections folded into the rate and ε: saves two passes.
        root = (1 - beta_2**self._count).sqrt()
        factor_K1 = self.rate_K1 * (root / (1 - beta_1**self._count))
        torch.sqrt(second, out=gradient_KP)
        gradient_KP.add_(self.settings["eps"] * root)
        torch.div(first, gradient_KP, out=gradient_KP)
        parameters_KP.addcmul_(gradient_KP, factor_K1, value=-1)

    # ------------------------------------------------------------ rows and checkpoints

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order; see `pick`."""
        self.training = [self.training[row] for row in rows]
        self._count = self._count.clone()  # not shared between the halves of a split group
        self.state = {name: pick(value, rows) for name, value in self.state.items()}
        for name in ("momentum_K1", "clip_K1", "rate_K1", "decay_KP", "_shrink_KP"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else pick(value, rows))
        self.rates = [self.rates[row] for row in rows]
        self._pieces, self._of = [], None


def _segments(decays_P: Tensor, trained_P: Tensor | None) -> list[_Segment]:
    """Contiguous ranges of trained columns, split by whether weight decay applies."""
    kind_P = (decays_P > 0).long()
    if trained_P is not None:
        kind_P = torch.where(trained_P > 0, kind_P, -1)
    kinds, lengths = torch.unique_consecutive(kind_P, return_counts=True)
    stops = lengths.cumsum(0).tolist()
    found = zip([0, *stops], stops, kinds.tolist())
    return [(start, stop, bool(kind)) for start, stop, kind in found if kind >= 0]


def _joined(segments: Sequence[_Segment]) -> list[_Segment]:
    """The segments with adjacent ones merged, for rows without weight decay."""
    joined: list[_Segment] = []
    for start, stop, _ in segments:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop, False))
    return joined


def schedule(training: Training, epoch: int, epochs: int, fallen: int = 0) -> float:
    """The learning-rate factor in an epoch (from 0) of ``epochs``.

    ``fallen`` is how many milestones within this epoch (see `falls`) have been passed.

    Example:
        >>> schedule({"schedule": "step", "decay_rate": 0.1, "milestones": [2, 4]}, 4, 6)
        0.010000000000000002
    """
    rate = training["decay_rate"]
    match training["schedule"]:
        case "exponential":
            return float(rate**epoch)
        case "step":
            passed = sum(epoch >= milestone for milestone in training["milestones"])
            return float(rate ** (passed + fallen))
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))
        case _:
            return 1.0


def falls(training: Training, epoch: int, steps: int) -> list[int]:
    """Steps of an epoch, in order, at which a milestone within it lets the learning rate fall.

    A milestone m, in epochs of ``steps`` steps, is the step round(m · steps) of the training; one
    at the very start of an epoch belongs to `schedule`.

    Example:
        >>> falls({"schedule": "step", "milestones": [2, 4.5, 4.75]}, 4, 10)
        [5, 8]
    """
    if training["schedule"] != "step":
        return []
    within = (round(m * steps) - epoch * steps for m in training["milestones"] if m > epoch)
    return [step for step in within if step < steps]
