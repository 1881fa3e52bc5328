"""Fixtures of the tests around ``edge-audio update``: what is in pull_device.py, put together."""

from __future__ import annotations

import pytest
from pull_device import Publisher, Puller, Web


@pytest.fixture
def publisher(tmp_path) -> Publisher:
    return Publisher(tmp_path / "desk")


@pytest.fixture
def web(publisher, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    web = Web(publisher.published)
    yield web
    web.close()


@pytest.fixture
def puller(tmp_path, monkeypatch, capsys, web) -> Puller:
    return Puller(tmp_path / "device", monkeypatch, capsys, web.url)
