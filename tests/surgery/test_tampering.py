"""Artefacts that somebody changed: each is refused with one message, and nothing else happens."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import shutil
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hwprune.errors import ArtifactError, HwpruneError
from hwprune.graph.coupling import find_axes
from hwprune.surgery.artifact import load_slim, save_slim
from hwprune.surgery.fold import give_biases
from hwprune.surgery.forms import Form, reshape
from hwprune.surgery.rebuild import rebuild
from hwprune.surgery.stand_in import Absence, Dimension, absent_layers, take_out

STRUCTURE, WEIGHTS = "structure.json", "model.safetensors"
#: Far above what the small network needs, far below what a tampered number could ask for.
MEMORY_BYTES = 32 * 2**20
LONGEST_MESSAGE = 1000
#: What is as large as its input, a map of four channels.
FOLLOWS = tuple(Dimension(size=size, of=place) for place, size in enumerate((2, 4, 6, 6)))


class Small(nn.Module):
    """Convolutions that are cut, a recurrent layer that never is, and a tensor of integers."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 6, 1)
        self.memory = nn.LSTM(6, 5, batch_first=True)

    def forward(self, images):
        maps = self.second(torch.relu(self.norm(self.first(images))))
        return self.memory(maps.flatten(2).transpose(1, 2))[0]


