"""The studies by name. A study is imported when it is asked for, since it imports torch."""

from __future__ import annotations

import importlib

from coterie.registry import Registry
from coterie.studies.study import Study

STUDIES: Registry[str] = Registry("study")

for _name, _module in {
    "dynamic-routing": "dynamic_routing",
    "adamoe": "adamoe",
    "rmoe": "rmoe",
    "smoe-dropout": "smoe_dropout",
    "thor": "thor",
    "thor-translation": "thor_translation",
    "mc-smoe": "mc_smoe",
    "advmoe": "advmoe",
    "advmoe-images": "advmoe_images",
}.items():
    STUDIES.register(_name)(f"coterie.studies.{_module}")


def open_study(name: str) -> Study:
    """The study of a paper.

    Raises:
        OptionError: no such study; the nearest is suggested.
    """
    study: Study = importlib.import_module(STUDIES.get(name)).STUDY
    return study
