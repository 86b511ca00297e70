"""TFDS works where tests may write, never in the user's home."""

import socket
import tempfile

import pytest


@pytest.fixture
def prepared_in(tmp_path, monkeypatch):
    """The folder of prepared data sets, absent at first.

    TFDS reads the variable once, when it is imported: the variable is for child
    processes, the constant for this one. So it is with the folder of temporary files,
    of which TFDS leaves one empty per builder.
    """
    folder = tmp_path / "tfds"
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(folder))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return folder


@pytest.fixture
def offline(prepared_in, monkeypatch):
    """No network, no data folder, nothing prepared."""

    def fail(*_, **__):
        raise OSError("the network is down")

    monkeypatch.setattr(socket, "create_connection", fail)
    monkeypatch.delenv("FAIRJAX_DATA_DIR", raising=False)
