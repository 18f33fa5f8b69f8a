"""The one place where the surroundings of every test are set: no network, one thread, fixed seeds, no user cache."""

from __future__ import annotations

import os
import random

# before anything imports torch or huggingface_hub, which read them once; subprocesses inherit them
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from more, and workers would fight over cores

import numpy
import pytest
import torch


@pytest.fixture(autouse=True)
def seeds():
    """Every test begins with the same random state."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What Coterie makes for itself goes to a folder of this run, never to the user's cache."""
    home = tmp_path_factory.mktemp("coterie-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COTERIE_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def pocket(own_cache):
    """The pocket model, trained so briefly that it only babbles, where the name `pocket` finds it."""
    from coterie.training import train_pocket

    path = own_cache / "pocket-1"
    train_pocket(path, steps=8)
    return path
