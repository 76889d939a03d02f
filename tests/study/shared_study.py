"""The small study, run once for all test processes; each has a copy of its run directory, which it may change."""

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from small import small_config

from caryatid.study.flow import run_study


def study_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its model and configuration, the same in every process of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "small-study"
    place.mkdir(exist_ok=True)
    with FileLock(place / "lock"):
        small_config(place)
    return place


def copied_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This process's copy of the finished run directory."""
    place = study_place(tmp_path_factory)
    with FileLock(place / "lock"):
        run = place / "finished"
        if not run.is_dir():
            shutil.copytree(run_study(small_config(place), place / "run").directory, run)
    return Path(shutil.copytree(run, tmp_path_factory.mktemp("study") / "run"))
