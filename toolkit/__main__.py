"""edge-audio: bundles over recordings and microphones. Programs read stdout (JSON lines), people read stderr."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from . import __version__
from .arguments import Parser
from .errors import AudioFileError, EdgeAudioError, MissingPartError, UsageError

BLOCK_S = 0.02
PROGRESS_S = 5.0
POLICIES = ("require", "warn", "off")


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0 done, 1 failed, 2 misused; 130 for what Ctrl-C has cut short."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["ota"]:  # a parser of its own, which the other commands need not load
            from .ota.__main__ import main as ota

            return ota(argv[1:], "edge-audio ota")
        if argv[:1] == ["update"]:  # one of its commands, by a shorter name
            from .ota.__main__ import main as ota

            return ota(argv, "edge-audio")
        arguments = parser().parse_args(argv)
        return arguments.run(arguments)
    except EdgeAudioError as error:
        say(str(error))
        return error.exit_code
    except BrokenPipeError:  # the reader of stdout has gone, as `| head` does
        _discard_stdout()
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    top = Parser(prog="edge-audio", description=__doc__)
    top.add_argument("--version", action="version", version=f"edge-audio {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, help: str, bundles: str | None = "+") -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        if bundles:
            sub.add_argument("bundle", nargs=bundles, metavar="BUNDLE", help="a bundle's path or a released one's name")
            sub.add_argument("--signature", choices=POLICIES, default="warn",
                             help="what becomes of a bundle whose signature is not proven (default: warn)")
        return sub

    sub = command("run", run_files, "stream a recording, a folder or - (raw s16le): one JSON line per detection")
    sub.add_argument("input", metavar="INPUT")
    _stream_options(sub)
    sub = command("listen", run_listen, "the same from the microphone until stopped", bundles="*")
    sub.add_argument("--device", help="index or part of the name of a microphone")
    sub.add_argument("--list-devices", action="store_true", help="print the microphones as JSON lines and stop")
    sub.add_argument("--seconds", type=float, help="stop after this long")
    sub.add_argument("--service", action="store_true", help="for systemd: never give up, report health; only signed "
                     "bundles, unless --signature says otherwise")
    sub.add_argument("--status-file", metavar="FILE", help="of --service, replaced every second (default: "
                     "$EDGE_AUDIO_STATUS, or status.json in $RUNTIME_DIRECTORY)")
    _stream_options(sub)
    sub.set_defaults(signature=None)  # require for a service, else warn
    sub = command("classify", run_classify, "one decision per clip: one JSON line per file", bundles=1)
    sub.add_argument("input", nargs="+", metavar="PATH", help="files or folders")
    sub.add_argument("--channel", help="0, 1, ... or mix, for recordings with several channels")
    sub = command("features", run_features, "the features of a recording: .npy, int16 [frames, width]", bundles=1)
    sub.add_argument("input", metavar="IN.wav")
    sub.add_argument("output", metavar="OUT.npy")
    sub.add_argument("--channel", help="0, 1, ... or mix")
    command("info", run_info, "the manifest of a bundle as JSON", bundles=1)
    command("selftest", run_selftest, "replay the acceptance test that bundles carry")
    sub = command("bench", run_bench, "cost: p50, p99, max of a step, mean of a 20 ms block, real-time factor, memory")
    sub.add_argument("--seconds", type=float, default=20.0, help="of audio (default: 20)")
    sub = command("plot", run_plot, "a picture of waveform, features and detections", bundles=1)
    sub.add_argument("input", metavar="IN.wav")
    sub.add_argument("output", metavar="OUT.png")
    sub.add_argument("--channel", help="0, 1, ... or mix")
    command("doctor", run_doctor, "what this machine has and lacks", bundles=None)
    commands.add_parser("ota", help="the releases on this device: staged, tried, committed, or gone back from")
    commands.add_parser("update", help="fetch the release that a published folder offers, and try it")
    return top


def _stream_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--channel", help="0, 1, ... or mix, where there are several")
    sub.add_argument("--threshold", type=float, help="instead of the bundles' (0 to 1)")
    sub.add_argument("--format", choices=("json", "tsv"), default="json", help="tsv: filename onset offset event_label")
    sub.add_argument("--numpy", action="store_true", help="allow the slow front end where the C core is not built")


def say(text: str) -> None:
    """One sentence for a person."""
    print(f"edge-audio: {text}", file=sys.stderr, flush=True)


def emit(text: str) -> None:
    """One line for a program. EdgeAudioError where it cannot be written."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk
        _discard_stdout()
        raise EdgeAudioError(f"standard output cannot be written ({error.strerror}); free some space.") from None


