"""The script of registered models: MLflow copies this file beside the weights.

A model takes raw values of its inputs and returns a frame with one row per example: ``class``
(0..C-1), ``label`` and ``probability.LABEL`` for every class. Inputs are given as

    {"left": array (B, *shape), "right": …}       or flattened, (B, size)
    a frame with a column per input               its cells are lists or arrays
    a frame with columns left.0, left.1, …        only with `unwrap_python_model().predict`, since
                                                  MLflow requires the named columns

Inputs of tokens are ids as prepared by the task, padded with 0 at the end.

Needs torch, numpy, pandas, safetensors and mlflow; modmix is copied into the model, and so is the
source code of users' own methods and encoders. Loading such a model runs that code, so trust it
like a program. Imported by path, not as `modmix.registry.pyfunc`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from modmix.base.errors import InputError
from modmix.methods.model import InputSpec, unpack_weights

ROWS = 4096  # examples per batch

Array = npt.NDArray[Any]


class MultimodalModel(mlflow.pyfunc.PythonModel):
    """A model that combines modalities, read from safetensors."""

    def load_context(self, context: Any) -> None:
        """Load ``weights`` and ``scaling`` (input -> mean and scale).

        Runs users' own code that is part of the model.
        """
        blob = Path(context.artifacts["weights"]).read_bytes()
        self._model, description = unpack_weights(blob)
        self._inputs = {name: description["model"].inputs[name] for name in self._model.inputs}
        self._labels = [str(name) for name in description["class_names"]]
        text = Path(context.artifacts["scaling"]).read_text(encoding="utf-8")
        self._scaling: dict[str, dict[str, list[float]]] = json.loads(text)

    def predict(
        self,
        context: Any,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """Classify B examples. (MLflow converts mappings to frames.)

        Raises:
            MlflowException: an input is missing or has invalid shape or values. (MLflow's
                exception, so that servers return the message.)
        """
        try:
            return self._classify(model_input)
        except InputError as error:
            raise mlflow.MlflowException.invalid_parameter_value(str(error)) from error

    def _classify(self, model_input: Any) -> pd.DataFrame:
        inputs = {
            name: self._prepared(name, _values(model_input, name, given.shape), given)
            for name, given in self._inputs.items()
        }
        rows = {len(values) for values in inputs.values()}
        if len(rows) != 1:
            sizes = ", ".join(f"{name} has {len(values)}" for name, values in inputs.items())
            raise InputError(f"all inputs must have the same number of rows: {sizes}")
        probabilities_BC = self._probabilities(inputs, rows.pop())
        classes_B = probabilities_BC.argmax(1)
        columns: dict[str, Any] = {
            "class": classes_B.astype(np.int64),
            "label": [self._labels[k] for k in classes_B],
        }
        for k, label in enumerate(self._labels):
            columns[f"probability.{label}"] = probabilities_BC[:, k].astype(np.float64)
        return pd.DataFrame(columns)

    def _prepared(self, name: str, values: npt.NDArray[np.float64], given: InputSpec) -> Array:
        """Values scaled as by the task, float32; tokens unchanged, int64."""
        if given.kind == "tokens":
            return _tokens(name, values, given.vocabulary)
        if name in self._scaling:
            scaling = self._scaling[name]  # of a pixel's channel, of the last axis, or one number
            values = (values - np.asarray(scaling["mean"])) / np.asarray(scaling["scale"])
        return values.astype(np.float32)

    def _probabilities(self, inputs: Mapping[str, Array], rows: int) -> Array:
        parts = [np.zeros((0, len(self._labels)), dtype=np.float32)]
        with torch.inference_mode():
            for begin in range(0, rows, ROWS):
                batch = {
                    name: torch.from_numpy(values[begin : begin + ROWS])
                    for name, values in inputs.items()
                }
                log_BC = self._model.log_probabilities(self._model(batch))
                parts.append(log_BC.float().exp().numpy())
        return np.concatenate(parts)


def _tokens(name: str, values: npt.NDArray[np.float64], vocabulary: int | None) -> Array:
    ids = values.astype(np.int64)
    end = np.inf if vocabulary is None else vocabulary
    if (ids != values).any() or (ids < 0).any() or (ids >= end).any():
        raise InputError(f"input {name!r} must be token ids, integers from 0 to {end - 1}")
    return ids


def _values(source: Any, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """One input, (B, *shape), in double precision for scaling."""
    given = _find(source, name, prod(shape))
    try:
        if isinstance(given, pd.Series):
            given = [np.asarray(cell, dtype=np.float64) for cell in given]
        values = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"input {name!r} must have {prod(shape)} numbers per example: {error}"
        ) from error
    if values.size == 0:
        return values.reshape(0, *shape)
    if values.ndim == 1 and prod(shape) == 1:
        values = values[:, None]
    if values.shape[1:] not in (shape, (prod(shape),)):
        raise InputError(
            f"input {name!r} must be of shape (rows, {', '.join(map(str, shape))}), "
            f"got {values.shape}"
        )
    if not np.isfinite(values).all():
        raise InputError(f"input {name!r} has NaN or infinite values: remove them")
    return values.reshape(len(values), *shape)


def _find(source: Any, name: str, size: int) -> Any:
    """The values of an input, by its name or from flat columns."""
    if isinstance(source, (Mapping, pd.DataFrame)):
        if name in source:
            return source[name]
        flat = [f"{name}.{i}" for i in range(size)]
        if isinstance(source, pd.DataFrame) and all(column in source for column in flat):
            return source[flat].to_numpy()
        raise InputError(f"input {name!r} is missing: add it by that name")
    raise InputError(
        f"inputs must be a mapping or a frame of inputs by name, got {type(source).__name__}"
    )


mlflow.models.set_model(MultimodalModel())
