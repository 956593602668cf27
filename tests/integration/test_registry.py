"""Best configurations as study files, and final runs as models that MLflow loads and serves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mlflow_bench import METRICS, Bench, Server
from modmix.analysis.best import best_configurations
from modmix.base.errors import InputError
from modmix.ledger.records import Entry, NewConfiguration, Result
from modmix.methods.model import build_model, model_spec, pack_weights
from modmix.registry.best import write_best
from modmix.registry.final import Registered, register
from modmix.study import files, make_plan
from modmix.study.plan import Plan

# MLflow's own: its model classes have hints that it then warns of.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*type hint:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning"),
]

STUDY = """\
study: views
task: {name: digits, inputs: [left, right], train_rows: 100}
seeds: [0, 1, 1000]
training: {epochs: 2, batch_size: 50}
encoders: {default: {name: mlp, hidden: [8]}}
paper: {mul: {test/error: [21.8, 0.1]}}
parts:
  curve: {x: beta, methods: {mul: {beta: {grid: [0, 0.5]}, learning_rate: 0.02}}}
  rest: {methods: {mulmix: {weights: {value: {left: 0.3, right: 0.3, left+right: 1.0}}}, base: }}
"""


@dataclass
class Studies:
    """A ledger whose studies come from study files and have results without any training."""

    bench: Bench

    def run(self, text: str, errors: dict[int, float] | None = None) -> Plan:
        """Record a study with every replicate done; ``errors``: val/error by seed."""
        source = files.parse(text, name="views.yaml", folder=self.bench.home.path)
        plan = make_plan.make(source)
        ledger = self.bench.ledger
        ledger.start_study(
            plan.name,
            spec=plan.spec.model_dump(mode="json"),
            text=text,
            source=source.name,
            details=plan.details(),
        )
        lease = ledger.acquire(plan.name)
        for part in plan.parts:
            for method in part.domains:
                for number, assignment in enumerate(part.assignments(method)):
                    configuration = plan.configuration(method, assignment)
                    new = NewConfiguration(
                        key=configuration.key,
                        method=method,
                        params=configuration.params,
                        replicates=[(r.key, r.seed) for r in configuration.replicates],
                    )
                    entry = Entry(
                        part=part.name,
                        method=method,
                        number=number,
                        configuration=configuration.key,
                    )
                    known = [e.configuration for e in ledger.entries(plan.name)]
                    ledger.add(plan.name, [new], [] if configuration.key in known else [entry])
                    ledger.finish(
                        lease,
                        [
                            self._result(r.key, (errors or {}).get(r.seed, 9.0 + number))
                            for r in configuration.replicates
                        ],
                    )
                    if plan.spec.final is not None:
                        self._weights(plan, configuration)
        ledger.set_state(plan.name, "finished")
        ledger.release(lease)
        return plan

    @staticmethod
    def _result(key: str, error: float) -> Result:
        metrics = {f"{split}/{m}": 0.5 for split in ("val", "test") for m in METRICS}
        metrics |= {"val/error": error, "test/error": error + 1}
        return Result(replicate=key, state="done", metrics=metrics, epochs=2, seconds=30.0)

    def _weights(self, plan: Plan, configuration: Any) -> None:
        """Untrained weights: what a model says is compared, not whether it is right."""
        self.bench.home.weights.mkdir(exist_ok=True)
        for r in configuration.replicates:
            model_of = model_spec(r, plan.data)
            blob = pack_weights(
                build_model(model_of, r.seed).state_dict(),
                model_of,
                {"class_names": list(plan.data.class_names), "seed": r.seed},
            )
            (self.bench.home.weights / f"{r.key}.safetensors").write_bytes(blob)

    def best(self, study: str = "views") -> dict[str, Path]:
        configurations = best_configurations(self.bench.ledger, study)
        paths = write_best(self.bench.ledger, self.bench.home, study, configurations)
        return {
            configuration.method: path
            for configuration, path in zip(configurations, paths, strict=True)
        }

    def register(self, study: str = "views-mul-final") -> Registered:
        return register(self.bench.ledger, self.bench.home, study, self.bench.uri)


@pytest.fixture
def studies(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Studies:
    folder = tmp_path_factory.getbasetemp() / "modmix-data"
    monkeypatch.setenv("MODMIX_DATA", str(folder))
    return Studies(bench)


@pytest.fixture
def tracking_uri(studies: Studies) -> Iterator[str]:
    """MLflow's own functions have one global address."""
    import mlflow

    mlflow.set_tracking_uri(studies.bench.uri)
    yield studies.bench.uri
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


