"""Table entries of methods that weight modalities by the confidence of their predictions."""

from __future__ import annotations

from modmix.base.space import Hyperparameter
from modmix.methods.entry import WIDTH, MethodEntry, depth

CONFIDENCE: dict[str, MethodEntry] = {
    "tmc": MethodEntry(
        path="modmix.methods.tmc:TMC",
        doc="evidence of each modality, combined by Dempster's rule (Han et al. 2021)",
        hyperparameters=(
            Hyperparameter(
                name="annealing_epochs",
                kind="float",
                default=50.0,
                low=0.0,
                stackable=True,
                doc="epochs over which the weight of the KL term rises to 1; 0: 1 from the start",
            ),
            depth(0, "each modality's head"),
            WIDTH,
        ),
        min_modalities=2,
    ),
    "qmf": MethodEntry(
        path="modmix.methods.qmf:QMF",
        doc="logits weighted by energy-based confidence, with a rank loss (Zhang et al. 2023)",
        hyperparameters=(
            Hyperparameter(
                name="temperature",
                kind="float",
                default=10.0,
                low=1e-3,
                stackable=True,
                doc="T in the confidence logsumexp(z) / T of a modality",
            ),
            Hyperparameter(
                name="unimodal_weight",
                kind="float",
                default=1.0,
                low=0.0,
                stackable=True,
                doc="weight of the unimodal losses",
            ),
            Hyperparameter(
                name="rank_weight",
                kind="float",
                default=0.1,
                low=0.0,
                stackable=True,
                doc="weight of the rank loss; 0: none",
            ),
            depth(0, "each modality's head"),
            WIDTH,
        ),
        min_modalities=2,
    ),
}
