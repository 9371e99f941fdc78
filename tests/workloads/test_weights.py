"""Trained weights from a file: read whole, or refused and nothing changed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hwprune.errors import WorkloadError
from hwprune.workloads import load_weights


def network(seed: int, width: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.pth"])
def test_every_tensor_is_taken(name: str, tmp_path: Path) -> None:
    trained, model = network(0), network(1)
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(trained.state_dict(), path)
    else:
        torch.save(trained.state_dict(), path)
    load_weights(model, path)
    for one, other in zip(model.state_dict().values(), trained.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def bad_files(folder: Path) -> dict[str, Path]:
    save_file({"0.weight": torch.ones(4, 3)}, folder / "some.safetensors")
    save_file(network(0, width=5).state_dict(), folder / "wider.safetensors")
    (folder / "noise.safetensors").write_bytes(b"noise" * 9)
    (folder / "noise.pt").write_bytes(b"noise" * 9)
    (folder / "empty.pt").write_bytes(b"")
    torch.save({"state_dict": network(0).state_dict()}, folder / "nested.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save(network(0), folder / "module.pt")
    return {
        "some.safetensors": "missing: 0.bias",
        "wider.safetensors": "of another shape: 0.bias",
        "noise.safetensors": "cannot be read",
        "noise.pt": "cannot be read",
        "empty.pt": "cannot be read",
        "nested.pt": "a mapping with state_dict",
        "list.pt": "got list",
        "module.pt": "holds more than tensors",
        "absent.pt": "no file",
    }


def test_what_is_no_state_dict_of_the_network_is_refused(tmp_path: Path) -> None:
    for name, told in bad_files(tmp_path).items():
        model = network(1)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(WorkloadError) as caught:
            load_weights(model, tmp_path / name)
        assert told in str(caught.value), name
        assert "\n" not in str(caught.value)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
