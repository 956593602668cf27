"""Table entries of methods that train in stages or in turns."""

from __future__ import annotations

from modmix.base.space import Hyperparameter
from modmix.methods.entry import WIDTH, MethodEntry, depth

STAGED: dict[str, MethodEntry] = {
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
