"""Table entries of methods that train in stages or in turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from modmix.base.space import Hyperparameter
from modmix.methods.entry import PROJECT, WIDTH, MethodEntry, depth


def _stackable(name: str, default: float, low: float, doc: str) -> Hyperparameter:
    return Hyperparameter(
        name=name, kind="float", default=default, low=low, stackable=True, doc=doc
    )


def _no_duc(_: int, params: Mapping[str, Any], epochs: int) -> str | None:
    warmup = params["warmup"]
    if warmup < epochs or not params["duc_weight"]:
        return None
    return (
        f"DUC never acts, as it begins after warmup ({warmup}) epochs and there are {epochs}: "
        "lower warmup, raise epochs, or set duc_weight: 0"
    )


def _no_round(modalities: int, params: Mapping[str, Any], epochs: int) -> str | None:
    length = 2 * modalities * params["turn_epochs"]
    if length <= epochs:
        return None
    return (
        f"{epochs} epochs end before a round of the turns of {modalities} modalities, which takes "
        f"{length}: raise epochs"
    )


STAGED: dict[str, MethodEntry] = {
    "dimml": MethodEntry(
        path="modmix.methods.dimml:Dimml",
        doc="DI-MML: unimodal and shared classifiers and DUC, then a head (Fan et al. 2024)",
        hyperparameters=(
            _stackable("shared_weight", 1.0, 0.0, "w, weight of the shared classifier's loss"),
            _stackable("duc_weight", 1.0, 0.0, "λ, weight of DUC; 0: no DUC"),
            _stackable("tau", 10.0, 1e-6, "τ, temperature of DUC's dot products"),
            _stackable("temperature", 1.0, 1e-6, "T, temperature of the logit weighting"),
            Hyperparameter(
                name="warmup",
                kind="int",
                default=20,
                low=0,
                doc="epochs before DUC; no DUC if not less than the number of epochs",
            ),
            Hyperparameter(
                name="directions",
                kind="str",
                default="both",
                choices=("both", "forward", "backward"),
                doc="which modalities teach; forward: earlier teach later ones; backward: reverse",
            ),
            Hyperparameter(
                name="separate",
                kind="bool",
                default=True,
                doc="whether DUC acts only on dimensions effective for the teacher alone",
            ),
            Hyperparameter(
                name="head",
                kind="str",
                default="concat",
                choices=("concat", "sum", "film", "gated", "none"),
                doc="head of stage 2 on the frozen features; none: no stage 2",
            ),
            Hyperparameter(
                name="head_epochs", kind="int", default=20, low=1, doc="epochs of stage 2"
            ),
            Hyperparameter(
                name="weighting",
                kind="bool",
                default=True,
                doc="whether logits are weighted by certainty; false: mean of the logits",
            ),
            replace(PROJECT, doc="units of a linear layer with ReLU on each modality; null: none"),
        ),
        min_modalities=2,
        separate_encoders=True,
        idle=_no_duc,
    ),
    "mla": MethodEntry(
        path="modmix.methods.mla:MLA",
        doc="modalities take turns through one shared head (Zhang et al. 2024)",
        hyperparameters=(
            Hyperparameter(
                name="damping",
                kind="float",
                default=0.1,
                low=1e-6,
                stackable=True,
                doc="damping in the update of the projection of the head's gradient",
            ),
            PROJECT,
        ),
        min_modalities=2,
        separate_encoders=True,
    ),
    "reconboost": MethodEntry(
        path="modmix.methods.reconboost:ReconBoost",
        doc="each modality in turn corrects the ensemble of the others (Hua et al. 2024)",
        hyperparameters=(
            Hyperparameter(
                name="reconcile",
                kind="float",
                default=0.2,
                low=0.0,
                high=1.0,
                stackable=True,
                doc="λ, how strongly examples that the others classify well are down-weighted",
            ),
            Hyperparameter(
                name="turn_epochs",
                kind="int",
                default=1,
                low=1,
                doc="epochs of each turn; a cycle has two turns per modality",
            ),
            depth(0, "each modality's head"),
            WIDTH,
        ),
        min_modalities=2,
        separate_encoders=True,
        idle=_no_round,
    ),
    "umt": MethodEntry(
        path="modmix.methods.umt:UMT",
        doc="joint training with distillation from unimodal teachers (Du et al. 2023)",
        hyperparameters=(
            Hyperparameter(
                name="distillation",
                kind="float",
                default=1.0,
                low=0.0,
                stackable=True,
                doc="λ, weight of the squared distance to the teachers' features",
            ),
            Hyperparameter(
                name="teacher_epochs",
                kind="int",
                default=None,
                optional=True,
                low=1,
                doc="epochs of the teachers' stage; null: the same as epochs",
            ),
            depth(0, "the head and of each teacher's head"),
            WIDTH,
        ),
        min_modalities=2,
        separate_encoders=True,
        encoder_sets=("", "teacher/"),
    ),
}
