"""Table entries of methods that balance how fast the modalities learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from modmix.base.space import Hyperparameter
from modmix.base.wording import counted
from modmix.methods.entry import MethodEntry


def _number(name: str, default: float, doc: str, *, high: float | None = None) -> Hyperparameter:
    """A non-negative number that may differ between stacked models."""
    return Hyperparameter(
        name=name, kind="float", default=default, low=0.0, high=high, stackable=True, doc=doc
    )


def _epoch(name: str, default: int, doc: str) -> Hyperparameter:
    return Hyperparameter(name=name, kind="int", default=default, low=0, stackable=True, doc=doc)


def _never_modulates(_: int, params: Mapping[str, Any], epochs: int) -> str | None:
    first, last = params["first_epoch"], params["last_epoch"]
    if first < epochs and first <= last:
        return None
    return (
        f"gradients are never modulated with first_epoch {first} and last_epoch {last} in "
        f"{counted(epochs, 'epoch')}: lower first_epoch"
    )


def _never_estimates(_: int, params: Mapping[str, Any], epochs: int) -> str | None:
    if params["super_epoch"] < epochs:
        return None
    return (
        "the losses' weights stay equal, as training ends with the first super_epoch "
        f"({params['super_epoch']}) after {counted(epochs, 'epoch')}: lower "
        "super_epoch, or raise epochs"
    )


def _entry(
    path: str,
    doc: str,
    *hyperparameters: Hyperparameter,
    idle: Callable[[int, Mapping[str, Any], int], str | None] | None = None,
) -> MethodEntry:
    return MethodEntry(
        path=path,
        doc=doc,
        hyperparameters=hyperparameters,
        min_modalities=2,
        separate_encoders=True,
        idle=idle,
    )


BALANCED: dict[str, MethodEntry] = {
    "ogm_ge": _entry(
        "modmix.methods.ogm_ge:OGMGE",
        "the leading modality's encoder gets a smaller gradient, plus noise (Peng et al. 2022)",
        _number("alpha", 0.3, "α, how strongly the leading modality is slowed down"),
        _number(
            "noise",
            1.0,
            "standard deviation of the noise, relative to that of the gradient; 0: OGM",
        ),
        _epoch("first_epoch", 0, "first epoch with modulation, from 0"),
        _epoch("last_epoch", 50, "last epoch with modulation, from 0"),
        Hyperparameter(
            name="tensors",
            kind="str",
            default="all",
            choices=("all", "convolutions"),
            doc="which gradients of an encoder to change: all, or those of convolution weights",
        ),
        idle=_never_modulates,
    ),
    "agm": _entry(
        "modmix.methods.agm:AGM",
        "encoder gradients scaled by each modality's lead over its average (Li et al. 2023)",
        # The factor is at most exp(10 α), which must be finite.
        _number("alpha", 1.0, "α, how strongly gradients are scaled; 0: not at all", high=8.0),
    ),
    "mmpareto": _entry(
        "modmix.methods.mmpareto:MMPareto",
        "joint and unimodal losses, conflicting gradients resolved (Wei and Hu 2024)",
        _number("gamma", 1.5, "γ, factor by which the encoders' gradients are scaled"),
        Hyperparameter(
            name="norm",
            kind="str",
            default="encoder",
            choices=("encoder", "tensor"),
            doc="what is rescaled to the norm of the summed gradients: an encoder or each tensor",
        ),
    ),
    "pmr": _entry(
        "modmix.methods.pmr:PMR",
        "an additional prototype loss for slower modalities (Fan et al. 2023)",
        _number("alpha", 1.0, "α, weight of the prototype loss of slower modalities"),
        _number("keep", 0.2, "weight of the old prototypes in each update; 0: none", high=1.0),
    ),
    "gblending": _entry(
        "modmix.methods.gblending:GBlending",
        "losses weighted by generalisation and overfitting (Wang et al. 2020)",
        Hyperparameter(
            name="super_epoch",
            kind="int",
            default=10,
            low=1,
            doc="epochs between two estimates of the weights",
        ),
        idle=_never_estimates,
    ),
    "dgl": _entry(
        "modmix.methods.dgl:DGL",
        "unimodal losses train the encoders, the fused loss the fusion (Wei et al. 2025)",
        _number("alpha", 4.0, "α, weight of the unimodal losses"),
    ),
}
