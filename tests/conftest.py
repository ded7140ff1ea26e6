"""Fixtures of all tests."""

import os
from pathlib import Path

import pytest

# read when torch is first imported: threads that spin while they wait take the cores from all other work
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data beside the repository; tests that need it skip, saying so, where it is absent."""
    path = Path(__file__).resolve().parents[1] / "../shared"
    if not path.is_dir():
        pytest.skip("no ../shared beside the repository: reference values are not there")
    return path.resolve()
