"""Versions and aliases in MLflow's model registry."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modmix.tracking.store import RefusedError, Store, local_folder, translated_errors

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

_PAGE = 100  # versions per search request


@dataclass(frozen=True, kw_only=True)
class NewModel:
    """A model to register.

    ``files`` are copied beside ``script`` (`modmix.registry.pyfunc`), which loads them; users' own
    classes are in the file of weights, and run when the model is loaded. ``inputs`` are the input
    columns, ``outputs`` the output columns with their types, ``example`` is an input and
    ``settings`` is metadata.
    """

    script: Path
    files: Mapping[str, Path]
    package: Path
    requirements: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: Mapping[str, str]  # column -> long, double or string
    example: Mapping[str, Any]
    settings: Mapping[str, Any]


def find_version(store: Store, name: str, tag: str, value: str) -> str | None:
    """The latest version of a model with this tag whose files are present, or None."""
    token, found = None, []
    while True:
        try:
            page = store.client.search_model_versions(
                f"name = '{name}'", max_results=_PAGE, page_token=token
            )
        except RefusedError as error:
            if error.code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        found += [
            version
            for version in page
            if version.tags.get(tag) == value
            and version.status == "READY"
            and ((folder := local_folder(version.source)) is None or folder.exists())
        ]
        token = page.token
        if not token:
            break
    return max((str(version.version) for version in found), key=int, default=None)


def set_alias(store: Store, name: str, version: str, alias: str) -> None:
    store.client.set_registered_model_alias(name, alias, version)


def add_version(
    store: Store,
    model: NewModel,
    *,
    name: str,
    run: str,
    experiment: str,
    description: str,
    tags: Mapping[str, str],
    folder: Path,
) -> str:
    """Save a model in ``folder`` and register it as a new version of ``name``; return the version.

    Without pickle: the script is copied as text, the weights as a safetensors file.
    """
    with translated_errors(store.uri):
        made = store.client.create_logged_model(
            experiment, name=name, source_run_id=run, tags=dict(tags), model_type="classifier"
        )
        _save(model, folder / "model", run=run, model_id=made.model_id)
        store.client.log_model_artifacts(made.model_id, str(folder / "model"))
        store.client.finalize_logged_model(made.model_id, "READY")
        _attach(store, run, made.model_id)
        _make_name(store, name, tags)
        # A database used directly would look up "models:/…" in the global store.
        source = f"models:/{made.model_id}" if store.places_artifacts else made.artifact_location
        version = store.client.create_model_version(
            name,
            source=source,
            run_id=run,
            tags=dict(tags),
            description=description,
            model_id=made.model_id,
        )
        versions = json.dumps([{"name": name, "version": str(version.version)}])
        store.client.set_logged_model_tags(made.model_id, {"mlflow.modelVersions": versions})
    return str(version.version)


def _attach(store: Store, run: str, model_id: str) -> None:
    """Link the model to its run."""
    from mlflow.entities import LoggedModelOutput

    store.client.log_outputs(run, [LoggedModelOutput(model_id, step=0)])


def _make_name(store: Store, name: str, tags: Mapping[str, str]) -> None:
    try:
        store.client.create_registered_model(name, tags=dict(tags))
    except RefusedError as error:
        if error.code != "RESOURCE_ALREADY_EXISTS":
            raise


def _save(model: NewModel, folder: Path, *, run: str, model_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on type hints of MLflow's classes
        import mlflow.pyfunc
        from mlflow.models import Model

        mlflow.pyfunc.save_model(
            str(folder),
            mlflow_model=Model(run_id=run, model_id=model_id, model_uuid=model_id),
            python_model=str(model.script),
            artifacts={name: str(path) for name, path in model.files.items()},
            code_paths=[str(model.package)],
            pip_requirements=list(model.requirements),
            signature=_signature(model),
            input_example=dict(model.example),
            metadata=dict(model.settings),
        )


def _signature(model: NewModel) -> ModelSignature:
    """One column of type "any" per modality.

    MLflow's tensor types would reject float64, numpy's default; the model checks shapes itself.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), name) for name in model.inputs]),
        outputs=Schema([ColSpec(kind, name) for name, kind in model.outputs.items()]),
    )
