"""The same C sources give the same integers on Arm: `python tests/arm/check_arm.py` (`make check-arm`).

Cross-compiles the core and check_core.c for aarch64 and armv7 (run by qemu-user) and for Cortex-M4 and Cortex-M55 (run
by qemu-system-arm, with the output by semihosting), compares every frame with tests/golden/, and prints one JSON line
per target. For Cortex-M also the size of the core's code, the memory and stack it needs, and the instructions of the
costliest frame per case, by QEMU's instruction counter (instructions, not cycles: memory and pipeline are ideal).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden"
CORE = HERE.parents[1] / "toolkit" / "core"
FLAGS = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", f"-I{CORE}"]
PACKAGES = ("gcc-aarch64-linux-gnu gcc-arm-linux-gnueabihf gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-user-static "
            "qemu-system-arm")
BOARD = ["-semihosting-config", "enable=on,target=native", "-icount", "shift=6", "-display", "none", "-monitor", "none",
         "-serial", "none", "-kernel"]


@dataclass(frozen=True)
class Target:
    """A machine to compile for and the program that runs its binaries."""

    name: str
    prefix: str  # of the cross tools
    flags: tuple[str, ...]
    emulator: tuple[str, ...]
    origins: tuple[str, str] | None = None  # code and data of a bare-metal board, else None


TARGETS = (
    Target("aarch64", "aarch64-linux-gnu-", ("-static",), ("qemu-aarch64-static",)),
    Target("armv7", "arm-linux-gnueabihf-", ("-static",), ("qemu-arm-static",)),
    Target("cortex-m4", "arm-none-eabi-", ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
           ("qemu-system-arm", "-M", "mps2-an386", *BOARD), ("0x00000000", "0x20000000")),
    Target("cortex-m55", "arm-none-eabi-", ("-mcpu=cortex-m55", "-mthumb", "-mfloat-abi=hard"),
           ("qemu-system-arm", "-M", "mps3-an547", *BOARD), ("0x00000000", "0x20000000")),
)


class CheckFailed(Exception):
    """One sentence: a compiler, an emulator or the comparison said no."""


def c_array(kind: str, name: str, data: bytes, size: int) -> str:
    """A C array of the little-endian signed integers of `size` bytes in data."""
    values = [int.from_bytes(data[i : i + size], "little", signed=True) for i in range(0, len(data), size)]
    literals = [f"{v}" if v > -(2**31) else "(-2147483647 - 1)" for v in values]
    lines = [", ".join(literals[i : i + 16]) for i in range(0, len(literals), 16)]
    return f"static const {kind} {name}[] = {{\n" + ",\n".join(lines) + "};\n"


def golden_header(folder: Path = GOLDEN) -> str:
    """The text of golden.h: the signal and, per case, tables, features and codes."""
    index = json.loads((folder / "front_end.json").read_text(encoding="ascii"))
    text, cases = ["#include <stddef.h>\n#include <stdint.h>\n"], []
    text.append(c_array("int16_t", "golden_signal", (folder / "signal.s16").read_bytes(), 2))
    for name, case in index["cases"].items():
        tables = (folder / f"{name}.tables").read_bytes()
        text.append(c_array("int32_t", f"{name}_tables", tables, 4))
        text.append(c_array("int16_t", f"{name}_features", (folder / f"{name}.s16").read_bytes(), 2))
        text.append(c_array("int8_t", f"{name}_codes", (folder / f"{name}.s8").read_bytes(), 1))
        step = case["requantization"]
        cases.append(f'{{"{name}", {name}_tables, {len(tables)}, {name}_features, {name}_codes, {case["frames"]}, '
                     f'{case["width"]}, {case["config"]["hop_length"]}, {step["multiplier"]}, {step["shift"]}, '
                     f'{step["zero_point"]}}}')
    widest = max(case["width"] for case in index["cases"].values())
    text.append(f"enum {{ GOLDEN_SAMPLES = {index['samples']}, GOLDEN_CASES = {len(cases)}, "
                f"GOLDEN_MAX_WIDTH = {widest} }};\n")
    text.append("typedef struct {\n    const char *name;\n    const int32_t *tables;\n    size_t tables_bytes;\n"
                "    const int16_t *features;\n    const int8_t *codes;\n    int32_t n_frames, width, hop_length;\n"
                "    int32_t multiplier, shift, zero_point;\n} golden_case;\n")
    text.append("static const golden_case golden_cases[] = {\n" + ",\n".join(cases) + "};\n")
    return "".join(text)


def output_of(command: list[str], timeout_s: int = 300) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise CheckFailed(f"{command[0]} did not end within {timeout_s} s.") from None
    if done.returncode != 0:
        raise CheckFailed(f"{command[0]} ended with status {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def parse_report(text: str) -> dict:
    """What check_core printed: {frames, equal, cases: {name: {...}}}."""
    cases = {}
    for line in text.splitlines():
        if line.startswith("case "):
            words = line.split()
            cases[words[1]] = {key: int(value) for key, value in zip(words[2::2], words[3::2], strict=True)}
    equal = sum(case["equal"] for case in cases.values())
    if not cases or not text.endswith(f"{equal} frames equal\n"):
        raise CheckFailed(f"check_core printed something else: {text[-500:]!r}")
    return {"frames": sum(case["frames"] for case in cases.values()), "equal": equal, "cases": cases}


def build(folder: Path, compiler: str, flags: list[str], extra: list[str]) -> Path:
    """The program check_core in `folder`; the core's objects are beside it."""
    (folder / "golden.h").write_text(golden_header(), encoding="ascii")
    objects = []
    for source in sorted(CORE.glob("*.c")):
        objects.append(str(folder / f"{source.stem}.o"))
        output_of([compiler, *FLAGS, "-pedantic", *flags, "-c", str(source), "-o", objects[-1]])
    program = folder / "check_core"
    sources = [str(HERE / "check_core.c"), *objects, *extra]
    output_of([compiler, *FLAGS, *flags, f"-I{folder}", *sources, "-o", str(program)])
    return program


