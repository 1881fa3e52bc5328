"""python -m quantize RECIPE: float weights -> verified int8 model -> budgets -> signed bundle, with a report.

Without --data everything comes from the repository: weights of the zoo, the embedded calibration and evaluation
sets. With --data DIR the accuracy on the data set's `report` split is measured too and goes into the bundle.
Exit 1 if anything is not as it must be; nothing is written over the previous result then.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from toolkit.errors import BudgetError, EdgeAudioError

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "models" / "samples"
DEVELOPMENT_KEY = ROOT / "devices" / "keys" / "development.key"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m quantize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--weights", type=Path, help="default: models/zoo/NAME/weights.npz")
    parser.add_argument("--data", type=Path, help="root of the data set, for accuracy on `report`")
    parser.add_argument(
        "--calibration", type=Path, default=SAMPLES / "calibration", help="folder of representative clips"
    )
    parser.add_argument("--evaluation", type=Path, default=SAMPLES / "evaluation", help="folder of clips per label")
    parser.add_argument("--out", type=Path, help="folder of the result (default: build/quantize/NAME)")
    parser.add_argument("--key", type=Path, default=DEVELOPMENT_KEY, help="private key that signs the bundle")
    arguments = parser.parse_args(argv)
    try:
        return quantize(arguments)
    except EdgeAudioError as error:
        print(f"quantize: {error}", file=sys.stderr)
        return error.exit_code


def quantize(arguments) -> int:
    """The stage, in the order of the flow."""
    from models.recipe import load_recipe

    from .calibrate import representative_codes
    from .convert import convert
    from .report import measure, write_report
    from .verify import check_integer, lsb_histogram, run_everywhere

    recipe = load_recipe(arguments.recipe)
    zoo = ROOT / "models" / "zoo" / recipe.name
    weights = arguments.weights or zoo / "weights.npz"
    out = arguments.out or ROOT / "build" / "quantize" / recipe.name

    say(f"calibrating on {arguments.calibration}")
    codes = representative_codes(recipe, arguments.calibration, is_dataset=False)
    say(f"converting {weights}")
    converted = convert(recipe, weights, codes)
    model = converted.model
    check_integer(model)
    say("comparing step with whole in every runtime")
    runs = run_everywhere(model, codes[:: max(1, len(codes) // 16)])
    parity = {other.runtime: lsb_histogram(runs[0], other) for other in runs[1:]}
    say("measuring accuracy")
    report = measure(recipe, converted, weights, arguments, zoo, parity, [r.runtime for r in runs])
    write_report(out, recipe, model, report)
    for line in report["gate"]:
        say(f"{line['verdict']:4} {line['limit_name']}: {line['measured']} (limit {line['limit']})")
    broken = [line for line in report["gate"] if line["verdict"] != "ok"]
    if broken:
        first = broken[0]
        raise BudgetError(
            f"{first['limit_name']} is {first['measured']}, the recipe's limit is {first['limit']}; "
            f"the report is {out / 'report.md'}."
        )
    print(
        json.dumps(
            {
                "bundle": str(out / f"{recipe.name}.eab"),
                **{k: report[k] for k in ("bundle_sha256", "model_bytes", "macs_per_second", "embedded", "report")},
            }
        )
    )
    return 0


def say(text: str) -> None:
    """Progress, for people."""
    print(f"quantize: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
