"""What is done to the device, in this order, and what must be so afterwards: CheckFailed if it is not."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

from arm_image import CheckFailed
from desk import BUNDLE, HEALTH_S, PROFILE, REPOSITORY, Desk
from machine import HOST, Machine

SCENE = REPOSITORY / "models" / "samples" / "scene.wav"
TIMER, CONF = "/etc/systemd/system/edge-audio-update.timer", "/etc/edge-audio/update.conf"
SOON = "[Timer]\nOnCalendar=\nOnActiveSec=2\nRandomizedDelaySec=0\n"  # instead of every hour
SANDBOX = r"""pid=$(systemctl show --property=MainPID --value edge-audio)
sudo sh -c "grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp|Groups):' /proc/$pid/status
echo net: \$(readlink /proc/$pid/ns/net /proc/1/ns/net | sort -u | wc -l)
echo writable: \$(awk '\$5 == \"/\" { print \$6 }' /proc/$pid/mountinfo | tail -n 1)"
"""


# --- what must be so ------------------------------------------------------------------------------


def expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise CheckFailed(f"{what} is {found!r}, expected {expected!r}")


def is_well(vm: Machine, version: str, patience_s: float = 60) -> dict:
    """``devices status`` says that all is well, with this version; CheckFailed if it does not come to that."""
    problem = None

    def answer() -> dict | None:
        nonlocal problem
        status = vm.devices("status")[0]
        problem = status["problem"]
        return None if problem else status

    try:
        status = vm.wait_for("well", answer, patience_s, pause_s=2)
    except CheckFailed:
        raise CheckFailed(f"it is not well after {patience_s:g} s: {problem}") from None
    expect("the version that runs", [each["version"] for each in status["service"]["bundles"]], [version])
    expect("current", status["current"], status["committed"])
    return status


def is_refused(vm: Machine, reason: str, *arguments: str) -> None:
    """A deployment that is tried, goes back for this reason, and leaves what was committed running."""
    before = vm.linked("committed"), vm.service()["bundles"][0]["version"]
    answer = vm.devices(*arguments, status=1)[0]
    expect("committed", answer["committed"], False)
    if reason not in answer["reason"]:
        raise CheckFailed(f"it went back because {answer['reason']!r}, expected {reason!r}")
    vm.run("sudo systemctl start sound")
    status = is_well(vm, before[1])
    expect("the committed release", status["committed"], before[0])


def begin_trial(vm: Machine, desk: Desk) -> subprocess.Popen:
    """A deployment in the middle of its trial, which lasts, for there is nothing to hear."""
    committed = vm.linked("committed")
    vm.run("sudo systemctl stop sound")
    command = vm.start(*desk.order("1.2.0"))
    vm.wait_for("a trial", lambda: vm.linked("current") != committed, 180)
    vm.wait_for("its service", lambda: (vm.service() or {}).get("release") == vm.linked("current"), 60)
    return command


# --- the steps, in their order --------------------------------------------------------------------


def boot(vm: Machine, desk: Desk) -> str:
    vm.boot()
    expect("failed units", vm.run("systemctl list-units --failed --plain --no-legend"), "")
    return vm.run("uname -sr; systemctl --version | head -n 1").replace("\n", ", ")


def failed_install(vm: Machine, desk: Desk) -> str:
    """There is nothing to go back to: the service rests, also after the next start, and does not try for ever."""
    vm.run("sudo systemctl stop sound")
    answer = vm.devices(*desk.order("1.0.0", "--trust", desk.keys, *desk.runtime, health_s="30"), status=1)[0]
    expect("committed", answer["committed"], False)
    expect("current", vm.linked("current"), None)
    restarts = vm.show("NRestarts")
    vm.run("sudo systemctl start edge-audio sound || true; sleep 6")
    expect("restarts, state", (vm.show("NRestarts"), vm.show("ActiveState")), (restarts, "inactive"))
    return f"{answer['sent_bytes'] / 1e6:.1f} MB sent; {answer['reason']}"


def install(vm: Machine, desk: Desk) -> str:
    """Nothing -> a committed release that systemd calls active."""
    answer = vm.devices(*desk.order("1.0.0", "--trust", desk.keys, *desk.runtime))[0]
    expect("committed", answer["committed"], True)
    expect("the service", vm.run("systemctl is-active edge-audio; systemctl is-enabled edge-audio"), "active\nenabled")
    status = is_well(vm, "1.0.0")["service"]
    return f"block p99 {status['block_ms']['p99']} ms"


def sandbox(vm: Machine, desk: Desk) -> str:
    """The hardening of the unit is in force: the kernel says so, not the file."""
    rows = dict(line.split(":", 1) for line in vm.run(SANDBOX).splitlines())
    found = {key: value.split() for key, value in rows.items()}
    if int(found["Uid"][0]) < 61184:  # systemd's range for DynamicUser
        raise CheckFailed(f"it runs as user {found['Uid'][0]}, expected one that systemd made for it")
    for key, expected in (("CapEff", 0), ("CapBnd", 0), ("NoNewPrivs", 1), ("Seccomp", 2)):
        expect(key, int(found[key][0], 16), expected)
    expect("network namespaces", found["net"], ["2"])
    expect("its /", found["writable"][0].split(",")[0], "ro")
    verdict = vm.run("sudo systemd-analyze security --no-pager edge-audio | tail -n 1").lstrip("→ ")
    if float(verdict.split()[5]) > 2:
        raise CheckFailed(f"systemd says: {verdict}")
    return verdict


def watchdog_is_fed(vm: Machine, desk: Desk) -> str:
    before = int(vm.show("WatchdogTimestampMonotonic"))
    vm.wait_for("a newer watchdog", lambda: int(vm.show("WatchdogTimestampMonotonic")) > before > 0, 10)
    return f"WatchdogUSec {vm.show('WatchdogUSec')}, {vm.show('StatusText')}"


def detections(vm: Machine, desk: Desk) -> str:
    """The words of the scene come out of the journal, as JSON lines."""
    wanted = {each["label"] for each in json.loads(SCENE.with_suffix(".json").read_text())["utterances"]} - {"unknown"}

    def heard() -> set[str]:
        lines = vm.devices("logs", "--lines", "300")
        return {line["label"] for line in lines if line.get("bundle") == BUNDLE and line["score"] > 0}

    vm.wait_for("most words of the scene", lambda: len(heard() & wanted) > len(wanted) / 2, 120, pause_s=5)
    return " ".join(sorted(heard()))


def no_op(vm: Machine, desk: Desk) -> str:
    pid = vm.show("MainPID")
    answer = vm.devices(*desk.order("1.0.0", "--trust", desk.keys, *desk.runtime))[0]
    expect("is_noop", answer["is_noop"], True)
    expect("the service's process", vm.show("MainPID"), pid)
    return f"{answer['sent_bytes']} bytes sent"


def another_model(vm: Machine, desk: Desk) -> str:
    """A model-only update: the runtime stays."""
    runtime = vm.run("readlink -f /opt/edge-audio/current/runtime")
    answer = vm.devices(*desk.order("1.1.0"))[0]
    expect("committed", answer["committed"], True)
    is_well(vm, "1.1.0")
    expect("the runtime", vm.run("readlink -f /opt/edge-audio/current/runtime"), runtime)
    return f"{answer['sent_bytes'] / 1e6:.1f} MB sent"


def rollback(vm: Machine, desk: Desk) -> None:
    expect("committed", vm.devices("rollback", "--health-s", HEALTH_S)[0]["committed"], True)
    is_well(vm, "1.0.0")


def refused_key(vm: Machine, desk: Desk) -> None:
    """The released bundle is signed by a key that this device does not trust."""
    vm.devices("deploy", PROFILE, BUNDLE, status=1)
    is_well(vm, "1.0.0")


def silent_microphone(vm: Machine, desk: Desk) -> None:
    vm.run("sudo systemctl stop sound")
    is_refused(vm, "constant", *desk.order("1.2.0", health_s="30"))


def no_microphone(vm: Machine, desk: Desk) -> None:
    is_refused(vm, "Kitchen", *desk.order("1.2.0", "--device", "Kitchen", health_s="30"))


def crash(vm: Machine, desk: Desk) -> None:
    """SIGKILL: systemd starts it again."""
    pid = vm.show("MainPID")
    vm.run("sudo systemctl kill --signal=KILL edge-audio")
    vm.wait_for("another process", lambda: vm.show("MainPID") not in (pid, "0"), 30)
    is_well(vm, "1.0.0")


def deaf(vm: Machine, desk: Desk) -> str:
    """Silence: the watchdog is fed no more, systemd starts the service again and again, until it hears something."""
    restarts = int(vm.show("NRestarts"))
    vm.run("sudo systemctl stop sound")
    started_s = vm.uptime_s()
    vm.wait_for("the watchdog's restart", lambda: int(vm.show("NRestarts")) > restarts, 100, pause_s=2)
    elapsed_s = vm.uptime_s() - started_s
    if not vm.run("journalctl --unit edge-audio --boot --grep 'Watchdog timeout' --output cat | tail -n 1"):
        raise CheckFailed("it was started again, but not by the watchdog")
    vm.run("sudo systemctl start sound")
    is_well(vm, "1.0.0")
    return f"after {elapsed_s:.0f} s of the guest"


def unplugged(vm: Machine, desk: Desk) -> str:
    """The sound card goes away and comes back: the same process opens it again."""
    pid, driver = vm.show("MainPID"), "/sys/bus/platform/drivers/snd_aloop"
    vm.run(f"sudo systemctl stop sound; echo snd_aloop.0 | sudo timeout 20 tee {driver}/unbind")
    vm.wait_for("no microphone", lambda: (vm.service() or {}).get("state") == "no microphone", 30)
    vm.run(f"echo snd_aloop.0 | sudo tee {driver}/bind; sudo systemctl start sound")
    status = is_well(vm, "1.0.0")
    expect("the process", vm.show("MainPID"), pid)
    return f"opened again {status['service']['reopened']} times"


def reboot(vm: Machine, desk: Desk) -> None:
    vm.shut_down()
    vm.boot()
    is_well(vm, "1.0.0")


def power_cut(vm: Machine, desk: Desk) -> None:
    """Right after a commit, and nothing is synced but what the installer has synced."""
    answer = vm.devices(*desk.order("1.1.0"))[0]
    expect("committed", answer["committed"], True)
    vm.cut_power()
    vm.boot()
    is_well(vm, "1.1.0")


def power_cut_on_trial(vm: Machine, desk: Desk) -> str:
    """The release on trial is gone back from before the service starts."""
    committed = vm.linked("committed")
    command = begin_trial(vm, desk)
    vm.cut_power()
    vm.end(command, status=1)
    vm.boot()
    expect("the committed release", is_well(vm, "1.1.0")["committed"], committed)
    said = vm.run("journalctl --unit edge-audio --boot --output cat --grep 'went back' | tail -n 1")
    if not said:
        raise CheckFailed("it did not say that it went back")
    return said


def killed_installer(vm: Machine, desk: Desk) -> str:
    """SIGKILL in the middle of a trial, and no reboot: the recovery timer goes back."""
    committed = vm.linked("committed")
    command = begin_trial(vm, desk)
    vm.run("sudo pkill -KILL -f 'toolkit.ota [t]ry'")
    started_s = vm.uptime_s()
    vm.end(command, status=1)
    vm.wait_for("the way back", lambda: vm.linked("current") == committed, 100, pause_s=2)
    elapsed_s = vm.uptime_s() - started_s
    if not vm.run("journalctl --unit edge-audio-recover --boot --output cat --grep 'went back' | tail -n 1"):
        raise CheckFailed("it was not the timer that went back")
    vm.run("sudo systemctl start sound")
    is_well(vm, "1.1.0")
    return f"after {elapsed_s:.0f} s of the guest"


def update_by_timer(vm: Machine, desk: Desk) -> str:
    """The device fetches what is published, when its timer says so: another bundle, and another runtime."""
    desk.publish("1.2.0")
    with desk.serve() as port:
        answer = vm.devices(*desk.order("1.1.0", "--update-url", f"http://{HOST}:{port}"))[0]
        expect("committed", answer["committed"], True)
        before = vm.linked("committed")
        vm.run(f"sudo mkdir {TIMER}.d && echo '{SOON}' | sudo tee {TIMER}.d/soon.conf && "
               f"sudo systemctl daemon-reload && sudo systemctl restart edge-audio-update.timer")
        vm.wait_for("a commit", lambda: vm.linked("committed") != before or _failed(vm), 300, pause_s=3)
        vm.wait_for("the end of the update", lambda: vm.show("ActiveState", "edge-audio-update") == "inactive", 60)
        is_well(vm, "1.2.0")
        return _last_word(vm)


def update_is_refused(vm: Machine, desk: Desk) -> str:
    """A published release whose index was altered."""
    desk.publish("1.3.0")
    index = desk.site / "index.json"
    index.write_bytes(index.read_bytes().replace(b"1.3.0", b"1.4.0"))
    with desk.serve() as port:
        vm.run(f"sudo sed -i 's|^EDGE_AUDIO_UPDATE_URL=.*|EDGE_AUDIO_UPDATE_URL=http://{HOST}:{port}|' {CONF} && "
               f"! sudo systemctl start edge-audio-update.service")
    is_well(vm, "1.2.0")
    return _last_word(vm)


def _last_word(vm: Machine) -> str:
    """Of the update service."""
    return vm.run("journalctl --unit edge-audio-update --output cat --grep '^(edge-audio:|{)' | tail -n 1")[:150]


def _failed(vm: Machine) -> bool:
    """CheckFailed if the update has failed."""
    if vm.show("ActiveState", "edge-audio-update") == "failed":
        raise CheckFailed(vm.run("journalctl --unit edge-audio-update --output cat --lines 20"))
    return False


STEPS: tuple[Callable[[Machine, Desk], str | None], ...] = (
    boot, failed_install, install, sandbox, watchdog_is_fed, detections, no_op, another_model, rollback, refused_key,
    silent_microphone, no_microphone, crash, unplugged, deaf, reboot, power_cut, power_cut_on_trial, killed_installer,
    update_by_timer, update_is_refused)
NEEDED = (boot, install)  # without these nothing else is worth trying
