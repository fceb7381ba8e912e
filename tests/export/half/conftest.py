"""Every test of half precision begins with the same random numbers."""

import pytest


@pytest.fixture(autouse=True)
def seed() -> None:
    import torch  # where it is not installed no test is here, but this file is read

    torch.manual_seed(0)
