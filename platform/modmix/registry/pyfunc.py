"""The script of registered models: MLflow copies this file beside the weights.

A model takes raw modality values and returns a frame with one row per example: ``class`` (0..C-1),
``label`` and ``probability.LABEL`` for every class. Modalities are given as

    {"left": array (B, *shape), "right": …}       or flattened, (B, size)
    a frame with a column per modality            its cells are lists or arrays
    a frame with columns left.0, left.1, …        only with `unwrap_python_model().predict`, since
                                                  MLflow requires the named columns

Needs torch, numpy, pandas, safetensors and mlflow; modmix is copied into the model. Imported by
path, not as `modmix.registry.pyfunc`.
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
from modmix.methods.model import unpack_weights

ROWS = 4096  # examples per batch

Array = npt.NDArray[np.float32]


class MultimodalModel(mlflow.pyfunc.PythonModel):
    """A model that combines modalities, read from safetensors."""

    def load_context(self, context: Any) -> None:
        """Load ``weights`` and ``scaling`` (modality -> mean and scale)."""
        blob = Path(context.artifacts["weights"]).read_bytes()
        self._model, description = unpack_weights(blob)
        self._shapes = {
            name: tuple(description["modalities"][name]) for name in self._model.modalities
        }
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
            MlflowException: a modality is missing or has invalid shape or values. (MLflow's
                exception, so that servers return the message.)
        """
        try:
            return self._classify(model_input)
        except InputError as error:
            raise mlflow.MlflowException.invalid_parameter_value(str(error)) from error

    def _classify(self, model_input: Any) -> pd.DataFrame:
        inputs = {
            name: self._scaled(name, _values(model_input, name, shape))
            for name, shape in self._shapes.items()
        }
        rows = {len(values) for values in inputs.values()}
        if len(rows) != 1:
            sizes = ", ".join(f"{name} has {len(values)}" for name, values in inputs.items())
            raise InputError(f"all modalities must have the same number of rows: {sizes}")
        probabilities_BC = self._probabilities(inputs, rows.pop())
        classes_B = probabilities_BC.argmax(1)
        columns: dict[str, Any] = {
            "class": classes_B.astype(np.int64),
            "label": [self._labels[k] for k in classes_B],
        }
        for k, label in enumerate(self._labels):
            columns[f"probability.{label}"] = probabilities_BC[:, k].astype(np.float64)
        return pd.DataFrame(columns)

    def _scaled(self, name: str, values: npt.NDArray[np.float64]) -> Array:
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


def _values(source: Any, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """One modality, (B, *shape), in double precision for scaling."""
    given = _find(source, name, prod(shape))
    try:
        if isinstance(given, pd.Series):
            given = [np.asarray(cell, dtype=np.float64) for cell in given]
        values = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"modality {name!r} must have {prod(shape)} numbers per example: {error}"
        ) from error
    if values.size == 0:
        return values.reshape(0, *shape)
    if values.ndim == 1 and prod(shape) == 1:
        values = values[:, None]
    if values.shape[1:] not in (shape, (prod(shape),)):
        raise InputError(
            f"modality {name!r} must be of shape (rows, {', '.join(map(str, shape))}), "
            f"got {values.shape}"
        )
    if not np.isfinite(values).all():
        raise InputError(f"modality {name!r} has NaN or infinite values: remove them")
    return values.reshape(len(values), *shape)


def _find(source: Any, name: str, size: int) -> Any:
    """The values of a modality, by its name or from flat columns."""
    if isinstance(source, (Mapping, pd.DataFrame)):
        if name in source:
            return source[name]
        flat = [f"{name}.{i}" for i in range(size)]
        if isinstance(source, pd.DataFrame) and all(column in source for column in flat):
            return source[flat].to_numpy()
        raise InputError(f"modality {name!r} is missing: add it by that name")
    raise InputError(
        f"inputs must be a mapping or a frame of modalities by name, got {type(source).__name__}"
    )


mlflow.models.set_model(MultimodalModel())
