"""Table entries of methods that train in stages or in turns."""

from __future__ import annotations

from modmix.base.space import Hyperparameter
from modmix.methods.entry import PROJECT, WIDTH, MethodEntry, depth

STAGED: dict[str, MethodEntry] = {
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
                doc="α in the update of the projection of the head's gradient",
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
                doc="λ, how much less examples count that the other modalities classify well",
            ),
            Hyperparameter(
                name="turn_epochs",
                kind="int",
                default=1,
                low=1,
                doc="epochs of each turn; a round has two turns per modality",
            ),
            depth(0, "each modality's head"),
            WIDTH,
        ),
        min_modalities=2,
        separate_encoders=True,
    ),
    "umt": MethodEntry(
        path="modmix.methods.umt:UMT",
        doc="joint training whose features follow unimodal teachers (Du et al. 2023)",
        hyperparameters=(
            Hyperparameter(
                name="distillation",
                kind="float",
                default=1.0,
                low=0.0,
                stackable=True,
                doc="weight λ of the distance between features and those of the teachers",
            ),
            Hyperparameter(
                name="teacher_epochs",
                kind="int",
                default=None,
                optional=True,
                low=1,
                doc="epochs of the teachers' stage; null: as the training setting epochs",
            ),
            depth(0, "the head and of each teacher's head"),
            WIDTH,
        ),
        min_modalities=2,
        separate_encoders=True,
        encoder_sets=("", "teacher/"),
    ),
}
