"""Finished studies, each made once for all test processes; each process has a copy of the run directory, which it may
change."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from small import small_config

from caryatid.study.flow import run_study

SMALL = "small-study"


def shared_place(tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder of this name, the same in every process of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    place.mkdir(exist_ok=True)
    return place


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Path]) -> Path:
    """This process's copy of the run directory that `make` makes, in whichever process comes first; it may use the
    folder that it is given."""
    place = shared_place(tmp_path_factory, name)
    with FileLock(place / "lock"):
        run = place / "finished"
        if not run.is_dir():
            shutil.copytree(make(place), place / "copied", dirs_exist_ok=True)
            (place / "copied").rename(run)
    return Path(shutil.copytree(run, tmp_path_factory.mktemp("study") / "run"))


def study_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small study's model and configuration."""
    place = shared_place(tmp_path_factory, SMALL)
    with FileLock(place / "lock"):
        small_config(place)
    return place


def copied_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This process's copy of the small study."""
    return made_once(
        tmp_path_factory, SMALL, lambda place: run_study(small_config(place), place / "run").directory
    )
