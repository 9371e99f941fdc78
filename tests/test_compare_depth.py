"""The comparison of channels with channels and branches: what it reads and counts."""

import json

import pytest


@pytest.fixture
def tool(load_tool):
    return load_tool("compare_depth")


def made(folder, accuracies, branches):
    """A folder as a command leaves it, of what the tool reads; an accuracy of ``None`` is out of reach."""
    variants = []
    for target, accuracy in accuracies.items():
        name = f"net-{target:g}"
        variants.append(
            {"name": name, "target": {"value": target}, "status": "missed" if accuracy else "unreachable"}
        )
        if accuracy is None:
            continue
        (folder / name).mkdir(parents=True)
        layers = [{"unit": "channels", "width_after": 0}]
        layers += [{"unit": "branches", "width_after": int(index >= branches)} for index in range(3)]
        report = {
            "slim": {"accuracy": accuracy},
            "dense": {"accuracy": 0.95},
            "speedup": target + 0.02,
            "target_met": target < 4,
            "seconds": 60,
            "layers": layers,
        }
        (folder / name / "report.json").write_text(json.dumps(report))
    (folder / "manifest.json").write_text(json.dumps({"variants": variants}))
    return folder


def test_differences_are_per_seed_and_what_is_out_of_reach_is_told(tool, tmp_path):
    seeds = [
        {
            "channel": tool.read_side(made(tmp_path / f"{seed}a", {2.0: 0.90, 4.0: None}, 0)),
            "channel+branch": tool.read_side(
                made(tmp_path / f"{seed}b", {2.0: 0.91 + 0.02 * seed, 4.0: 0.85}, 1 + seed)
            ),
        }
        for seed in range(2)
    ]
    lines = tool.lines_of(seeds)
    assert lines[2] == (
        "| 2 | 90.00 (0.00), 2.02, 0, 0, 2 of 2 | 92.00 (1.41), 2.02, 1, 2, 2 of 2 | +2.00 (1.41) |"
    )
    assert lines[3] == "| 4 | out of reach | 85.00 (0.00), 4.02, 1, 2, 0 of 2 | - |"
    assert "Dense: 95.00 (0.00)" in lines[-1]


def test_what_is_complete_is_not_made_again(tool, tmp_path):
    folder = made(tmp_path / "grid", {2.0: 0.90, 4.0: None}, 0)
    assert tool.made(folder, 2)
    assert not tool.made(folder, 3)
    assert not tool.made(tmp_path / "nothing", 2)
    tool.run(folder, ["--speedup", "2", "--speedup", "4", "--no-such-option"])  # or the command would refuse
