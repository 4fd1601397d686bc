"""Where the hub is away, weights that are not at hand are refused within seconds, in one line."""

import socket
import time

import pytest
from huggingface_hub import constants

from kdcore import hub
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_model


@pytest.fixture
def away(monkeypatch, tmp_path):
    """A hub at an address on loopback where nothing listens, and no weights fetched before."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in hub.PROXIES:
        monkeypatch.delenv(name, raising=False)
    hub.hub_answers.cache_clear()
    yield port
    hub.hub_answers.cache_clear()


def test_pretrained_weights_are_refused_soon(away):
    started = time.perf_counter()
    with pytest.raises(
        Refused, match=r"timm cannot fetch its weights .*; on a machine without that network, give a file"
    ):
        build_model(ModelConfig(model="resnet18", pretrained=True), ("a", "b"))
    assert time.perf_counter() - started < 20  # its own client tries for a minute
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_listens_answers(away):
    assert not hub.hub_answers()
    hub.hub_answers.cache_clear()
    with socket.create_server(("127.0.0.1", away)):
        assert hub.hub_answers()
        with hub.hub_if_it_answers():
            assert not constants.HF_HUB_OFFLINE


def test_a_proxy_is_left_to_pass_it(away, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    assert hub.hub_answers()
