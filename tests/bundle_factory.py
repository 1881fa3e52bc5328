"""A small bundle that is right in every respect but means nothing: the contents are whatever bytes a test gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from toolkit.bundle import pack_bundle, write_bundle
from toolkit.manifest import (
    Accuracy,
    CreatedFrom,
    DataLicence,
    Decision,
    FrontEnd,
    Manifest,
    Model,
    Requantize,
    Selftest,
    State,
    Tensor,
)
from toolkit.signature import PrivateKey

RUNTIME = "tflite-runtime-2.14"
OWNER = PrivateKey(bytes(range(32)), "the owner's key")
STRANGER = PrivateKey(bytes(range(1, 33)), "a stranger's key")


def make_members(model: bytes = b"model", **changes: bytes) -> dict[str, tuple[str, bytes]]:
    """Role -> (file name, bytes), as write_bundle takes them; ``changes`` are other bytes by role."""
    members = {
        "model": ("model.tflite", model),
        "tables": ("tables.bin", bytes(range(64))),
        "selftest_input": ("selftest_input.s16", b"\1\2" * 40),
        "selftest_features": ("selftest_features.s16", b"\3\4" * 30),
        f"selftest_scores/{RUNTIME}": (f"selftest_scores_{RUNTIME}.s8", b"\5\6\7"),
        "card": ("card.md", b"# kws\n\nA card.\n"),
    }
    return members | {role: (members[role][0], data) for role, data in changes.items()}


def make_manifest(model: bytes = b"model", **changes: Any) -> Manifest:
    """The manifest for ``make_members(model)``, its members not filled in; ``changes`` are fields of Manifest."""
    manifest = Manifest(
        task="kws", name="kws", version="0.1.0",
        front_end=FrontEnd("ab" * 32, {"sample_rate_hz": 16000, "fmin_hz": 60.0, "window": "hann"}),
        labels=("silence", "unknown", "yes", "K\u00fcche"), tap="raw",
        decision=Decision(25, flush_frames=40, threshold=0.6, refractory_frames=50, rule="peak", hold_frames=3),
        model=Model(
            frames_per_step=2, input=Tensor("frames", (1, 2, 40), 0.05, -3),
            output=Tensor("scores", (1, 4), 1 / 256, -128),
            states=(State("state_in_0", "state_out_0", (1, 4, 1, 16), 0.02, 7),),
            requantize=Requantize(multiplier=1234567890, shift=40, zero_point=-3), ops=("CONV_2D", "SOFTMAX"),
            size_bytes=len(model), arena_bytes=None, macs_per_second=1_000_000),
        accuracy=(Accuracy("accuracy", value=0.95, low=0.94, high=0.96, confidence=0.95, data="speech_commands_v2",
                           split="test", clips=4890, seeds=(1, 2, 3), rule="peak", runtime=RUNTIME),),
        data_licences=(DataLicence("speech_commands_v2", "CC-BY-4.0", "arXiv:1804.03209"),),
        tools={"tensorflow": "2.21.0"}, created_from=CreatedFrom("cd" * 32, "ef" * 32),
        selftest=Selftest(exact=(RUNTIME,), max_lsb=1))
    return replace(manifest, **changes)


def make_bytes(private_key: PrivateKey | None = None, model: bytes = b"model", **changes: Any) -> bytes:
    """The bytes of a bundle; ``changes`` are fields of Manifest."""
    return pack_bundle(make_manifest(model, **changes), make_members(model), private_key)


def make_bundle(path, private_key: PrivateKey | None = None, model: bytes = b"model", **changes: Any):
    """Write the bundle to ``path`` and return it as loaded."""
    return write_bundle(path, make_manifest(model, **changes), make_members(model), private_key)