def check(target: Target, folder: Path) -> dict:
    """Compile, run, compare: the report of one target."""
    compiler, extra = f"{target.prefix}gcc", []
    if target.origins:
        code, data = target.origins
        extra = ["-DCHECK_BARE_METAL", str(HERE / "cortex_m.c"), "--specs=rdimon.specs", "-nostartfiles",
                 f"-Wl,--defsym=CODE_ORIGIN={code},--defsym=DATA_ORIGIN={data}", "-T", str(HERE / "cortex_m.ld")]
    program = build(folder, compiler, list(target.flags), extra)
    report = parse_report(output_of([*target.emulator, str(program)]))
    line = {"target": target.name, "frames": report["frames"], "equal": report["equal"]}
    if target.origins:
        objects = map(str, sorted(folder.glob("ea_*.o")))
        sizes = output_of([f"{target.prefix}size", "-t", *objects]).splitlines()[-1].split()  # text data bss of all
        line |= {"code_bytes": int(sizes[0]), "static_bytes": int(sizes[1]) + int(sizes[2])}
        for key in ("instructions", "memory_bytes", "stack_bytes", "tables_bytes"):
            line[key] = {name: case[key] for name, case in report["cases"].items()}
    return line


def missing_tools(target: Target) -> list[str]:
    return [tool for tool in (f"{target.prefix}gcc", target.emulator[0]) if not shutil.which(tool)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The front end's golden vectors on Arm, under QEMU.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="of " + ", ".join(t.name for t in TARGETS))
    parser.add_argument("--skip-missing", action="store_true", help="leave out targets whose tools are not installed")
    options = parser.parse_args(arguments)
    unknown = set(options.targets) - {target.name for target in TARGETS}
    if unknown:
        parser.error(f"unknown target {', '.join(sorted(unknown))}; there are {', '.join(t.name for t in TARGETS)}")
    status = 0
    for target in TARGETS:
        if options.targets and target.name not in options.targets:
            continue
        missing = missing_tools(target)
        if missing:
            print(f"check-arm: {target.name} needs {' and '.join(missing)}; install {PACKAGES}.", file=sys.stderr)
            status |= not options.skip_missing
            continue
        try:
            with tempfile.TemporaryDirectory() as folder:
                line = check(target, Path(folder))
        except CheckFailed as error:
            print(f"check-arm: {target.name}: {error}", file=sys.stderr)
            status = 1
            continue
        print(json.dumps(line), flush=True)
        status |= line["equal"] != line["frames"]
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
