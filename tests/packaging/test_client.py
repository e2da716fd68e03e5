"""The program of a user that the type checkers look at in test_install.py does what it says."""

from __future__ import annotations

from tests.packaging import client


def test_the_client_runs() -> None:
    client.main()
