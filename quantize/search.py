"""python -m quantize.search RECIPE --data DIR --device PROFILE --out DIR: which net is worth training for a board.

Tries values of a recipe's settings, as --space FILE names them by path (bounds, or a list of choices):

    space:
      model.parameters.width: {low: 16, high: 64, step: 8}
      model.parameters.blocks: [4, 6]
      train.learning_rate: {low: 1e-3, high: 1e-2, log: true}
      prune.sparsity: [0.0, 0.5]
      bits: [8, 4]

without it every whole number of model.parameters, from a quarter of it to itself. Each trial is trained, converted and
measured as `python -m quantize` does: accuracy of the int8 step model on `tune`, against what it costs. One that breaks
a limit of the profile by its architecture alone is refused before training. The best of many on `tune` is a little
lucky: train what is chosen with several seeds, and let `report` judge it.

`bits` is no setting of the recipe: one training is measured with each. 8 is int8, as it ships. With 4 the weights of
each convolution but the depthwise ones take 16 values, found in the trained ones (quantize/cluster.py): int8 computes
them in the same time and memory, and only what is stored compressed becomes smaller, so --cost compressed_bytes weighs
it; DIR/trials/HASH-4 holds what python -m quantize.qat trains further. With 16 the activations are int16
(quantize/int16.py): it shows what int8 loses by them, and is never on the front, because its integers are not the same
in every runtime, and no bundle holds it.

DIR/trials/HASH holds a trial, by its resolved recipe and data: recipe.yaml, weights.npz, bundle, result.json. What has
ended is never trained again; what was interrupted goes on with the same command. That command on several machines,
with one DIR, makes one search of theirs (DIR/journal.log). stdout: the Pareto front, a JSON line each; DIR/search.md
and DIR/search.png: all trials, and which limit binds. (Optuna: Akiba et al. 2019; its TPE: Ozaki et al. 2022.)
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from models.data import load_dataset
from models.recipe import Recipe, load_recipe
from toolkit.arguments import Parser
from toolkit.config import load_config
from toolkit.errors import EdgeAudioError, MissingPartError, UsageError
from toolkit.profile import DeviceProfile, load_profile

from .gate import FAIL, NOT_MEASURED
from .search_chart import COSTS, draw_front, markdown
from .search_space import WIDE, Space, changed, default_space, recipe_and_bits
from .search_trial import breaks, limits, locked, name_of, run_trial, say

STARTUP = 10  # trials drawn at random before the sampler has seen enough to prefer any


class Search:
    """A study of Optuna in DIR/journal.log, which several machines may work on at once.

    The sampler is seeded anew for each trial, from the seed and the trial's number: no two machines draw the same, and
    one machine alone always the same.
    """

    def __init__(
        self, recipe: Recipe, space: dict, profile: DeviceProfile, data: Path, out: Path, cost: str, seed: int
    ):
        self._optuna = _optuna()
        self._recipe, self._space, self._profile, self._data, self._out = recipe, space, profile, data, out
        self._cost, self._seed = cost, seed
        self._data_set = load_dataset(data, recipe.data, recipe.features.sample_rate_hz).fingerprint
        question = json.dumps([name_of(recipe, self._data_set), space, dataclasses.asdict(profile), cost, seed])
        out.mkdir(parents=True, exist_ok=True)
        journal = self._optuna.storages.journal.JournalFileBackend(str(out / "journal.log"))
        self._study = self._optuna.create_study(
            storage=self._optuna.storages.JournalStorage(journal),
            study_name=hashlib.sha256(question.encode()).hexdigest()[:16],
            directions=["maximize", "minimize"],
            load_if_exists=True,
        )

    def run(self, trials: int) -> None:
        """Until so many have ended or are at work on other machines."""
        while True:
            with ExitStack() as mine:
                with locked(self._out / "ask.lock"):
                    self._resume_interrupted()
                    if len(self._trials("COMPLETE", "RUNNING")) >= trials:
                        return
                    trial = self._study.ask()
                    mine.enter_context(locked(self._lock(trial.number)))  # until it has ended, or this process
                    values = self._draw(trial)
                self._try(trial, values)

    def _try(self, trial, values: dict) -> None:
        recipe, bits = recipe_and_bits(self._recipe, values)
        name = name_of(recipe, self._data_set, bits)
        say(f"trial {trial.number + 1}, {name}: " + ", ".join(f"{path} {value}" for path, value in values.items()))
        trial.set_user_attr("name", name)
        result = run_trial(recipe, self._data, self._out, self._profile, name, bits)
        over = [line for line in breaks(limits(recipe, self._profile, result["facts"])) if line.margin is not None]
        shares = [-line.margin / line.limit for line in over] + [1.0] * (bits == WIDE)  # of which none is shipped
        trial.set_constraint("over", max(shares, default=0.0))
        self._study.tell(trial, [result["accuracy"] or 0.0, result["facts"][self._cost]])

    def found(self) -> list[dict]:
        """A row for every different trial that has ended: parameters, accuracy, cost, fits, is_front, binds, ..."""
        rows = {}
        for trial in self._trials("COMPLETE"):
            values = {path: trial.params[path] for path in self._space}
            name = trial.user_attrs["name"]
            result = json.loads((self._out / "trials" / name / "result.json").read_text())
            recipe, bits = recipe_and_bits(self._recipe, values)
            rows[name] = {"trial": name, "parameters": values, "cost": result["facts"][self._cost], **result}
            rows[name] |= _verdict(limits(recipe, self._profile, result["facts"]), result, bits != WIDE)
        for row in rows.values():
            row["is_front"] = row["fits"] and not any(_is_better(other, row) for other in rows.values())
        return list(rows.values())

    def _draw(self, trial) -> dict:
        """{path: value}, kept in the trial too; those of an interrupted one are drawn as they were."""
        number = int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0])
        self._study.sampler = self._optuna.samplers.TPESampler(seed=number, n_startup_trials=STARTUP)
        values = {}
        for path, space in self._space.items():
            if not isinstance(space, dict):
                values[path] = trial.suggest_categorical(path, space)
                continue
            options = {key: space[key] for key in ("step", "log") if key in space}
            whole = all(type(space[key]) is int for key in {"low", "high", "step"} & set(space))
            suggest = trial.suggest_int if whole else trial.suggest_float
            values[path] = suggest(path, space["low"], space["high"], **options)
        return values

    def _resume_interrupted(self) -> None:
        """Trials that nobody works on any longer are asked for again."""
        for trial in self._trials("RUNNING"):
            with locked(self._lock(trial.number), wait=False) as is_dead:
                if is_dead:
                    self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
                    self._study.enqueue_trial(trial.params)

    def _trials(self, *states: str) -> list:
        return self._study.get_trials(states=[self._optuna.trial.TrialState[state] for state in states])

    def _lock(self, number: int) -> Path:
        return self._out / "locks" / f"{self._study.study_name}-{number}"


def _verdict(lines: list, result: dict, ships: bool) -> dict:
    """ships; fits: ships, and the board can take it; binds: the limit that is broken, or of which most is used;
    not_measured: the limits that nothing could."""
    shares = [
        (line.verdict == FAIL, line.measured / line.limit if line.margin is not None else None, line)
        for line in lines
        if line.margin is not None or line.verdict == FAIL
    ]
    binds = None
    if shares:
        _, share, line = max(shares, key=lambda one: (one[0], one[1] or 0.0))
        binds = {"limit": line.name, "title": line.title, "allowed": line.limit, "measured": line.measured}
        binds |= {"share": share and round(share, 4), "verdict": line.verdict}
    fits = ships and result["accuracy"] is not None and not breaks(lines)
    unknown = [line.title for line in lines if line.verdict == NOT_MEASURED] if result["is_trained"] else []
    return {"ships": ships, "fits": fits, "binds": binds, "not_measured": unknown}


def _is_better(a: dict, b: dict) -> bool:
    """Whether a fits, is in nothing worse than b, and better in something."""
    least = a["fits"] and a["accuracy"] >= b["accuracy"] and a["cost"] <= b["cost"]
    return least and (a["accuracy"], a["cost"]) != (b["accuracy"], b["cost"])


def _optuna():
    try:
        import optuna
    except ImportError:
        raise MissingPartError(
            "a search needs Optuna, which is not installed: pip install -r requirements-host.txt"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m quantize.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="root of the data set")
    parser.add_argument("--device", required=True, metavar="NAME|FILE", help="profile of the board that it is for")
    parser.add_argument("--out", type=Path, required=True, help="folder of the search; the same command resumes in it")
    parser.add_argument("--space", type=Path, help="which settings, and their values (default: model.parameters)")
    parser.add_argument("--trials", type=int, default=20, help="of the whole search, on all machines (20)")
    parser.add_argument("--epochs", type=int, help="of each trial, instead of the recipe's train.epochs")
    parser.add_argument(
        "--cost", choices=tuple(COSTS), default="macs_per_second", help="what accuracy is weighed against"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the values that are tried (1)")
    try:
        arguments = parser.parse_args(argv)
        return search(arguments)
    except EdgeAudioError as error:
        print(f"search: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("search: stopped; the same command resumes", file=sys.stderr)
        return 130


def search(it) -> int:
    """The trials, then the front, the table and the picture."""
    if it.trials < 1 or it.seed < 0:
        raise UsageError(f"--trials is {it.trials} and --seed {it.seed}: expected trials from 1 and a seed from 0.")
    recipe, profile = load_recipe(it.recipe), load_profile(it.device)
    if it.epochs is not None:
        recipe = changed(recipe, {"train.epochs": it.epochs})
    space = load_config(it.space, Space).space if it.space else default_space(recipe)
    study = Search(recipe, space, profile, it.data, it.out, it.cost, it.seed)
    study.run(it.trials)
    found = study.found()
    title = f"{recipe.name} on {profile.name}: {len(found)} different trials"
    (it.out / "search.md").write_text(markdown(f"# {title}", list(space), it.cost, found), "utf-8")
    limit = profile.macs_per_second if it.cost == "macs_per_second" else None
    draw_front(title, it.cost, limit, found, it.out / "search.png")
    for row in sorted(found, key=lambda row: row["cost"]):
        if row["is_front"]:
            print(json.dumps(row))
    say(f"{it.out / 'search.md'} and {it.out / 'search.png'} hold all {len(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