# ---------------------------------------------------------------- best configurations as study
# files


@pytest.mark.slow
def test_a_best_file_is_the_same_configuration_on_fresh_seeds(studies: Studies) -> None:
    original = studies.run(STUDY)
    paths = studies.best()
    assert set(paths) == {"mul", "mulmix", "base"}
    known = {configuration.key for configuration in studies.bench.ledger.configurations("views")}
    for method, path in paths.items():
        assert path == studies.bench.home.study("views") / "best" / f"{method}.yaml"
        plan = make_plan.make(files.read(path))
        (part,) = plan.parts
        (assignment,) = part.assignments(method)
        configuration = plan.configuration(method, assignment)
        assert configuration.key in known
        assert plan.spec.final is not None
        assert plan.spec.final.model_dump() == {
            "of": "views",
            "task": None,
            "method": method,
            "configuration": configuration.key,
        }
        assert [r.seed for r in configuration.replicates] == [1001, 1002, 1003, 1004, 1005]
        assert plan.spec.objective == original.spec.objective
        # Trained just as in the study, but for the seed.
        twin = original.configuration(method, assignment).replicates[0]
        assert configuration.replicates[0].structure == twin.structure
        assert configuration.replicates[0].training == twin.training


@pytest.mark.slow
def test_a_best_file_names_data_with_a_dollar_sign(studies: Studies, tmp_path: Path) -> None:
    file = tmp_path / "a$HOME.npz"
    rows = np.arange(60, dtype=np.float32)
    np.savez(file, left=rows[:, None], right=-rows[:, None], labels=np.arange(60) % 2)
    task = f"task: {{name: arrays, path: '{file.as_posix().replace('$', '$$')}'}}"
    given = "task: {name: digits, inputs: [left, right], train_rows: 100}"
    studies.run(STUDY.replace(given, task))
    for path in studies.best().values():
        assert make_plan.make(files.read(path)).task_options["path"] == str(file)


@pytest.mark.slow
def test_a_best_file_opens_with_command_cost_and_expectation(studies: Studies) -> None:
    studies.run(STUDY)
    path = studies.best()["mul"]
    first, _, cost, expected, test, source = path.read_text().splitlines()[:6]
    assert first == f"# modmix final {path}"
    assert cost.startswith("# Cost:      5 models, about 2 min of device time")
    assert expected.startswith("# Expected:  val/error 9 ± 0 or slightly worse")
    assert "test/error 10 ± 0" in test
    assert "over 3 seeds" in test
    assert "best configuration of mul in study views, selected by val/error" in source
    content = files.read(path).raw
    assert content["paper"] == {"mul": {"test/error": [21.8, 0.1]}}
    assert content["parts"]["final"]["methods"]["mul"]["beta"] == 0
    assert content["parts"]["final"]["methods"]["mul"]["learning_rate"] == 0.02


@pytest.mark.slow
def test_a_final_run_of_another_configuration_gets_another_name(studies: Studies) -> None:
    studies.run(STUDY)
    text = studies.best()["mul"].read_text()
    studies.run(text)
    assert files.parse(text, name="", folder=Path()).raw["study"] == "views-mul-final"
    assert studies.best()["mul"].read_text() == text  # the same configuration: the same file
    studies.bench.ledger.start_study(
        "views-mul-final",
        spec={"final": {"of": "views", "method": "mul", "configuration": "another"}},
        text="",
        source="",
        details={},
    )
    name = str(files.read(studies.best()["mul"]).raw["study"])
    assert re.fullmatch(r"views-mul-final-[0-9a-f]{8}", name)


# ---------------------------------------------------------------- registered models


