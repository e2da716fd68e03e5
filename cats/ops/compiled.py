"""The reason why compiled code is missing, for the backends that need it."""

from __future__ import annotations

import importlib


def why_missing(part: str, found: object) -> str:
    """Why compiled code is missing: what setup.py recorded, or `found` if it recorded nothing.

    part: "NATIVE" (C++) or "CUDA".

    setup.py writes cats/_build.py when it builds. The file does not exist if nothing was built.
    """
    try:
        _build = importlib.import_module("cats._build")
    except ImportError:
        return f"cats was not installed with its compiled module ({found})"
    return getattr(_build, part) or str(found)
