"""Releases on a device: staged beside the running one, tried, committed, or gone back from.

    release.json -> missing, receive (blobs) -> runtime (a venv) -> stage (checks) -> try (health gate) -> commit

    ROOT/lock                held by whoever changes anything, for as long as a trial lasts
    ROOT/blobs/SHA256        bundles and wheels, complete; incoming/SHA256.part: an upload under way
    ROOT/runtimes/KEY/       a virtual environment; without the file `ready` it is not finished
    ROOT/releases/ID/        release.json, bundles/NAME.eab, runtime -> ../../runtimes/KEY
    ROOT/current             -> releases/ID that the service starts
    ROOT/committed           -> releases/ID that passed the health gate last: the rename of this link is the commit
    ROOT/previous            -> releases/ID that was committed before it
    ROOT/back                -> what was committed when a trial began: renamed to `current` to go back
    ROOT/floor.json          versions below are refused; those of `committed` count too
    ROOT/trust               -> trusts/VERSION: *.pub of those whose bundles are taken, the keyring if there is one
    ROOT/index.json          of each channel, the last published index that was taken, and what became of its release
    ROOT/boot                run before the service starts: what was not committed is gone back from
    ROOT/outcome.json        how the last trial ended

The invariant: whoever holds the lock begins with `recover`, so `current` differs from `committed` only while a trial
holds the lock, or after its end came suddenly; then `boot` or the next command goes back. Whatever instant the power
fails at, the device starts the release that was committed before, or the one that was committed then.

Nothing here needs more than the standard library: a first installation runs from the wheel with the system's Python.
Signatures are checked and self-tests replayed by the release's own runtime, in a process of its own (``stage``).
"""
