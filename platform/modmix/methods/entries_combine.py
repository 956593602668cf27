"""Table entries of the methods of "Learn to Combine Modalities" (2018) and its baselines."""

from __future__ import annotations

from modmix.base.space import Hyperparameter
from modmix.methods.entry import HIDDEN, MERGE, PROJECT, WIDTH, MethodEntry, depth

_COMBINATION = (
    Hyperparameter(
        name="beta",
        kind="float",
        default=1.0,
        low=0.0,
        stackable=True,
        doc="β of eq. 8, how strongly correct sources suppress the others; 0: plain average",
    ),
    Hyperparameter(
        name="margin",
        kind="float",
        default=None,
        optional=True,
        low=0.0,
        stackable=True,
        doc="δ of eq. 10 (boosted training), in units of the loss; null: every example counts",
    ),
    Hyperparameter(
        name="detach_weights",
        kind="bool",
        default=True,
        doc="whether to stop gradients through q and the focal factor",
    ),
    Hyperparameter(
        name="alpha",
        kind="float",
        default=0.0,
        low=0.0,
        stackable=True,
        doc="exponent of the focal factor (1 − p) on each source's own loss; 0: none",
    ),
    Hyperparameter(
        name="weights",
        kind="mapping",
        default=None,
        optional=True,
        low=0.0,
        stackable=True,
        doc="weight of each source's loss by name (mixtures: a+b); missing names and null: 1",
    ),
)

COMBINE: dict[str, MethodEntry] = {
    "base": MethodEntry(
        path="modmix.methods.unimodal:Unimodal",
        doc="one modality alone",
        hyperparameters=(
            Hyperparameter(
                name="modality",
                kind="str",
                default=None,
                optional=True,
                doc="which modality; null: one configuration for each",
            ),
            depth(0, "the classifier"),
            WIDTH,
        ),
    ),
    "early": MethodEntry(
        path="modmix.methods.early:Early",
        doc="inputs flattened and concatenated, one network (eq. 1); no tokens",
        hyperparameters=(
            Hyperparameter(
                name="hidden",
                kind="ints",
                default=[64],
                low=1,
                doc="units of each hidden layer; []: linear",
            ),
        ),
        min_modalities=2,
        inputs="raw",
    ),
    "late": MethodEntry(
        path="modmix.methods.late:Late",
        doc="independent classifiers, predictions combined (eq. 2)",
        hyperparameters=(
            Hyperparameter(
                name="combine",
                kind="str",
                default="mean",
                choices=("mean", "learned"),
                doc="mean of the probabilities, or a linear layer on the log-probabilities",
            ),
            depth(0, "each modality's classifier"),
            WIDTH,
        ),
        min_modalities=2,
        separate_encoders=True,
    ),
    "add": MethodEntry(
        path="modmix.methods.add:Add",
        doc="features merged, then one network g (eqs. 3-5)",
        hyperparameters=(MERGE, PROJECT, depth(1, "g"), WIDTH, HIDDEN),
        min_modalities=2,
    ),
    "attend": MethodEntry(
        path="modmix.methods.attend:Attend",
        doc="features weighted by modality attention and summed, then g (Moon et al. 2018)",
        hyperparameters=(
            Hyperparameter(
                name="score",
                kind="str",
                default="joint",
                choices=("joint", "tanh"),
                doc="attention scores of all features jointly, or of each modality by a tanh layer",
            ),
            PROJECT,
            depth(1, "g"),
            WIDTH,
            HIDDEN,
        ),
        min_modalities=2,
    ),
    "mul": MethodEntry(
        path="modmix.methods.mul:Mul",
        doc="a classifier per modality, combined multiplicatively (eqs. 8-10)",
        hyperparameters=(
            *_COMBINATION,
            depth(0, "each modality's classifier"),
            WIDTH,
        ),
        min_modalities=2,
    ),
    "cldl": MethodEntry(
        path="modmix.methods.cldl:CLDL",
        doc="mul with β = 1 and source weights 0.3, but 1 for the last modality (Jin et al. 2016)",
        hyperparameters=(depth(0, "each modality's classifier"), WIDTH),
        min_modalities=2,
    ),
    "mulmix": MethodEntry(
        path="modmix.methods.mulmix:MulMix",
        doc="a classifier per mixture of modalities, combined multiplicatively (eqs. 11-13)",
        hyperparameters=(
            *_COMBINATION,
            MERGE,
            PROJECT,
            depth(1, "each mixture's g"),
            WIDTH,
            HIDDEN,
            Hyperparameter(
                name="max_subset",
                kind="int",
                default=None,
                optional=True,
                low=1,
                doc="largest number of modalities in a mixture; null: all",
            ),
        ),
        min_modalities=2,
    ),
}
