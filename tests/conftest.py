"""One thread for every test: small models on a shared machine only wait for a second one."""

import os

import torch


def pytest_configure() -> None:
    """Before anything computes."""
    torch.set_num_threads(1)
    os.environ["ANYBATCH_LEDGER"] = "off"  # no test writes into anybody's home
