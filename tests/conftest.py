"""Shared fixtures. Tiny random models live in `tiny.py`."""

import shape_checks

shape_checks.install()  # before anything of caryatid is imported