def _discard_stdout() -> None:
    """So that Python does not try once more at its end to write what could not be written, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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


def _read(path, sample_rate_hz: int, channel: int | str | None):
    """The whole recording, int16 [n]."""
    from .audio import read_audio

    samples, notices = read_audio(path, sample_rate_hz, channel)
    for notice in notices:
        say(notice)
    return samples


def _begin(arguments) -> None:
    if arguments.format == "tsv":
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # file names as they are
        emit("filename\tonset\toffset\tevent_label")


def _write(arguments, detection, source: dict) -> None:
    if arguments.format == "tsv":
        (name,) = source.values()
        emit(f"{name}\t{detection.time:.3f}\t{detection.time:.3f}\t{detection.label}")
    else:
        emit(json.dumps({**source, **detection.to_dict()}))


def _each_file(paths: list, use) -> int:
    """The exit status of use(path) for each; of several, one that cannot be used does not stop the others."""
    failed, start = 0, time.monotonic()
    told = start
    for done, path in enumerate(paths):
        now = time.monotonic()
        if now - told > PROGRESS_S:
            told = now
            say(f"{done} of {len(paths)} files, about {(now - start) / done * (len(paths) - done):.0f} s left")
        try:
            use(path)
        except (AudioFileError, MissingPartError) as error:
            if len(paths) == 1:
                raise
            say(str(error))
            failed += 1
    if failed:
        say(f"{failed} of {len(paths)} files could not be used.")
    return 1 if failed else 0


def run_files(arguments) -> int:
    from .audio import AudioFile, list_audio

    pipeline = _pipeline(arguments, files=True)
    channel = _channel(arguments.channel)

    def run(path) -> None:
        source = {"stream": "stdin"} if path == "-" else {"file": str(path)}
        pipeline.reset()
        with AudioFile(path, pipeline.sample_rate_hz, channel) as audio:
            for block in audio.blocks(round(BLOCK_S * pipeline.sample_rate_hz)):
                for detection in pipeline.process(block):
                    _write(arguments, detection, source)
        for detection in pipeline.finish():
            _write(arguments, detection, source)
        for notice in audio.notices:
            say(notice)

    paths = ["-"] if arguments.input == "-" else list_audio(arguments.input)
    _begin(arguments)
    return _each_file(paths, run)


def run_listen(arguments) -> int:
    from .mic import Microphone, list_devices

    if arguments.list_devices:
        for device in list_devices():
            emit(json.dumps(device))
        return 0
    if not arguments.bundle:
        raise UsageError("listen needs a BUNDLE, for example `edge-audio listen kws`.")
    if arguments.seconds is not None and not arguments.seconds > 0:
        raise UsageError(f"--seconds is {arguments.seconds}, expected more than 0.")
    channel = _channel(arguments.channel) or 0
    if channel == "mix":
        raise UsageError("--channel mix is for recordings; listen takes one channel: 0, 1, ...")
    arguments.signature = arguments.signature or ("require" if arguments.service else "warn")
    if arguments.service:
        _serve(arguments, channel)
    if arguments.status_file:
        raise UsageError("--status-file is written by a service; add --service.")
    pipeline = _pipeline(arguments, files=False)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    rate = pipeline.sample_rate_hz
    heard, dropped = 0, 0
    try:
        with Microphone(rate, round(BLOCK_S * rate), arguments.device, channel) as microphone:
            say(f"listening to {microphone.device_name}; stop with Ctrl-C")
            for notice in microphone.notices:
                say(notice)
            _begin(arguments)
            for block in microphone:
                heard += len(block)
                for detection in pipeline.process(block):
                    _write(arguments, detection, {"stream": microphone.device_name})
                if microphone.dropped_blocks > dropped:
                    dropped = microphone.dropped_blocks
                    say(f"warning: this machine is too slow, {dropped} blocks were dropped so far")
                if arguments.seconds is not None and heard >= arguments.seconds * rate:
                    break
            for detection in pipeline.finish():
                _write(arguments, detection, {"stream": microphone.device_name})
    except KeyboardInterrupt:  # how one stops it
        pass
    return 0


def _serve(arguments, channel: int) -> NoReturn:
    """The same until a signal ends the process, whatever becomes of the microphone."""
    if arguments.seconds is not None:
        raise UsageError("--service listens until it is stopped; leave out --seconds.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the service has its own: there is nothing to end yet
    from .live.service import serve
    from .live.status import status_path

    bundles = _load(arguments.bundle, arguments.signature)
    _begin(arguments)
    serve(bundles, [lambda detection, stream: _write(arguments, detection, {"stream": stream})], say,
          device=arguments.device, channel=channel, threshold=arguments.threshold, allow_numpy=arguments.numpy,
          status_file=Path(arguments.status_file) if arguments.status_file else status_path())


def run_classify(arguments) -> int:
    from .audio import list_audio

    pipeline = _pipeline(arguments, files=True)
    channel = _channel(arguments.channel)

    def classify(path) -> None:
        samples = _read(path, pipeline.sample_rate_hz, channel)
        scores = {label: round(score, 4) for label, score in pipeline.classify(samples)[0].items()}
        label, score = next(iter(scores.items()))
        emit(json.dumps({"file": str(path), "label": label, "score": score, "scores": scores}))

    return _each_file([file for path in arguments.input for file in list_audio(path)], classify)


def run_features(arguments) -> int:
    import numpy as np

    from .stream import make_front_end

    bundle = _load(arguments.bundle, arguments.signature)[0]
    front_end = make_front_end(bundle)
    features = front_end.process(_read(arguments.input, front_end.tables.sample_rate_hz, _channel(arguments.channel)))
    output = Path(arguments.output)
    if output.suffix != ".npy":
        raise UsageError(f"{output} does not end in .npy, the format that is written.")
    try:
        with open(output, "wb") as file:
            np.save(file, features)
    except OSError as error:
        raise UsageError(f"{output} cannot be written ({error.strerror}).") from None
    emit(json.dumps({
        "file": arguments.input, "output": str(output), "frames": len(features), "width": features.shape[1],
        "fraction_bits": front_end.tables.output_fraction_bits, "front_end": bundle.manifest.front_end.id,
        "backend": front_end.backend,
    }))
    return 0


def run_info(arguments) -> int:
    bundle = _load(arguments.bundle, arguments.signature)[0]
    proof = {"path": str(bundle.path), "sha256": bundle.sha256, "signed_by": bundle.signed_by}
    emit(json.dumps({**proof, **bundle.manifest.to_dict()}, indent=1))
    return 0


def run_selftest(arguments) -> int:
    from .selftest import selftest

    passed = True
    for bundle in _load(arguments.bundle, arguments.signature):
        result = selftest(bundle)
        emit(json.dumps(result))
        if not result["passed"]:
            say(f"{bundle.path} fails its self-test: {result['reason']}.")
            passed = False
    return 0 if passed else 1


def run_bench(arguments) -> int:
    from .bench import bench

    if not 1 <= arguments.seconds <= 3600:
        raise UsageError(f"--seconds is {arguments.seconds}, expected 1 to 3600.")
    emit(json.dumps(bench(_load(arguments.bundle, arguments.signature), arguments.seconds)))
    return 0


def run_plot(arguments) -> int:
    from .plot import plot
    from .stream import front_end_tables

    bundle = _load(arguments.bundle, arguments.signature)[0]
    samples = _read(arguments.input, front_end_tables(bundle).sample_rate_hz, _channel(arguments.channel))
    detections = plot(bundle, samples, Path(arguments.output))
    emit(json.dumps({"file": arguments.input, "output": arguments.output, "detections": len(detections)}))
    return 0


def run_doctor(arguments) -> int:
    from .doctor import doctor

    report = doctor()
    emit(json.dumps(report))
    for part in report["parts"]:
        print(f"  {'ok     ' if part['found'] else 'MISSING'} {part['name']}: {part['detail']}", file=sys.stderr)
    return 0 if all(part["found"] for part in report["parts"] if part["needed"]) else 1


if __name__ == "__main__":
    sys.exit(main())
