"""What all tests of the model and of speaking share."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def every_test_on_one_thread(one_thread):
    """See one_thread."""
