"""Files and folders as bytes, and back."""

from __future__ import annotations

import contextlib
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


def test_links_arrive_as_links_wherever_they_point(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "variant" / "data").mkdir(parents=True)
    (here / "variant" / "data" / "file").write_text("sent once")
    for name, target in (("gone", "nowhere"), ("beside", "data"), ("root", "/")):
        (here / "variant" / name).symlink_to(target)
    parcel = pack(here, ["variant"])
    assert len(parcel) < 2000
    unpack(parcel, there, ["variant"])
    links = {p.name: str(p.readlink()) for p in (there / "variant").iterdir() if p.is_symlink()}
    assert links == {"gone": "nowhere", "beside": "data", "root": "/"}
    assert (there / "variant" / "beside" / "file").read_text() == "sent once"


def test_a_folder_that_is_kept_elsewhere_arrives_there(tmp_path: Path) -> None:
    here, there, elsewhere = tmp_path / "here", tmp_path / "there", tmp_path / "elsewhere"
    for root in (here, there):
        root.mkdir()
        (elsewhere / root.name).mkdir(parents=True)
        (root / "variant").symlink_to(elsewhere / root.name)
    (here / "variant" / "model").write_text("new")
    unpack(pack(here, ["variant"]), there, ["variant"])
    assert (there / "variant").is_symlink()
    assert (elsewhere / "there" / "model").read_text() == "new"


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    parcel = tmp_path / "parcel.zip"
    with zipfile.ZipFile(parcel, "w") as archive:
        link = zipfile.ZipInfo("way")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, str(tmp_path / "outside"))
        try_through = zipfile.ZipInfo("way/escaped")
        archive.writestr(try_through, "x")
    with contextlib.suppress(OSError):
        unpack(parcel.read_bytes(), tmp_path / "there", ["way"])
    assert list((tmp_path / "outside").iterdir()) == []


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
