"""What the doctor says of a healthy and of a broken installation."""

from __future__ import annotations

import builtins
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from lidarssl.cli import main
from lidarssl.experiments import doctor
from lidarssl.experiments.doctor import Finding, Findings, crowding, examine, import_problem


def line(findings: Findings, what: str) -> Finding:
    (found,) = [one for one in findings.lines if one.what == what]
    return found


def test_this_installation_is_healthy(tmp_path: Path) -> None:
    findings = examine(tmp_path)
    assert findings.healthy, str(findings)
    assert line(findings, "sparse convolution").value.startswith("forward and backward work on cpu")
    assert str(findings).endswith("all that lidarssl needs works")


def test_a_finding_names_its_remedy() -> None:
    broken = Finding("scipy", "missing", False, "pip install scipy")
    text = str(Findings((Finding("torch", "2.10", True), broken, Finding("cores", "2"))))
    assert "[ok] torch" in text
    assert "[!!] scipy" in text
    assert "-> pip install scipy" in text
    assert text.endswith("1 to mend: lines with !!")


@pytest.mark.parametrize(("good", "healthy"), [(True, True), (None, True), (False, False)])
def test_healthy_is_the_absence_of_what_is_broken(good: bool | None, healthy: bool) -> None:
    assert Findings((Finding("a", "b", good),)).healthy is healthy


def test_the_command_tells_the_shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Findings((Finding("x", "y", False, "z"),))
    monkeypatch.setattr(doctor, "examine", lambda: broken)
    assert main(["doctor"]) == 1
    assert "-> z" in capsys.readouterr().out


def test_a_missing_and_a_broken_package_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken_package.py").write_text("raise ValueError('built for numpy 1')")
    (tmp_path / "half_package.py").write_text("import nowhere_to_be_found")
    monkeypatch.syspath_prepend(tmp_path)
    assert import_problem("nowhere_to_be_found") == "missing"
    assert import_problem("broken_package") == "broken: built for numpy 1"
    assert import_problem("half_package") == "broken: No module named 'nowhere_to_be_found'"
    assert import_problem("json") == ""


def test_a_missing_core_package_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    found = line(examine(), "torchmetrics")
    assert found.good is False
    assert found.remedy == "pip install --upgrade torchmetrics"


def test_a_missing_extra_is_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embreex", None)
    findings = examine()
    assert findings.healthy
    assert line(findings, "extra [synthetic]").remedy == "pip install 'lidarssl[synthetic]'"


def test_without_torch_the_other_checks_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_torch(name: str, *rest: object, **more: object) -> object:
        if name == "torch":
            raise ImportError("libcudart.so.13: cannot open shared object file\nmore")
        return real(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(builtins, "__import__", no_torch)
    monkeypatch.setattr(doctor.importlib, "import_module", no_torch)
    findings = examine()
    assert not findings.healthy
    assert line(findings, "torch").value == (
        "broken: libcudart.so.13: cannot open shared object file"
    )
    assert line(findings, "sparse convolution").good is False
    assert line(findings, "free disk here").good is not None


def test_old_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    found = line(examine(), "torch")
    assert found.good is False
    assert "torch>=2.10" in found.remedy


def test_a_gpu_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert "pytorch.org" in line(examine(), "cuda").remedy


@pytest.mark.parametrize("version", [(3, 10, 4), (3, 14, 0)])
def test_unsupported_python(monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...]) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    found = next(iter(one for one in doctor._identity() if one.what == "python"))
    assert found.good is False
    assert found.remedy == "use Python 3.11 to 3.13"


def test_full_disk_and_foreign_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gib = 1024**3
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(gib, gib, gib))
    monkeypatch.setattr(os, "access", lambda *_: False)
    lines = {one.what: one for one in doctor._disk(tmp_path)}
    assert lines["this folder"].good is False
    assert lines["free disk here"].good is False


def test_tiny_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm here")
    small = shutil._ntuple_diskusage(64 << 20, 0, 64 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: small)
    (found,) = doctor._shared_memory()
    assert "shm-size" in found.remedy


@pytest.mark.parametrize(
    ("workers", "threads", "cores", "said"),
    [
        (0, 2, 2, False),
        (1, 1, 2, False),
        (2, 1, 2, False),
        (1, 2, 2, True),
        (8, 4, 16, False),
        (8, 16, 16, True),
    ],
)
def test_crowded_cores_are_named(workers: int, threads: int, cores: int, said: bool) -> None:
    message = crowding(workers, threads, cores)
    assert (message is not None) == said
    if message is not None:
        assert f"OMP_NUM_THREADS={cores - workers}" in message
