"""Folders appear whole or not at all."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gatito.data.publish import published
from gatito.errors import UserError


def fail_in(target: Path, file: str) -> None:
    with published(target) as folder:
        (folder / file).write_text("x")
        raise KeyboardInterrupt


def test_a_folder_appears_with_its_name_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with published(target) as folder:
        (folder / "file").write_text("x")
        assert not target.exists()
    assert [p.name for p in target.iterdir()] == ["file"]
    assert [p.name for p in target.parent.iterdir()] == ["b"]


def test_a_failure_leaves_nothing_behind_not_even_new_parents(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fail_in(tmp_path / "a" / "b" / "c", "file")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_what_others_wrote_beside_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fail_in(tmp_path / "a" / "b", "../other")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["other"]


def test_an_existing_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="a exists; choose another --out or remove it"), published(tmp_path / "a"):
        pytest.fail("the work began")


def test_an_existing_folder_is_replaced_only_on_demand_and_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.mkdir()
    (target / "old").write_text("x")
    with published(target, replace=True) as folder:
        (folder / "new").write_text("y")
        assert (target / "old").exists()
    assert [p.name for p in target.iterdir()] == ["new"]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_kept(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    host = socket.gethostname()
    for name in (f".old.{host}-{dead.stdout.strip()}", f".live.{host}-{os.getppid()}", ".far.elsewhere-1", ".mine"):
        (tmp_path / name).mkdir()
    with published(tmp_path / "a"):
        pass
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"a", f".live.{host}-{os.getppid()}", ".far.elsewhere-1", ".mine"}
