"""edge-audio: bundles over recordings and microphones. Programs read stdout (JSON lines), people read stderr."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from . import __version__
from .errors import EdgeAudioError, MissingPartError, UsageError

BLOCK_S = 0.02
POLICIES = ("require", "warn", "off")


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0 done, 1 failed, 2 misused."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except EdgeAudioError as error:
        say(str(error))
        return error.exit_code
    except BrokenPipeError:  # the reader of stdout has gone, as `| head` does
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 0


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    top = argparse.ArgumentParser(prog="edge-audio", description=__doc__)
    top.add_argument("--version", action="version", version=f"edge-audio {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, help: str, bundles: str | None = "+") -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        if bundles:
            sub.add_argument("bundle", nargs=bundles, metavar="BUNDLE", help="path of a bundle or name of a released one")
            sub.add_argument("--signature", choices=POLICIES, default="warn", help="what an unproven signature does (default: warn)")
        return sub

    sub = command("run", run_files, "stream a recording, a folder, or - (raw s16le mono) through bundles; one JSON line per detection")
    sub.add_argument("input", metavar="INPUT")
    _stream_options(sub)
    sub = command("listen", run_listen, "the same from the microphone until stopped", bundles="*")
    sub.add_argument("--device", help="index or part of the name of a microphone")
    sub.add_argument("--list-devices", action="store_true", help="print the microphones as JSON lines and stop")
    sub.add_argument("--seconds", type=float, help="stop after this long")
    _stream_options(sub)
    sub = command("classify", run_classify, "one decision per clip: one JSON line per file", bundles=1)
    sub.add_argument("input", nargs="+", metavar="PATH", help="files or folders")
    sub.add_argument("--channel", help="0, 1, ... or mix, for recordings with several channels")
    sub = command("features", run_features, "the integer features of a recording as .npy, int16 [frames, width]", bundles=1)
    sub.add_argument("input", metavar="IN.wav")
    sub.add_argument("output", metavar="OUT.npy")
    sub.add_argument("--channel", help="0, 1, ... or mix")
    command("info", run_info, "the manifest of a bundle as JSON", bundles=1)
    command("selftest", run_selftest, "replay the acceptance test that bundles carry")
    sub = command("bench", run_bench, "cost per 20 ms block: p50, p99, max, real-time factor, memory")
    sub.add_argument("--seconds", type=float, default=20.0, help="of audio (default: 20)")
    sub = command("plot", run_plot, "a picture of waveform, features and detections", bundles=1)
    sub.add_argument("input", metavar="IN.wav")
    sub.add_argument("output", metavar="OUT.png")
    sub.add_argument("--channel", help="0, 1, ... or mix")
    command("doctor", run_doctor, "what this machine has and lacks", bundles=None)
    return top


def _stream_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--channel", help="0, 1, ... or mix, where there are several")
    sub.add_argument("--threshold", type=float, help="instead of the bundles' (0 to 1)")
    sub.add_argument("--format", choices=("json", "tsv"), default="json", help="tsv: filename onset offset event_label")
    sub.add_argument("--numpy", action="store_true", help="allow the slow front end where the C core is not built")


def say(text: str) -> None:
    """One sentence for a person."""
    print(f"edge-audio: {text}", file=sys.stderr, flush=True)


def _load(sources: list[str], policy: str) -> list:
    from .bundle import load_bundle

    bundles = [load_bundle(source, policy) for source in sources]
    for bundle in bundles:
        for notice in bundle.notices:
            say(notice)
    return bundles


def _pipeline(arguments, files: bool):
    """The pipeline of the named bundles. Without the C core files are still processed, with a warning; a microphone
    needs --numpy."""
    from .native import HOW_TO_BUILD
    from .stream import Pipeline

    threshold = getattr(arguments, "threshold", None)
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"--threshold is {threshold}, expected 0 to 1.")
    pipeline = Pipeline(_load(arguments.bundle, arguments.signature), threshold=threshold)
    if pipeline.backend == "numpy":
        if not files and not arguments.numpy:
            raise MissingPartError(f"{HOW_TO_BUILD} --numpy goes on without it.")
        say(f"warning: {HOW_TO_BUILD} Going on with the slow numpy front end (the same integers).")
    return pipeline


def _channel(text: str | None) -> int | str | None:
    if text is None or text == "mix":
        return text
    if not text.isdecimal():
        raise UsageError(f"--channel is {text!r}, expected 0, 1, ... or mix.")
    return int(text)


def _write(arguments, detection, source: dict) -> None:
    if arguments.format == "tsv":
        name = source.get("file", source.get("stream"))
        print(name, f"{detection.time:.3f}", f"{detection.time:.3f}", detection.label, sep="\t", flush=True)
    else:
        print(json.dumps({**source, **detection.to_dict()}), flush=True)


def run_files(arguments) -> int:
    from .audio import AudioFile, list_audio

    pipeline = _pipeline(arguments, files=True)
    paths = ["-"] if arguments.input == "-" else list_audio(arguments.input)
    failed = 0
    for path in paths:
        source = {"stream": "stdin"} if path == "-" else {"file": str(path)}
        pipeline.reset()
        try:
            with AudioFile(path, pipeline.sample_rate_hz, _channel(arguments.channel)) as audio:
                for block in audio.blocks(round(BLOCK_S * pipeline.sample_rate_hz)):
                    for detection in pipeline.process(block):
                        _write(arguments, detection, source)
                for notice in audio.notices:
                    say(notice)
        except EdgeAudioError as error:
            if len(paths) == 1:
                raise
            say(str(error))  # the other files are still worth their lines
            failed += 1
    if failed:
        say(f"{failed} of {len(paths)} files could not be used.")
    return 1 if failed else 0


def run_listen(arguments) -> int:
    from .mic import Microphone, list_devices

    if arguments.list_devices:
        for device in list_devices():
            print(json.dumps(device))
        return 0
    if not arguments.bundle:
        raise UsageError("listen needs a BUNDLE, for example `edge-audio listen kws`.")
    pipeline = _pipeline(arguments, files=False)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    device = int(arguments.device) if arguments.device and arguments.device.isdecimal() else arguments.device
    rate, channel = pipeline.sample_rate_hz, _channel(arguments.channel) or 0
    heard, dropped = 0, 0
    with Microphone(rate, round(BLOCK_S * rate), device, channel) as microphone:
        say(f"listening to {microphone.device_name}; stop with Ctrl-C")
        for notice in microphone.notices:
            say(notice)
        for block in microphone:
            heard += len(block)
            for detection in pipeline.process(block):
                _write(arguments, detection, {"stream": microphone.device_name})
            if microphone.dropped_blocks > dropped:
                dropped = microphone.dropped_blocks
                say(f"warning: this machine is too slow, {dropped} blocks were dropped so far")
            if arguments.seconds is not None and heard >= arguments.seconds * rate:
                break
    return 0


def run_classify(arguments) -> int:
    from .audio import list_audio, read_audio

    pipeline = _pipeline(arguments, files=True)
    files, failed, done = [p for path in arguments.input for p in list_audio(path)], 0, 0
    for path in files:
        try:
            samples, notices = read_audio(path, pipeline.sample_rate_hz, _channel(arguments.channel))
        except EdgeAudioError as error:
            say(str(error))
            failed += 1
            continue
        for notice in notices:
            say(notice)
        scores = pipeline.classify(samples)[0]
        label, score = next(iter(scores.items()))
        print(json.dumps({"file": str(path), "label": label, "score": round(score, 4), "scores": {k: round(v, 4) for k, v in scores.items()}}))
        done += 1
        if done % 1000 == 0:
            say(f"{done} of {len(files)} clips")
    if failed:
        say(f"{failed} of {len(files)} files could not be used.")
    return 1 if failed else 0


def run_features(arguments) -> int:
    import numpy as np

    from .audio import read_audio
    from .stream import make_front_end

    bundle = _load(arguments.bundle, arguments.signature)[0]
    front_end = make_front_end(bundle)
    rate = front_end.tables.sample_rate_hz
    samples, notices = read_audio(arguments.input, rate, _channel(arguments.channel))
    for notice in notices:
        say(notice)
    features = front_end.process(samples)
    output = Path(arguments.output)
    if output.suffix != ".npy":
        raise UsageError(f"{output} does not end in .npy, the format that is written.")
    try:
        with open(output, "wb") as file:
            np.save(file, features)
    except OSError as error:
        raise UsageError(f"{output} cannot be written ({error.strerror}).") from None
    print(json.dumps({"file": arguments.input, "output": str(output), "frames": len(features), "width": features.shape[1],
                      "fraction_bits": front_end.tables.output_fraction_bits, "front_end": bundle.manifest.front_end.id,
                      "backend": front_end.backend}))
    return 0


def run_info(arguments) -> int:
    bundle = _load(arguments.bundle, arguments.signature)[0]
    print(json.dumps({"path": str(bundle.path), "sha256": bundle.sha256, "signed_by": bundle.signed_by, **bundle.manifest.to_dict()}, indent=1))
    return 0


def run_selftest(arguments) -> int:
    from .selftest import selftest

    passed = True
    for bundle in _load(arguments.bundle, arguments.signature):
        result = selftest(bundle)
        print(json.dumps(result))
        if not result["passed"]:
            say(f"{bundle.path} fails its self-test: {result['reason']}.")
            passed = False
    return 0 if passed else 1


def run_bench(arguments) -> int:
    from .bench import bench

    if not 1 <= arguments.seconds <= 3600:
        raise UsageError(f"--seconds is {arguments.seconds}, expected 1 to 3600.")
    result = bench(_load(arguments.bundle, arguments.signature), arguments.seconds)
    print(json.dumps(result))
    return 0


def run_plot(arguments) -> int:
    from .audio import read_audio
    from .plot import plot

    bundle = _load(arguments.bundle, arguments.signature)[0]
    rate = bundle.manifest.front_end.config["sample_rate_hz"]
    samples, notices = read_audio(arguments.input, rate, _channel(arguments.channel))
    for notice in notices:
        say(notice)
    detections = plot(bundle, samples, Path(arguments.output))
    print(json.dumps({"file": arguments.input, "output": arguments.output, "detections": len(detections)}))
    return 0


def run_doctor(arguments) -> int:
    from .doctor import doctor

    report = doctor()
    print(json.dumps(report))
    for part in report["parts"]:
        print(f"  {'ok     ' if part['found'] else 'MISSING'} {part['name']}: {part['detail']}", file=sys.stderr)
    return 0 if all(part["found"] for part in report["parts"] if part["needed"]) else 1


if __name__ == "__main__":
    sys.exit(main())