@pytest.mark.slow
def test_the_best_replicate_is_registered_once_and_is_the_champion(
    studies: Studies, tracking_uri: str
) -> None:
    from mlflow import MlflowClient

    studies.run(STUDY)
    errors = {1001: 8.0, 1002: 6.0, 1003: 7.0, 1004: float("nan"), 1005: 9.0}
    plan = studies.run(studies.best()["mul"].read_text(), errors)
    assert studies.register() == Registered(name="views-mul", version="1", alias="champion")
    assert studies.register().version == "1"
    client = MlflowClient(tracking_uri)
    version = client.get_model_version_by_alias("views-mul", "champion")
    assert version.tags["modmix.seed"] == "1002"
    assert version.tags["test/error"] == "8.5 ± 1.29 (n=4)"
    assert "seed 1002" in version.description
    assert "| test/error | 8.5 ± 1.29 (n=4) |" in version.description
    (configuration,) = studies.bench.ledger.configurations(plan.name)
    assert version.run_id == configuration.mlflow_run
    # A better final run becomes the new champion, the old version stays.
    longer = studies.best()["mul"].read_text().replace("1005", "1005\n- 1006")
    studies.run(longer, {1006: 1.0})
    assert studies.register().version == "2"
    champion = client.get_model_version_by_alias("views-mul", "champion")
    assert str(champion.version) == "2"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mul", "base"])
def test_a_model_takes_raw_values_in_every_form(
    studies: Studies, tracking_uri: str, method: str
) -> None:
    import mlflow

    studies.run(STUDY)
    plan = studies.run(studies.best()[method].read_text())
    studies.register(plan.name)
    loaded = mlflow.pyfunc.load_model(f"models:/views-{method}@champion")

    raw, prepared = raw_digits(plan)
    answer = loaded.predict(raw)
    expected = probabilities(studies, plan, prepared)
    columns = [f"probability.{k}" for k in range(10)]
    assert list(answer.columns) == ["class", "label", *columns]
    np.testing.assert_allclose(answer[columns], expected, rtol=1e-4, atol=1e-6)
    assert list(answer["class"]) == list(expected.argmax(1))
    assert list(answer["label"]) == [str(k) for k in expected.argmax(1)]

    def same(other: pd.DataFrame) -> None:
        pd.testing.assert_frame_equal(other, answer)

    same(loaded.predict({k: v.astype(np.float32) for k, v in raw.items()}))
    same(loaded.predict({k: v.astype(np.uint8) for k, v in raw.items()}))
    same(loaded.predict(pd.DataFrame({k: v.tolist() for k, v in raw.items()})))
    same(loaded.predict(pd.DataFrame({k: list(v) for k, v in raw.items()})))
    flat = pd.DataFrame({f"{k}.{i}": v[:, i] for k, v in raw.items() for i in range(v.shape[1])})
    same(loaded.unwrap_python_model().predict(None, flat))


