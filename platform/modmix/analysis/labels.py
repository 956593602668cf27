"""Display names of metrics and hyperparameters, and values as text."""

from __future__ import annotations

import json
import math
from typing import Any

from modmix.base.metrics import METRICS
from modmix.base.metrics import higher_is_better as _higher_is_better

SPLITS = {"train": "training", "val": "validation", "test": "test"}
_NAMES = {"auc": "AUC", "nll": "NLL", "ece": "ECE", "f1": "macro F1"}
_PARAMETERS = {"beta": "β", "margin": "margin δ", "alpha": "α", "lambda": "λ", "tau": "τ"}
_UNITS = {"depth": "hidden layers", "width": "units", "epochs": "epochs", "margin": "nats"}


def split_of(metric: str) -> str:
    """The split of a metric: "val" for "val/error"."""
    return metric.partition("/")[0]


def is_metric(metric: str) -> bool:
    """Whether a name is one of the known metrics on a split: "val/error" is, "val/x" is not.

    This includes metrics of predictors that a method reports: "val/audio/error".
    """
    split, _, name = _pieces(metric)
    return split in SPLITS and name in METRICS


def is_reported(metric: str) -> bool:
    """Whether a name is that of a metric of a predictor that a method reports."""
    return is_metric(metric) and bool(_pieces(metric)[1])


def _pieces(metric: str) -> tuple[str, str, str]:
    """Split, reported predictor and name of a metric: "test", "audio" and "error".

    The predictor is "" in "test/error".
    """
    split, _, rest = metric.partition("/")
    predictor, _, name = rest.rpartition("/")
    return split, predictor, name


def on_test(metric: str) -> str:
    """The same metric on test: "test/error" for "val/error"."""
    return f"test/{metric.partition('/')[2]}"


def higher_is_better(metric: str) -> bool:
    """Whether larger values of a metric are better; False for losses."""
    return metric.partition("/")[2] != "loss" and _higher_is_better(metric)


def unit(metric: str) -> str:
    """The printed unit of a metric: "%" for errors, "" for fractions."""
    name = _pieces(metric)[2]
    if name not in METRICS:
        return ""
    found = METRICS[name].unit
    return "" if found == "0..1" else found


def metric_name(metric: str) -> str:
    """A metric's display name: "test error", "validation AUC", "test error of audio"."""
    split, predictor, name = _pieces(metric)
    shown = f"{SPLITS.get(split, split)} {_NAMES.get(name, name)}"
    return f"{shown} of {predictor}" if predictor else shown


def metric_label(metric: str) -> str:
    """An axis label with the unit: "test error (%)"."""
    shown = unit(metric)
    return f"{metric_name(metric)} ({shown})" if shown else metric_name(metric)


def decimals(metric: str) -> int:
    """Printed decimals of a metric: 2 in percent, 4 otherwise."""
    return 2 if unit(metric) == "%" else 4


def metric_text(value: float, metric: str) -> str:
    """A value of a metric; a dash for NaN."""
    if not math.isfinite(value):
        return _not_finite_text(value)
    text = f"{value:.{decimals(metric)}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def plus_minus(mean: float, spread: float, metric: str, sign: str = "±") -> str:
    """ "3.10 ± 0.20"; without the spread if it is undefined (n = 1)."""
    if not math.isfinite(mean) or math.isnan(spread):
        return metric_text(mean, metric)
    return f"{metric_text(mean, metric)} {sign} {metric_text(spread, metric)}"


def interval_text(low: float, high: float, metric: str) -> str:
    """ "2.91 to 3.29"; a dash if undefined."""
    if math.isnan(low) or math.isnan(high):
        return "–"
    return f"{metric_text(low, metric)} to {metric_text(high, metric)}"


def _not_finite_text(value: float) -> str:
    return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")


def p_text(p: float) -> str:
    """A p value: "0.012", "< 0.001"; a dash if undefined."""
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_clause(p: float) -> str:
    """ "p = 0.012" or "p < 0.001"."""
    return f"p {p_text(p)}" if 0 <= p < 0.001 else f"p = {p_text(p)}"


def parameter_name(name: str) -> str:
    """A hyperparameter's display name: "β", "learning rate"."""
    return _PARAMETERS.get(name, name.replace("_", " ").replace(".", " "))


def parameter_label(name: str) -> str:
    """An axis label of a hyperparameter: "β", "depth (hidden layers)"."""
    shown = parameter_name(name)
    return f"{shown} ({_UNITS[name]})" if name in _UNITS else shown


def value_text(value: Any) -> str:
    """A hyperparameter's value, short: 0.3, 1e-05, [64, 64], none."""
    if value is None or value != value:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, dict)):
        return json.dumps(value)
    return str(value)
