"""A model is encoders plus a method: its description, construction, saving and loading."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modmix.base import sources
from modmix.base.errors import InputError
from modmix.encoders.base import Encoder
from modmix.encoders.table import encoder_entry, modality_inputs
from modmix.methods.base import Method, Outputs
from modmix.methods.draws import own_dropout
from modmix.methods.table import method_entry
from modmix.methods.table import modalities as modalities_used

if TYPE_CHECKING:
    from modmix.base.messages import Replicate
    from modmix.tasks.data import Data

# Format version of `pack_weights`. Version 1 described modalities instead of inputs.
WEIGHTS_VERSION = 2


def derive_seed(seed: int, *words: str | int) -> int:
    """Derive a 56-bit seed for one purpose ("weights", "batches" of an epoch, …)."""
    text = json.dumps([seed, *words])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


# ---------------------------------------------------------------- descriptions


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a model needs to know about an input."""

    shape: tuple[int, ...]  # of one example
    kind: str = "dense"
    vocabulary: int | None = None  # tokens only: ids are 0 .. vocabulary - 1


@dataclass(frozen=True, kw_only=True)
class EncoderUse:
    """One encoder of a model: its input, the modalities it provides, and its set of encoders.

    ``modalities`` maps each modality to the encoder's name for it, or to None if the encoder has a
    single output.
    """

    input: str
    modalities: Mapping[str, str | None]
    encoder_set: str = ""

    @property
    def features(self) -> Mapping[str, str | None]:
        """As ``modalities``, by the names of the features: with the set before the modality's."""
        return {f"{self.encoder_set}{name}": part for name, part in self.modalities.items()}

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(part for part in self.modalities.values() if part is not None)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything a model is built from, except its seed.

    ``encoders`` maps an input to its encoder, such as ``{"name": "mlp", "hidden": [64]}``; inputs
    that the method does not use may be left out. ``inputs`` are all inputs of the task, in order.
    ``sources`` holds the source text of user-defined classes (see `modmix.base.sources`).
    """

    method: str
    params: Mapping[str, Any]
    encoders: Mapping[str, Mapping[str, Any]]
    inputs: Mapping[str, InputSpec]
    classes: int
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @cached_property
    def used_encoders(self) -> Mapping[str, Mapping[str, Any]]:
        """Input -> encoder, in the task's order; `Identity` for methods that take raw inputs."""
        if method_entry(self.method).inputs == "raw":
            return {name: {"name": "identity"} for name in self.inputs}
        return {name: self.encoders[name] for name in self.inputs if name in self.encoders}

    @cached_property
    def modalities(self) -> Mapping[str, tuple[str, str | None]]:
        """Modality used by the method -> its input and the encoder's name for it (or None)."""
        made = modality_inputs(self.used_encoders, prefixed=len(self.inputs) > 1)
        used = modalities_used(self.method, list(made), self.params)
        return {name: made[name] for name in used}

    @cached_property
    def encoders_built(self) -> tuple[EncoderUse, ...]:
        """Every encoder of the model, set after set, each in the order of the task's inputs.

        A set has one per input, or one per modality for methods with separate encoders (`late`).
        """
        entry = method_entry(self.method)
        alone = entry.separate_encoders
        uses: dict[tuple[str, str], dict[str, str | None]] = {}
        for modality, (name, part) in self.modalities.items():
            uses.setdefault((name, modality if alone else ""), {})[modality] = part
        built = [EncoderUse(input=name, modalities=parts) for (name, _), parts in uses.items()]
        order = list(self.inputs)
        built.sort(key=lambda use: order.index(use.input))
        return tuple(replace(use, encoder_set=each) for each in entry.encoder_sets for use in built)

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """Inputs that the model uses, in the task's order."""
        used = {name for name, _ in self.modalities.values()}
        return tuple(name for name in self.inputs if name in used)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> ModelSpec:
        inputs = {
            name: InputSpec(**{**given, "shape": tuple(given["shape"])})
            for name, given in raw["inputs"].items()
        }
        return ModelSpec(**{**raw, "inputs": inputs})


