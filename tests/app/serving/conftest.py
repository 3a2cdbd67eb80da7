"""A served tiny base model with adapters."""

import pytest
from picture_server import ADAPTERS, make_service, save_adapter, served

pytest.importorskip("prometheus_client", reason="needs hra-diffusion[serve]")


@pytest.fixture(scope="session")
def adapters(tmp_path_factory):
    """A folder of adapters: good ones of two people, one for another base, a damaged one."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, method) in enumerate(ADAPTERS.items()):
        save_adapter(folder / name / f"{name}.safetensors", method, seed)
    save_adapter(folder / "foreign.safetensors", cross_attention_dim=48)
    broken = save_adapter(folder / "broken.safetensors")
    broken.write_bytes(broken.read_bytes()[:-200])
    return folder


@pytest.fixture(scope="module")
def service(tmp_path_factory, adapters):
    return make_service(tmp_path_factory.mktemp("service"), adapters)


@pytest.fixture(scope="module")
def address(service):
    with served(service) as address:
        yield address
