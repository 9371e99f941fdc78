import pytest
import torch

from hwprune.errors import ArtifactError
from hwprune.train.checkpoint import load_checkpoint, save_checkpoint

STATE = {"a": [1, 2.5, None, "x"], "b": {0: torch.arange(3), "c": torch.eye(2)}, "flag": True}


def test_everything_comes_back(tmp_path):
    path = tmp_path / "state.safetensors"
    save_checkpoint(path, STATE)
    loaded = load_checkpoint(path)
    assert loaded["a"] == STATE["a"]
    assert loaded["flag"] is True
    assert torch.equal(loaded["b"][0], STATE["b"][0])
    assert torch.equal(loaded["b"]["c"], STATE["b"]["c"])
    assert [item.name for item in tmp_path.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize("seed", range(40))
def test_damage_is_one_clear_error_or_harmless(tmp_path, seed):
    path = tmp_path / "state.safetensors"
    save_checkpoint(path, STATE)
    content = bytearray(path.read_bytes())
    generator = torch.Generator().manual_seed(seed)
    if seed % 2:
        content = content[: int(torch.randint(0, len(content), (1,), generator=generator))]
    else:
        for _ in range(4):
            content[int(torch.randint(0, len(content) - 64, (1,), generator=generator))] ^= 0x5A
    path.write_bytes(bytes(content))
    with pytest.raises(ArtifactError):
        load_checkpoint(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="missing"):
        load_checkpoint(tmp_path / "none.safetensors")
