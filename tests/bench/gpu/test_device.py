"""What is known of a GPU where there is none."""

from bench.gpu import _device


def test_without_a_gpu_the_reason_is_one_line():
    got = _device.device_facts({})
    assert set(got) == {"error"}
    assert got["error"]
    assert "\n" not in got["error"]


def test_without_a_driver_its_version_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _device.driver() == "unknown"
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 580.1\necho 580.1\n")
    program.chmod(0o755)
    assert _device.driver() == "580.1"
    program.write_text("#!/bin/sh\nexit 9\n")
    assert _device.driver() == "unknown"