class Changed(nn.Module):
    """A branch that leaves, a convolution that is reshaped, and a layer that gets a bias."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.conv, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.head = nn.Linear(4, 3, bias=False)

    def forward(self, images):
        maps = self.stem(images)
        maps = self.relu(self.conv(maps + self.branch(maps)))
        return self.head(torch.sigmoid(maps.mean((2, 3))))


def edited(change):
    """A tampering that changes the parsed structure."""

    def tamper(folder):
        content = json.loads((folder / STRUCTURE).read_text())
        change(content)
        (folder / STRUCTURE).write_text(json.dumps(content))

    return tamper


def text(written):
    """A tampering that replaces the structure by other bytes."""
    return lambda folder: (folder / STRUCTURE).write_bytes(written)


def resealed(change):
    """A tampering of the weights by somebody who also writes their hash into the structure."""

    def tamper(folder):
        path = folder / WEIGHTS
        path.write_bytes(change(path.read_bytes()))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        edited(lambda content: content.update(weights_sha256=digest))(folder)

    return tamper


def tensors(change):
    """A tampering of the tensors, with a matching hash."""

    def rewrite(folder):
        state = load_file(str(folder / WEIGHTS))
        change(state)
        save_file(state, str(folder / WEIGHTS))
        resealed(lambda content: content)(folder)

    return rewrite


def headed(header):
    """A weights file with another header: its length, then its text."""
    return resealed(lambda _content: struct.pack("<Q", len(header)) + header)


def outside(name):
    """Replaces a file by a link to itself outside of the folder."""

    def tamper(folder):
        shutil.move(folder / name, folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return tamper


def replaced(name, make):
    """Removes a file and makes something else of its name."""

    def tamper(folder):
        (folder / name).unlink()
        make(folder / name)

    return tamper


def sparse(path):
    """A file that claims a terabyte and takes none."""
    with path.open("wb") as file:
        file.truncate(2**40)


def wrong_values():
    """Every key of the structure and of a cut, with values of other types and absurd numbers."""
    wrong = {
        "null": None,
        "fraction": 1.5,
        "nan": float("nan"),
        "infinity": float("inf"),
        "negative": -1,
        "enormous": 2**70,
        "text": "../../etc/passwd",
        "list": [[]],
        "object": {"a": {"b": []}},
    }
    for key in ("schema", "versions", "model_class", "cuts", "shapes", "weights_sha256"):
        yield f"without {key}", edited(lambda content, key=key: content.pop(key))
        for name, value in wrong.items():
            yield f"{key} {name}", edited(lambda c, key=key, value=value: c.update({key: value}))
    for key in ("tensor", "dim", "size", "kept"):
        yield f"cut without {key}", edited(lambda content, key=key: content["cuts"][0].pop(key))
        for name, value in wrong.items():
            yield (
                f"cut {key} {name}",
                edited(lambda c, key=key, value=value: c["cuts"][0].update({key: value})),
            )


def wrong_positions():
    """Positions that are none."""
    lists = {
        "out of range": [0, 10**6],
        "at the end": [0, 8],
        "twice": [1, 1],
        "unsorted": [3, 1],
        "negative": [-1, 0],
        "none": [],
        "fractions": [0.0, 1.0],
        "nan": [float("nan")],
        "texts": ["0", "1"],
        "truths": [False, True],
        "nested": [[0], [1]],
        "beyond 64 bits": [0, 2**63],
        "beyond all bits": [10**400],
        "one too few": [0],
    }
    for name, kept in lists.items():
        yield f"kept {name}", edited(lambda content, kept=kept: content["cuts"][0].update(kept=kept))


def wrong_cuts():
    """Cuts that fit nothing."""
    first = {"tensor": "first.weight", "dim": 2, "size": 3, "kept": [0, 1]}
    recurrent = {"tensor": "memory.weight_ih_l0", "dim": 0, "size": 20, "kept": list(range(10))}
    yield "a cut missing", edited(lambda content: content["cuts"].pop())
    yield "no cuts", edited(lambda content: content.update(cuts=[]))
    yield "a cut twice", edited(lambda content: content["cuts"].append(content["cuts"][0]))
    yield "a cut more", edited(lambda content: content["cuts"].append(first))
    yield "a dimension beyond", edited(lambda content: content["cuts"][0].update(dim=7))
    yield "a tensor with a line break", edited(lambda c: c["cuts"][0].update(tensor="a\nError: b\x1b[2J"))
    yield "a very long name", edited(lambda content: content["cuts"][0].update(tensor="x" * 10**6))
    yield "an attribute", edited(lambda content: content["cuts"][0].update(tensor="__class__.__init__"))
    yield "a key more", edited(lambda content: content.update(extra=1))
    yield "a key more in a cut", edited(lambda content: content["cuts"][0].update(extra=1))
    yield "another shape", edited(lambda content: content["shapes"].update({"norm.bias": [5]}))
    yield "a shape more", edited(lambda content: content["shapes"].update({"x": [2**39] * 8}))
    yield "a shape of many", edited(lambda content: content["shapes"].update({"x": [1] * 9}))

    def cut_the_recurrent(folder):
        def narrower(content):
            content["cuts"].append(recurrent)
            content["shapes"]["memory.weight_ih_l0"] = [10, 6]

        tensors(lambda state: state.update({"memory.weight_ih_l0": torch.zeros(10, 6)}))(folder)
        edited(narrower)(folder)

    yield "a recurrent layer cut", cut_the_recurrent


def no_json():
    """What is no structure at all."""
    contents = {
        "empty": b"",
        "a brace": b"{",
        "null": b"null",
        "a list": b"[]",
        "a number": b"1",
        "NaN": b"NaN",
        "many digits": b'{"schema": ' + b"1" * 10**5 + b"}",
        "deep lists": b"[" * 10**6,
        "deep objects": b'{"a":' * 10**5 + b"1" + b"}" * 10**5,
        "deep within": b'{"schema": 1, "cuts": ' + b"[" * 900 + b"]" * 900 + b"}",
        "utf-16": '{"schema": 1}'.encode("utf-16"),
        "bytes": bytes(range(256)),
        "zeros": bytes(1000),
        "a lone surrogate": b'{"schema": 1, "model_class": "\\ud800"}',
        "a trailer": b'{"schema": 1} {}',
        "schema true": b'{"schema": true}',
        "schema as fraction": b'{"schema": 1.0}',
        "pickle": b"\x80\x04cposix\nsystem\n.",
    }
    for name, content in contents.items():
        yield f"structure {name}", text(content)


def other_weights():
    """Weights that are not those; with ``sealed`` their hash was corrected too."""
    generator = random.Random(0)
    for share in (0.0, 0.01, 0.5, 0.99):
        cut = lambda content, share=share: content[: int(share * len(content))]  # noqa: E731
        yield (
            f"truncated to {share}",
            lambda f, cut=cut: (f / WEIGHTS).write_bytes(cut((f / WEIGHTS).read_bytes())),
        )
        yield f"sealed truncated to {share}", resealed(cut)
    for _ in range(5):
        place, bit = generator.random(), 1 << generator.randrange(8)

        def flip(folder, place=place, bit=bit):
            content = bytearray((folder / WEIGHTS).read_bytes())
            content[int(place * len(content))] ^= bit
            (folder / WEIGHTS).write_bytes(bytes(content))

        yield f"a bit flipped at {place:.3f}", flip
    yield "sealed longer", resealed(lambda content: content + b"\0")
    yield "sealed length of header", resealed(lambda content: struct.pack("<Q", 2**63) + content[8:])
    yield "sealed header no JSON", headed(b"x" * 64)
    yield "sealed header deep", headed(b"[" * 5000)
    entry = '{"first.weight": {"dtype": "%s", "shape": [%s], "data_offsets": [0, %s]}}'
    yield "sealed header huge tensor", headed((entry % ("F32", 2**40, 2**42)).encode())
    yield "sealed header unknown type", headed((entry % ("F99", 1, 4)).encode())
    yield "sealed header negative", headed((entry % ("F32", -1, -4)).encode())
    yield "sealed pickle", resealed(lambda _content: b"\x80\x04cposix\nsystem\n.")
    yield "sealed tensor missing", tensors(lambda state: state.pop("norm.bias"))
    yield "sealed tensor more", tensors(lambda state: state.update({"../../x": torch.zeros(2)}))
    yield "sealed tensor shape", tensors(lambda state: state.update({"norm.bias": torch.zeros(3)}))
    yield (
        "sealed tensor transposed",
        tensors(lambda s: s.update({"second.weight": s["second.weight"].transpose(0, 1).contiguous()})),
    )
    yield "sealed tensor type", tensors(lambda state: state.update({"norm.bias": torch.zeros(4).int()}))
    yield (
        "sealed counter type",
        tensors(lambda state: state.update({"norm.num_batches_tracked": torch.tensor(1.0)})),
    )


def other_files():
    """Files that are none, or lie elsewhere."""
    for name in (STRUCTURE, WEIGHTS):
        yield f"{name} missing", lambda folder, name=name: (folder / name).unlink()
        yield f"{name} a folder", replaced(name, lambda path: path.mkdir())
        yield f"{name} a pipe", replaced(name, lambda path: os.mkfifo(path))
        yield f"{name} huge", replaced(name, sparse)
        yield f"{name} elsewhere", outside(name)
        yield f"{name} a link to nothing", replaced(name, lambda path: path.symlink_to("/no/such/file"))
        yield f"{name} a link to itself", replaced(name, lambda path: path.symlink_to(path))
        yield f"{name} a device", replaced(name, lambda path: path.symlink_to("/dev/zero"))
    yield "no folder", lambda folder: shutil.rmtree(folder)
    yield "a file for the folder", lambda folder: (shutil.rmtree(folder), folder.write_text("x"))


def wrong_layers():
    """Layers that are absent, in another form or with a bias, in other ways than they were."""
    zeros = {"passes": False, "outputs": [[{"size": 2}]], "single": True}
    absences = {
        "passes": lambda absence: absence.update(passes=True),
        "in a tuple": lambda absence: absence.update(single=False),
        "returns two": lambda absence: absence["outputs"].append(None),
        "returns nothing": lambda absence: absence.update(outputs=[None]),
        "of another width": lambda absence: absence["outputs"][0][1].update(size=8, of=None),
        "as long as another": lambda absence: absence["outputs"][0][2].update(of=3),
        "strided": lambda absence: absence["outputs"][0][2].update(per=2),
        "of no dimensions": lambda absence: absence.update(outputs=[[]]),
        "enormous": lambda absence: absence.update(outputs=[[{"size": 2**30}, {"size": 2**30}]]),
        "of many dimensions": lambda absence: absence.update(outputs=[[{"size": 1}] * 9]),
        "of a dimension beyond": lambda absence: absence["outputs"][0][0].update(of=8),
        "over zero": lambda absence: absence["outputs"][0][0].update(per=0),
    }
    for name, change in absences.items():
        yield f"absent {name}", edited(lambda c, change=change: change(c["absent"]["branch"]))
    for name in ("relu", "stem", "branch.1", "77", ""):
        yield f"absent too {name}", edited(lambda c, name=name: c["absent"].update({name: zeros}))
    yield "absent no more", edited(lambda content: content.pop("absent"))
    yield "none absent", edited(lambda content: content.update(absent={}))
    changes = {
        "shifted": {"positions": [1, 5, 8, 18]},
        "cropped": {"form": "cropped"},
        "twice": {"positions": [0, 0, 4, 7]},
        "beyond": {"positions": [0, 4, 7, 36]},
        "of none": {"positions": []},
        "otherwise": {"form": "folded"},
        "inside what is absent": {"module": "branch.0"},
        "elsewhere": {"module": "stem"},
    }
    for name, change in changes.items():
        yield f"reshaped {name}", edited(lambda c, change=change: c["reshaped"][0].update(change))
    yield "reshaped two", edited(lambda content: content["reshaped"].append(content["reshaped"][0]))
    yield "reshaped none", edited(lambda content: content.update(reshaped=[]))
    for names in ([], ["stem"], ["head", "stem"], ["head", "head"], ["head", "branch.0"], ["branch"], ["x"]):
        yield f"biases {names}", edited(lambda content, names=names: content.update(biases=names))
    yield "another torch", edited(lambda content: content["versions"].update(torch="1.0"))
    yield "without a note of the structure", tensors(lambda state: state)


SOURCES = (wrong_values, wrong_positions, wrong_cuts, no_json, other_weights, other_files)
TAMPERINGS = [item for source in SOURCES for item in source()]
LAYER_TAMPERINGS = list(wrong_layers())


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    torch.manual_seed(0)
    model = Small().eval()
    axes = find_axes(model, torch.randn(2, 1, 6, 6))
    kept = {axis.name: np.arange(axis.width) < axis.width // 2 for axis in axes if axis.pinned is None}
    assert "first" in kept
    folder = tmp_path_factory.mktemp("saved") / "slim"
    save_slim(folder, rebuild(model, axes, kept), axes, kept, {"torch": torch.__version__})
    return folder


@pytest.fixture(scope="module")
def original_changed(tmp_path_factory):
    torch.manual_seed(0)
    slim = Changed().eval()
    forms = (Form("conv", "lowered", (0, 4, 7, 17)),)
    take_out(slim, {"branch": Absence(passes=False, outputs=(FOLLOWS,), single=True)})
    reshape(slim, forms)
    give_biases(slim, ["head"])
    folder = tmp_path_factory.mktemp("saved") / "slim"
    save_slim(folder, slim, (), {}, {"torch": torch.__version__}, forms=forms, biases=["head"])
    return folder


@pytest.fixture
def changed(original_changed, tmp_path):
    return shutil.copytree(original_changed, tmp_path / "changed")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "slim")


FRESH, FRESH_CHANGED = Small().eval(), Changed().eval()


def test_what_nobody_changed_is_loaded(folder, changed):
    loaded = load_slim(folder, copy.deepcopy(FRESH))
    assert loaded.first.out_channels == 4
    loaded(torch.randn(2, 1, 6, 6)).sum().backward()
    loaded = load_slim(changed, copy.deepcopy(FRESH_CHANGED))
    assert absent_layers(loaded).keys() == {"branch"}
    loaded(torch.randn(2, 1, 6, 6)).sum().backward()


def test_an_artefact_from_before_structures_were_noted_is_loaded(folder):
    tensors(lambda state: state)(folder)
    assert load_slim(folder, copy.deepcopy(FRESH)).first.out_channels == 4


def test_there_are_many_tamperings():
    names = [name for name, _tamper in TAMPERINGS + LAYER_TAMPERINGS]
    assert len(names) >= 200
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("tamper", [pytest.param(tamper, id=name) for name, tamper in TAMPERINGS])
def test_a_tampered_artefact_is_refused_with_one_message(folder, tamper):
    tamper(folder)
    model = copy.deepcopy(FRESH)
    _refused(folder, model)
    _untouched(FRESH, model)


@pytest.mark.parametrize("tamper", [pytest.param(tamper, id=name) for name, tamper in LAYER_TAMPERINGS])
def test_layers_that_are_not_as_they_were_are_refused_with_one_message(changed, tamper):
    tamper(changed)
    model = copy.deepcopy(FRESH_CHANGED)
    _refused(changed, model)
    _untouched(FRESH_CHANGED, model)


def _refused(folder, model):
    tracemalloc.start()
    try:
        with pytest.raises(HwpruneError) as refused:
            load_slim(folder, model)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(refused.value, ArtifactError)
    message = str(refused.value)
    assert message.isprintable()
    assert len(message) < LONGEST_MESSAGE
    assert peak < MEMORY_BYTES


def _untouched(fresh, model):
    assert str(model) == str(fresh)
    before, after = fresh.state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