def model_spec(replicate: Replicate, data: Data) -> ModelSpec:
    """The `ModelSpec` of a replicate on this task."""
    names = [replicate.method, *(encoder["name"] for encoder in replicate.encoders.values())]
    return ModelSpec(
        method=replicate.method,
        params=dict(replicate.params),
        encoders={name: dict(spec) for name, spec in replicate.encoders.items()},
        inputs={
            name: InputSpec(shape=one.shape, kind=one.kind, vocabulary=one.vocabulary)
            for name, one in data.inputs.items()
        },
        classes=data.classes,
        sources=sources.bundles(names),
    )


# ---------------------------------------------------------------- models

_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


class Model(nn.Module):
    """Encoders and a method on top, for one model and one batch.

    ``uses`` has one entry per encoder. Encoders are in a `ModuleList` because `ModuleDict` rejects
    keys that are valid input names ("values", "face.left").
    """

    def __init__(
        self, uses: Sequence[EncoderUse], encoders: Sequence[nn.Module], method: Method
    ) -> None:
        super().__init__()
        self.uses = tuple(uses)
        self.modalities = method.modalities
        self.inputs = tuple(dict.fromkeys(use.input for use in uses))
        self.encoders = nn.ModuleList(encoders)
        self.method = method
        sets = dict.fromkeys(use.encoder_set for use in uses)
        self.feature_names = tuple(f"{each}{name}" for each in sets for name in method.modalities)
        method.encoder_prefixes = {
            name: f"encoders.{i}." for i, use in enumerate(uses) for name in use.features
        }
        if hasattr(type(method), "convolution_weights"):  # a method that asks for them
            method.convolution_weights = frozenset(
                f"{name}.weight"
                for name, one in self.named_modules()
                if isinstance(one, _CONVOLUTIONS)
            )

    def features(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encode inputs (B, *shape) into features (B, D_m) by modality, of every encoder set."""
        found: dict[str, Tensor] = {}
        for use, encoder in zip(self.uses, self.encoders, strict=True):
            made = encoder(inputs[use.input])
            for name, part in use.features.items():
                found[name] = made if part is None else made[part]
        return {name: found[name] for name in self.feature_names}

    def forward(self, inputs: Mapping[str, Tensor]) -> Outputs:
        return self.method(self.features(inputs))

    def loss(self, outputs: Outputs, target_B: Tensor) -> Tensor:
        return self.method.loss(outputs, target_B)

    def scores(self, outputs: Outputs) -> Tensor:
        return self.method.scores(outputs)

    def log_probabilities(self, outputs: Outputs) -> Tensor:
        return self.method.log_probabilities(outputs)

    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """Parts that train independently, see `Method.parts`."""
        return self.method.parts()


def build_model(spec: ModelSpec, seed: int) -> Model:
    """Build and initialise a model; the state of torch's global generator is left unchanged.

    An encoder's initial weights depend on the seed and the name of its input only (with separate
    encoders for one input, also on the modality; in further encoder sets, also on the set), the
    method's on the seed only. So adding or removing an encoder does not change the others.

    Raises:
        InputError: values that are valid one by one but not together (features of unequal width
            that are to be summed), or a user-defined class that cannot be built.
    """
    sources.register(spec.sources)
    encoders: list[Encoder] = []
    widths: dict[str, int] = {}
    apart = method_entry(spec.method).separate_encoders
    for use in spec.encoders_built:
        words = ["encoder", use.input, *(use.parts if apart else ())]
        if use.encoder_set:
            words += ["set", use.encoder_set]
        with _generator(seed, *words):
            encoder = _build_encoder(spec, use)
        encoders.append(encoder)
        name = spec.used_encoders[use.input]["name"]
        widths |= {m: _width(encoder, part, name) for m, part in use.modalities.items()}
    widths = {modality: widths[modality] for modality in spec.modalities}
    with _generator(seed, "method"), _explained(spec.method, "method"):
        kind = sources.load_subclass(method_entry(spec.method).path, Method, "modmix.Method")
        method = kind(widths, spec.classes, **spec.params)
    model = Model(spec.encoders_built, encoders, method)
    own_dropout(model)
    return model


def _build_encoder(spec: ModelSpec, use: EncoderUse) -> Encoder:
    encoder, given = spec.used_encoders[use.input], spec.inputs[use.input]
    arguments = {key: value for key, value in encoder.items() if key != "name"}
    with _explained(encoder["name"], f"encoder of {use.input}"):
        path = encoder_entry(encoder["name"]).path
        kind = sources.load_subclass(path, Encoder, "modmix.Encoder")
        if given.kind == "tokens" and "vocabulary" in inspect.signature(kind).parameters:
            arguments["vocabulary"] = given.vocabulary
        built: Encoder = kind(given.shape, **arguments)
        if use.parts:
            built.keep_only(use.parts)
    return built


def _width(encoder: nn.Module, part: str | None, name: str) -> int:
    """Feature width of one modality, from the encoder's attribute ``features``."""
    widths = getattr(encoder, "features", None)
    if part is None and isinstance(widths, int):
        return widths
    if part is not None and isinstance(widths, Mapping) and isinstance(widths.get(part), int):
        return int(widths[part])
    must = "a whole number" if part is None else f"a mapping with a whole number for {part!r}"
    raise InputError(
        f"the attribute features of {sources.place(name)} must be {must}, got {widths!r}: set "
        "it in the constructor, and name several modalities in the class attribute modalities"
    )


