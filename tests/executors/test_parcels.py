"""Files and folders as bytes, and back."""

from __future__ import annotations

import zipfile
from pathlib import Path

from hwprune.executors.parcels import pack, unpack


def test_files_and_folders_arrive_as_they_were_sent(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "variant" / "slim").mkdir(parents=True)
    (here / "variant" / "slim" / "model").write_bytes(b"new")
    (here / "alone").write_text("file")
    (there / "variant").mkdir(parents=True)
    (there / "variant" / "old").write_text("goes")
    names = ("variant", "alone", "absent")
    unpack(pack(here, names), there, names)
    files = {p.relative_to(there).as_posix(): p.read_bytes() for p in there.rglob("*") if p.is_file()}
    assert files == {"variant/slim/model": b"new", "alone": b"file"}


def test_only_what_is_named_is_put_in_place(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("sent along")
    unpack(pack(tmp_path, ["mine"]), tmp_path / "there", ["other"])
    assert list((tmp_path / "there").iterdir()) == []


def test_a_parcel_cannot_reach_out_of_its_folder(tmp_path: Path) -> None:
    parcel = tmp_path / "parcel.zip"
    with zipfile.ZipFile(parcel, "w") as archive:
        archive.writestr("../../escaped", "x")
        archive.writestr(f"{tmp_path}/absolute", "x")
    unpack(parcel.read_bytes(), tmp_path / "a" / "b", ["far"])
    assert not (tmp_path / "absolute").exists()
    assert not (tmp_path / "escaped").exists()
