"""Table entries of jointly trained fusion architectures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modmix.base.space import Hyperparameter
from modmix.methods.entry import WIDTH, MethodEntry, depth

MAX_PRODUCT = 2**17  # elements of the outer product of tfn


def _units(name: str, default: int, doc: str) -> Hyperparameter:
    return Hyperparameter(name=name, kind="int", default=default, low=1, doc=doc)


def _check_condition(names: Sequence[str], params: Mapping[str, Any]) -> list[str]:
    chosen = params["condition"]
    if chosen is None or chosen in names:
        return []
    return [f"condition must be one of {', '.join(names)}, got {chosen!r}"]


def _check_product(names: Sequence[str], params: Mapping[str, Any]) -> list[str]:
    size = (params["project"] + 1) ** len(names)
    if size <= MAX_PRODUCT:
        return []
    problem = (
        f"the outer product (project + 1)^M must have at most {MAX_PRODUCT} elements, got {size} "
        f"with {len(names)} modalities and project: {params['project']}; set project lower, or "
        "use lmf"
    )
    return [problem]


def _check_heads(names: Sequence[str], params: Mapping[str, Any]) -> list[str]:  # noqa: ARG001
    if params["width"] % params["heads"] == 0:
        return []
    return [f"width must be a multiple of heads ({params['heads']}), got {params['width']}"]


def _condition(does: str) -> Hyperparameter:
    doc = f"the modality that {does} the others; null: the first"
    return Hyperparameter(name="condition", kind="str", default=None, optional=True, doc=doc)


JOINT: dict[str, MethodEntry] = {
    "concat": MethodEntry(
        path="modmix.methods.concat:Concat",
        doc="a linear classifier on the concatenated features",
        min_modalities=2,
    ),
    "sum": MethodEntry(
        path="modmix.methods.sum:Sum",
        doc="a linear classifier per modality, logits summed",
        min_modalities=2,
    ),
    "film": MethodEntry(
        path="modmix.methods.film:Film",
        doc="one modality scales and shifts the features of the others (Perez et al. 2018)",
        hyperparameters=(_condition("scales and shifts"),),
        min_modalities=2,
        check=_check_condition,
    ),
    "gated": MethodEntry(
        path="modmix.methods.gated:Gated",
        doc="one modality gates the others (Kiela et al. 2018)",
        hyperparameters=(
            _condition("gates"),
            _units("width", 64, "units of each gated modality"),
        ),
        min_modalities=2,
        check=_check_condition,
    ),
    "mmcosine": MethodEntry(
        path="modmix.methods.mmcosine:MMCosine",
        doc="summed cosines of features and class weights, scaled (Xu et al. 2023)",
        hyperparameters=(
            Hyperparameter(
                name="scale",
                kind="float",
                default=10.0,
                low=0.0,
                stackable=True,
                doc="s, factor from the sum of the cosines to the logits",
            ),
        ),
        min_modalities=2,
    ),
    "gmu": MethodEntry(
        path="modmix.methods.gmu:GMU",
        doc="gated multimodal unit: features gated by all modalities (Arevalo et al. 2017)",
        hyperparameters=(_units("width", 64, "units of the fused representation"),),
        min_modalities=2,
    ),
    "moddrop": MethodEntry(
        path="modmix.methods.moddrop:ModDrop",
        doc="concatenation, then g; whole modalities dropped in training (Neverova et al. 2016)",
        hyperparameters=(
            Hyperparameter(
                name="drop",
                kind="float",
                default=0.2,
                low=0.0,
                high=1.0,
                stackable=True,
                doc="probability that a modality of an example is dropped; at least one is kept",
            ),
            depth(1, "g"),
            WIDTH,
        ),
        min_modalities=2,
    ),
    "tfn": MethodEntry(
        path="modmix.methods.tfn:TFN",
        doc="tensor fusion: outer product of the projected features, then g (Zadeh et al. 2017)",
        hyperparameters=(
            _units("project", 16, "units of a linear layer with ReLU on each modality"),
            depth(2, "g"),
            _units("width", 128, "units of each hidden layer"),
        ),
        min_modalities=2,
        check=_check_product,
    ),
    "lmf": MethodEntry(
        path="modmix.methods.lmf:LMF",
        doc="tensor fusion with weights of low rank (Liu et al. 2018)",
        hyperparameters=(
            _units("rank", 4, "rank of the weights"),
            _units("width", 64, "units of the fused representation"),
        ),
        min_modalities=2,
    ),
    "late_transformer": MethodEntry(
        path="modmix.methods.late_transformer:LateTransformer",
        doc="a token per modality, joined by a Transformer layer (Rheude et al. 2025)",
        hyperparameters=(
            _units("width", 64, "units of each token, a multiple of heads"),
            _units("heads", 4, "attention heads"),
            _units("feedforward", 128, "hidden units of each layer's MLP"),
            _units("layers", 1, "Transformer layers"),
            Hyperparameter(
                name="dropout",
                kind="float",
                default=0.1,
                low=0.0,
                high=1.0,
                doc="dropout probability inside the layers",
            ),
            Hyperparameter(
                name="pool",
                kind="str",
                default="class",
                choices=("class", "mean"),
                doc="classify a class token, or the mean of the tokens",
            ),
        ),
        min_modalities=2,
        check=_check_heads,
    ),
    "centralnet": MethodEntry(
        path="modmix.methods.centralnet:CentralNet",
        doc="a central network merges the modalities' hidden layers (Vielzeuf et al. 2018)",
        hyperparameters=(
            Hyperparameter(
                name="weight",
                kind="float",
                default=1.0,
                low=0.0,
                stackable=True,
                doc="weight of the loss of each modality's own network",
            ),
            _units("depth", 2, "hidden layers of each network"),
            WIDTH,
        ),
        min_modalities=2,
    ),
}