@contextmanager
def _generator(seed: int, *words: str) -> Iterator[None]:
    """Seed torch's global CPU generator inside the block and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed every accelerator, too.
        torch.default_generator.manual_seed(derive_seed(seed, "weights", *words))
        yield


def _explained(name: str, what: str) -> Any:
    """Turn errors raised by user-defined classes into an InputError; leave built-in ones alone."""
    if not sources.is_reference(name):
        return nullcontext()
    return sources.explained(f"{what}: {sources.place(name)} cannot be built")


# ---------------------------------------------------------------- weights as bytes


def pack_weights(
    state: Mapping[str, Tensor], spec: ModelSpec, description: Mapping[str, Any]
) -> bytes:
    """Serialise weights, buffers and the `ModelSpec` as safetensors.

    ``description`` is further metadata (such as ``class_names``), as JSON values.
    """
    from safetensors.torch import save

    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    header = {**description, "version": WEIGHTS_VERSION, "model": spec.to_json()}
    blob: bytes = save(tensors, metadata={"modmix": json.dumps(header)})
    return blob


def unpack_weights(blob: bytes) -> tuple[Model, dict[str, Any]]:
    """Load a model written by `pack_weights`, in evaluation mode, with its description.

    ``description["model"]`` is its `ModelSpec`. A model with user-defined classes contains their
    source code, which is executed when the model is built: load only models you trust.

    Raises:
        InputError: the bytes are not such a model, or are of another format version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        length = int.from_bytes(blob[:8], "little")
        header = json.loads(blob[8 : 8 + length])
        description: dict[str, Any] = json.loads(header["__metadata__"]["modmix"])
        tensors = load(blob)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(
            f"a model must be safetensors written by modmix, got {len(blob)} bytes that are not "
            f"({error}); train it again with keep_weights"
        ) from error
    if (version := description.get("version", 1)) != WEIGHTS_VERSION:
        raise InputError(
            f"a model's weights must be of version {WEIGHTS_VERSION}, got version {version}, which "
            "another release wrote: train the model again"
        )
    description["model"] = spec = ModelSpec.from_json(description["model"])
    model = build_model(spec, 0)
    model.load_state_dict(tensors)
    return model.eval(), description
