"""How right a segmentation is: data sets segmented and counted, settings varied, tables.

``run(EvaluationSettings(...))`` and ``ablate(AblationSettings(...))`` do in Python what the
commands ``evaluate`` and ``ablate`` do.
"""

import importlib

_HOMES = {
    "AblationResults": "nerve_fast.evaluation.ablation.run",
    "AblationSettings": "nerve_fast.evaluation.settings",
    "EvaluationResults": "nerve_fast.evaluation.evaluate",
    "EvaluationSettings": "nerve_fast.evaluation.settings",
    "ModelSettings": "nerve_fast.evaluation.settings",
    "ablate": "nerve_fast.evaluation.ablation.run",
    "run": "nerve_fast.evaluation.evaluate",
}

__all__ = list(_HOMES)


def __dir__():
    return [*globals(), *__all__]


def __getattr__(name):
    # They import transformers, which takes seconds; the metrics and the tables do not.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
