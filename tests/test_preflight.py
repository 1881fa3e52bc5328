"""What is checked before anything is changed: the order (devices/plan.py), and the device (devices/preflight.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bundle_factory import OWNER, STRANGER, make_bundle

from devices.plan import changes, make_order
from devices.preflight import Facts, problems
from toolkit.errors import BudgetError, BundleFormatError, DeployError, SignatureError, UsageError
from toolkit.profile import load_profile
from toolkit.signature import TrustedKeys

pytest.importorskip("yaml", reason="PyYAML is not installed (pip install pyyaml)")
READY = Facts(target="pi@hall", machine="aarch64", python="3.11 64 aarch64", venv="ok", glibc="glibc 2.36",
              free_bytes=10**9, uid=1000, user="pi", has_audio_group=True, can_sudo=True, n_captures=1,
              has_systemd=True, has_flock=True, is_busy=False)


@pytest.fixture(scope="module")
def zero():
    return load_profile("rpi-zero2w")


# --- the device -----------------------------------------------------------------------------------


def test_a_device_that_is_ready(zero):
    assert problems(READY, zero, 10**8, "/opt/edge-audio") == []
    assert problems(replace(READY, uid=0, user="root", can_sudo=False), zero, 10**8, "/opt/edge-audio") == []


@pytest.mark.parametrize("change, said, way_out", [
    ({"machine": "x86_64", "python": "3.11 64 x86_64"}, "its programs are x86-64", "name the profile"),
    ({"python": "3.11 32 aarch64"}, "its programs are armv7 (kernel aarch64)", "name the profile"),
    ({"machine": "riscv64", "python": "3.11 64 riscv64"}, "its programs are riscv64", "name the profile"),
    ({"python": "3.9 64 aarch64"}, "its python3 is 3.9, expected 3.11 or newer", "Debian 12"),
    ({"python": "sh: 1: python3: not found"}, "python3 does not run there", "apt install python3"),
    ({"venv": "ModuleNotFoundError: No module named 'ensurepip'"}, "cannot make environments", "python3-venv"),
    ({"glibc": "glibc 2.27"}, "its glibc is 2.27, expected 2.28 or newer", "Debian 12"),
    ({"glibc": "getconf: GNU_LIBC_VERSION: unknown variable"}, "its C library is no glibc", "Debian 12"),
    ({"free_bytes": 50 << 20}, "50 MiB are free where /opt/edge-audio lies, 114 MiB are needed", "make room"),
    ({"has_systemd": False}, "no systemd", "use a system that has it"),
    ({"has_flock": False}, "flock is missing", "apt install util-linux"),
    ({"can_sudo": False}, "pi is not root and sudo asks for a password", "sudoers.d"),
    ({"has_audio_group": False}, "there is no group `audio`", "groupadd"),
    ({"n_captures": 0}, "no microphone is there", "plug one in"),
])
def test_what_is_missing_is_a_sentence_with_its_way_out(zero, change, said, way_out):
    found = problems(replace(READY, **change), zero, 10**8, "/opt/edge-audio")
    assert len(found) == 1 and said in found[0] and way_out in found[0]


def test_all_that_is_missing_is_said_at_once(zero):
    assert len(problems(replace(READY, has_systemd=False, n_captures=0, free_bytes=0), zero, 0, "/x")) == 3


# --- the order ------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path):
    make_bundle(tmp_path / "kws.eab", OWNER)
    return tmp_path / "kws.eab"


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "edge_audio_toolkit-0.3.0-py3-none-manylinux_2_17_aarch64.whl"
    path.write_bytes(b"wheel")
    return path


def test_a_release_is_what_was_read(bundle, wheel, zero, tmp_path):
    make_bundle(tmp_path / "a.eab", OWNER, name="alarm")
    order = make_order(zero, [bundle, tmp_path / "a.eab"], wheel, channel=1, threshold=0.5)
    bundle.write_bytes(b"changed after it was checked")
    release = order.release(None)
    assert [entry["name"] for entry in release["bundles"]] == ["alarm", "kws"]
    assert release["listen"] == {"device": None, "channel": 1, "threshold": 0.5}
    assert release["runtime"]["wheel"] == wheel.name and not release["runtime"]["system_site_packages"]
    named = {release["runtime"]["sha256"], *(entry["sha256"] for entry in release["bundles"])}
    assert named == set(order.files) and b"changed" not in order.files[release["bundles"][1]["sha256"]].data
    order.check_signatures(TrustedKeys([OWNER.public_key()]))
    with pytest.raises(SignatureError, match="not among the 1 trusted"):
        order.check_signatures(TrustedKeys([STRANGER.public_key()]))
    with pytest.raises(SignatureError, match="revoked .stolen."):
        order.check_signatures(TrustedKeys([OWNER.public_key()], {OWNER.public_key().key_id: "stolen"}))


def test_without_a_wheel_the_runtime_stays(bundle, wheel, zero):
    present = make_order(zero, [bundle], wheel).release(None)
    order = make_order(zero, [bundle], threshold=0.9)
    assert order.release(present)["runtime"] == present["runtime"]
    with pytest.raises(DeployError, match="has no runtime yet: name the toolkit's wheel with --wheel"):
        order.release(None)


def test_what_an_order_must_not_be(bundle, wheel, zero, tmp_path):
    for profile, error, said in (
            (replace(zero, flash_bytes=100), BudgetError, "kws need .* bytes of storage, flash_bytes allows 100"),
            (replace(zero, macs_per_second=999), BudgetError, "kws need 1000000 MAC/s, macs_per_second allows 999"),
            (replace(zero, ops=("ADD",)), BudgetError, "no runtime there has CONV_2D, SOFTMAX"),
            (replace(zero, architecture="armv7"), DeployError, "for manylinux_2_17_aarch64, but the profile .* armv7"),
            (replace(zero, transport="image"), UsageError, "transport is image, expected ssh")):
        with pytest.raises(error, match=said):
            make_order(profile, [bundle], wheel)
    with pytest.raises(UsageError, match="kws, kws; name each once"):
        make_order(zero, [bundle, bundle])
    with pytest.raises(UsageError, match="--requirements belong to a wheel"):
        make_order(zero, [bundle], requirements=tmp_path)
    with pytest.raises(UsageError, match="not named as a wheel is"):
        make_order(zero, [bundle], bundle)
    with pytest.raises(UsageError, match="expected a channel from 0 and a threshold between"):
        make_order(zero, [bundle], threshold=1.5)
    bundle.write_bytes(bundle.read_bytes()[:-1])
    with pytest.raises(BundleFormatError, match="cut short"):
        make_order(zero, [bundle])


def test_armv7_takes_numpy_from_the_system(bundle, tmp_path, zero):
    wheel = tmp_path / "edge_audio_toolkit-0.3.0-py3-none-manylinux_2_17_armv7l.whl"
    wheel.write_bytes(b"wheel")
    runtime = make_order(replace(zero, architecture="armv7"), [bundle], wheel).release(None)["runtime"]
    assert runtime["system_site_packages"]


def test_the_profile_names_the_microphone(bundle, zero):
    assert make_order(replace(zero, audio_device="hw:1,0"), [bundle]).listen["device"] == "hw:1,0"
    assert make_order(replace(zero, audio_device="hw:1,0"), [bundle], device="USB").listen["device"] == "USB"


def test_the_difference_between_two_releases(bundle, wheel, zero, tmp_path):
    old = make_order(zero, [bundle], wheel).release(None)
    assert changes(old, old) == []
    both = [tmp_path / "next.eab", tmp_path / "alarm.eab"]
    make_bundle(both[0], OWNER, version="0.2.0")
    make_bundle(both[1], OWNER, name="alarm")
    assert changes(old, make_order(zero, both, threshold=0.7).release(old)) == [
        "bundle alarm: new, 0.1.0", "bundle kws: 0.1.0 -> 0.2.0", "threshold: default -> 0.7"]
    assert changes(old, make_order(zero, [tmp_path / "alarm.eab"], wheel, channel=2).release(old)) == [
        "bundle alarm: new, 0.1.0", "bundle kws: 0.1.0 goes away", "channel: 0 -> 2"]
    make_bundle(tmp_path / "same.eab", OWNER, labels=("silence", "unknown", "yes", "no"))
    (line,) = changes(old, make_order(zero, [tmp_path / "same.eab"]).release(old))
    assert line.startswith("bundle kws: 0.1.0, the same version with other contents")
    wheel.write_bytes(b"another")
    (line,) = changes(old, make_order(zero, [bundle], wheel).release(old))
    assert line.startswith("runtime: edge_audio_toolkit-0.3.0") and line.endswith("the same name with other contents")