def raw_digits(plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scans from scikit-learn, whole numbers 0..16; and the same as the task prepares them."""
    from sklearn.datasets import load_digits

    images = load_digits().images
    halves = {"left": images[:, :, :4].reshape(-1, 32), "right": images[:, :, 4:].reshape(-1, 32)}
    test = plan.data.test
    # A prepared row is found by its class and by being the only one that fits all its numbers.
    found = []
    for row in range(5):
        left = test.inputs["left"][row]
        for candidate in np.flatnonzero(load_digits().target == test.labels[row]):
            if candidate not in found and fits(halves["left"][candidate], left, plan):
                found.append(int(candidate))
                break
    assert len(found) == 5
    raw = {name: values[found] for name, values in halves.items()}
    return raw, {name: test.inputs[name][:5] for name in halves}


def fits(raw: Any, prepared: Any, plan: Plan) -> bool:
    """Whether prepared numbers are an increasing linear function of raw ones, feature by feature.

    The function is taken from the prepared training data themselves: a step of one raw unit is
    the smallest distance between two values of a feature.
    """
    train = plan.data.train.inputs["left"]
    for feature in range(32):
        levels = np.unique(train[:, feature])
        if len(levels) < 9:
            continue
        unit = np.diff(levels).min()
        steps = (prepared[feature] - levels[0]) / unit
        if abs(steps - raw[feature]) > 0.1:
            return False
    return True


def probabilities(studies: Studies, plan: Plan, inputs: dict[str, Any]) -> Any:
    """By torch alone, from the weights that the final run kept."""
    (part,) = plan.parts
    (method,) = part.domains
    configuration = plan.configuration(method, part.assignments(method)[0])
    r = configuration.replicates[0]  # all have the same error: the first seed wins
    model = build_model(model_spec(r, plan.data), r.seed).eval()
    with torch.no_grad():
        tensors = {k: torch.tensor(np.asarray(v)) for k, v in inputs.items()}
        scores_BC = model.scores(model(tensors))
        # softmax(−ℓ / Σw), docs/methods.md: mul has a source per modality, each of weight 1.
        sources = len(model.inputs) if method == "mul" else 1
        return (scores_BC / sources).softmax(-1).numpy()


@pytest.mark.slow
def test_a_model_says_what_is_wrong_with_its_input(studies: Studies, tracking_uri: str) -> None:
    import mlflow

    studies.run(STUDY)
    studies.run(studies.best()["mul"].read_text())
    studies.register()
    model = mlflow.pyfunc.load_model("models:/views-mul@champion")
    good = np.ones((2, 32))
    for bad, message in (
        ({"left": good, "right": np.ones((2, 31))}, r"'right' must be of shape \(rows, 32\), got"),
        ({"left": good, "right": good * np.nan}, "'right' has NaN or infinite values"),
        ({"left": good}, r"Model is missing inputs \['right'\]"),
    ):
        with pytest.raises(mlflow.MlflowException, match=message):
            model.predict(bad)
    plain = model.unwrap_python_model()
    with pytest.raises(mlflow.MlflowException, match="same number of rows: left has 2"):
        plain.predict(None, {"left": good, "right": good[:1]})
    with pytest.raises(mlflow.MlflowException, match="'right' must have 32 numbers per example"):
        plain.predict(None, {"left": good, "right": [["a"] * 32] * 2})
    assert len(plain.predict(None, {"left": good[:0], "right": good[:0]})) == 0


@pytest.mark.slow
def test_a_model_is_text_and_safetensors_and_runs_without_the_package(
    studies: Studies, tracking_uri: str, tmp_path: Path
) -> None:
    studies.run(STUDY)
    studies.run(studies.best()["mul"].read_text())
    studies.register()
    (model,) = (studies.bench.home.artifacts / "views-mul-final" / "models").iterdir()
    for file in (model / "artifacts").rglob("*"):
        if file.is_file() and file.suffix != ".safetensors":
            file.read_text(encoding="utf-8")  # a pickle is not text
    meta = (model / "artifacts" / "MLmodel").read_text()
    assert "python_model:" not in meta  # where MLflow would name a pickled object
    example = json.loads((model / "artifacts" / "serving_input_example.json").read_text())
    assert set(example["inputs"]) == {"left", "right"}
    code = f"""
import sys
sys.path = [p for p in sys.path if "/platform" not in p]
sys.meta_path = [f for f in sys.meta_path if "editable" not in repr(f)]
import mlflow
mlflow.set_tracking_uri({tracking_uri!r})
loaded = mlflow.pyfunc.load_model("models:/views-mul@champion")
import numpy, modmix
print(modmix.__file__)
print(len(loaded.predict({{"left": numpy.ones((3, 32)), "right": numpy.ones((3, 32))}})))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    place, rows = done.stdout.split()
    assert Path(place).is_relative_to(model)
    assert rows == "3"


@pytest.mark.slow
def test_what_cannot_be_registered(studies: Studies) -> None:
    studies.run(STUDY)
    with pytest.raises(InputError, match="'views' is not a final study: run 'modmix best views'"):
        studies.register("views")
    plan = studies.run(studies.best()["mul"].read_text())
    for file in studies.bench.home.weights.iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"the weights .*safetensors of study .* are missing"):
        studies.register(plan.name)
    key = plan.parts[0].assignments("mul")
    configuration = plan.configuration("mul", key[0])
    more = NewConfiguration(
        key=configuration.key,
        method="mul",
        params=configuration.params,
        replicates=[("unfinished", 77)],
    )
    studies.bench.ledger.add(plan.name, [more], [])
    with pytest.raises(InputError, match="has 1 unfinished replicates: run 'modmix final"):
        studies.register(plan.name)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_model_is_registered_on_a_server(studies: Studies, server: Server) -> None:
    import mlflow

    studies.bench.uri = server.uri
    studies.run(STUDY)
    studies.run(studies.best()["mul"].read_text())
    assert studies.register().version == "1"
    assert studies.register().version == "1"
    mlflow.set_tracking_uri(server.uri)
    try:
        model = mlflow.pyfunc.load_model("models:/views-mul@champion")
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    assert len(model.predict({"left": np.ones((2, 32)), "right": np.ones((2, 32))})) == 2
