"""Fixtures that keep TFDS out of the user's home and off the network."""

import socket
import tempfile

import pytest


@pytest.fixture
def prepared_in(tmp_path, monkeypatch):
    """The folder of prepared data sets, absent at first.

    TFDS reads the environment once, at import. The variable is therefore for child
    processes, and the constant for this process. The folder of temporary files is set
    in the same two ways, because TFDS leaves an empty folder per builder there.
    """
    folder = tmp_path / "tfds"
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(folder))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return folder


@pytest.fixture
def offline(prepared_in, monkeypatch):
    """No network, no data folder, and no prepared data set."""

    def fail(*_, **__):
        raise OSError("the network is down")

    monkeypatch.setattr(socket, "create_connection", fail)
    monkeypatch.delenv("FAIRJAX_DATA_DIR", raising=False)
