"""The script that a registered model runs: MLflow copies this file beside the weights.

A model takes raw values of its inputs and answers with a frame: ``class`` (0..C-1), ``label`` and
``probability.LABEL`` for every class. One row an example. Inputs come as

    {"left": array (B, *shape), "right": …}       also (B, numbers of one example)
    a frame with a column per input               its cells are lists or arrays
    a frame with columns left.0, left.1, …        only through `unwrap_python_model().predict`,
                                                  for MLflow itself asks for the named columns

Inputs of tokens are ids as the task prepared them, 0 being padding at the end.

It runs where torch, numpy, pandas, safetensors and mlflow are; the package travels with the model.
So does the source text of users' own methods and encoders: loading a model that has some runs that
code, and a model should be trusted as a program is.
Imported by path, not as `modmix.registry.pyfunc`, so it holds as little as it can.
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

ROWS = 4096  # examples at a time

Array = npt.NDArray[Any]


class MultimodalModel(mlflow.pyfunc.PythonModel):
    """A model that combines modalities, read from safetensors."""

    def load_context(self, context: Any) -> None:
        """Build the model from ``weights`` and read ``scaling``: input -> mean and scale.

        Users' own code that is part of the model is executed.
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
        """Classify B examples. (MLflow makes a frame of a mapping; unwrapped, both are taken.)

        Raises:
            MlflowException: an input is missing, has the wrong size, or values that are no
                numbers (MLflow's own error, so that a server answers with the sentence).
        """
        try:
            return self._answer(model_input)
        except InputError as error:
            raise mlflow.MlflowException.invalid_parameter_value(str(error)) from error

    def _answer(self, model_input: Any) -> pd.DataFrame:
        inputs = {
            name: self._prepared(name, _values(model_input, name, given.shape), given)
            for name, given in self._inputs.items()
        }
        rows = {len(values) for values in inputs.values()}
        if len(rows) != 1:
            sizes = ", ".join(f"{name} has {len(values)}" for name, values in inputs.items())
            raise InputError(f"every input must have as many rows as the others: {sizes}")
        probabilities_BC = self._probabilities(inputs, rows.pop())
        classes_B = probabilities_BC.argmax(1)
        answer: dict[str, Any] = {
            "class": classes_B.astype(np.int64),
            "label": [self._labels[k] for k in classes_B],
        }
        for k, label in enumerate(self._labels):
            answer[f"probability.{label}"] = probabilities_BC[:, k].astype(np.float64)
        return pd.DataFrame(answer)

    def _prepared(self, name: str, values: npt.NDArray[np.float64], given: InputSpec) -> Array:
        """Scaled as the task scaled them, float32; tokens as they are, int64."""
        if given.kind == "tokens":
            return _tokens(name, values, given.vocabulary)
        if name in self._scaling:
            scaling = self._scaling[name]  # along the last axis, or one number
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
                scores_BC = self._model.scores(self._model(batch))
                parts.append(scores_BC.float().softmax(-1).numpy())
        return np.concatenate(parts)


def _tokens(name: str, values: npt.NDArray[np.float64], vocabulary: int | None) -> Array:
    ids = values.astype(np.int64)
    end = np.inf if vocabulary is None else vocabulary
    if (ids != values).any() or (ids < 0).any() or (ids >= end).any():
        raise InputError(f"input {name!r} must be ids of tokens, whole numbers from 0 to {end - 1}")
    return ids


def _values(source: Any, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """One input of whatever was given, (B, *shape), in double precision for the scaling."""
    given = _find(source, name, prod(shape))
    try:
        if isinstance(given, pd.Series):
            given = [np.asarray(cell, dtype=np.float64) for cell in given]
        values = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"input {name!r} must be {prod(shape)} numbers an example: {error}"
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
        raise InputError(f"input {name!r} holds values that are NaN or infinite: remove them")
    return values.reshape(len(values), *shape)


def _find(source: Any, name: str, size: int) -> Any:
    """The values of an input: by its name, or of a frame's flat columns."""
    if isinstance(source, (Mapping, pd.DataFrame)):
        if name in source:
            return source[name]
        flat = [f"{name}.{i}" for i in range(size)]
        if isinstance(source, pd.DataFrame) and all(column in source for column in flat):
            return source[flat].to_numpy()
        raise InputError(f"input {name!r} is missing: give it by that name")
    raise InputError(
        f"inputs must be a mapping or a frame of inputs by name, got {type(source).__name__}"
    )


mlflow.models.set_model(MultimodalModel())
