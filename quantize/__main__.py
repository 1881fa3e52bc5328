"""python -m quantize RECIPE: float weights -> verified int8 model -> budgets -> signed bundle, with a report.

Without --data everything comes from the repository: weights of the zoo, the embedded calibration and evaluation
sets. With --data DIR the accuracy on the data set's `report` split is measured too and goes into the bundle.
Exit 2 if the command, the recipe, a profile or the baseline makes no sense; 1 if anything else is not as it must be,
such as damaged weights or a broken limit. The bundle of the run before is left as it was then.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from toolkit.arguments import Parser
from toolkit.errors import EdgeAudioError

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "models" / "samples"
DEVELOPMENT_KEY = ROOT / "devices" / "keys" / "development.key"


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
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
    parser.add_argument(
        "--profile", action="append", default=[], metavar="NAME|FILE", help="a device that it must fit; repeatable"
    )
    parser.add_argument(
        "--baseline", type=Path, help="of the last release (default: that of models/zoo/NAME, for its own weights)"
    )
    parser.add_argument("--key", type=Path, default=DEVELOPMENT_KEY, help="private key that signs the bundle")
    try:
        return quantize(parser.parse_args(argv))
    except EdgeAudioError as error:
        print(f"quantize: {error}", file=sys.stderr)
        return error.exit_code


def quantize(arguments) -> int:
    """The stage, in the order of the flow."""
    from models.recipe import load_recipe
    from toolkit.profile import load_profile

    from .baseline import read_baseline
    from .calibrate import representative_codes
    from .convert import convert
    from .layer_error import layer_errors
    from .micro import run_micro
    from .op_versions import check_op_versions
    from .pack import Packer
    from .report import Evaluation, conclude, judge, measure, write_report
    from .verify import check_integer, lsb_histogram, run_everywhere

    recipe = load_recipe(arguments.recipe)
    zoo = ROOT / "models" / "zoo" / recipe.name
    weights = arguments.weights or zoo / "weights.npz"
    out = arguments.out or ROOT / "build" / "quantize" / recipe.name
    profiles = [load_profile(name) for name in dict.fromkeys([*recipe.budget.profiles, *arguments.profile])]
    released = zoo / "baseline.json" if not arguments.weights and (zoo / "baseline.json").exists() else None
    against = arguments.baseline or released
    baseline = read_baseline(against, recipe.name) if against else None
    packer, evaluation = Packer.of(recipe, zoo, arguments.key), Evaluation.of(recipe, arguments)

    say(f"calibrating on {arguments.calibration}")
    codes = representative_codes(recipe, arguments.calibration, is_dataset=False)
    say(f"converting {weights}")
    converted = convert(recipe, weights, codes)
    model = converted.model
    check_integer(model)
    check_op_versions(model)
    say("comparing step with whole in every runtime")
    few = codes[:: max(1, len(codes) // 16)]
    runs = run_everywhere(model, few)
    others = [*runs[1:], *filter(None, [run_micro(model, few)])]
    parity = {other.runtime: lsb_histogram(runs[0], other) for other in others}
    say("measuring the error of each layer, accuracy and cost")
    layers = layer_errors(recipe, weights, converted, few)
    report, facts = measure(packer, converted, weights, few, evaluation, out, parity, [r.runtime for r in runs])
    report["layers"] = [layer.to_dict() for layer in layers]
    lines = judge(recipe, profiles, baseline, report, facts, out)
    write_report(out, recipe, model, report, facts)
    conclude(report, lines, say, ("bundle", "bundle_sha256", "model_bytes", "macs_per_second", "embedded", "report"))
    return 0


def say(text: str) -> None:
    """Progress, for people."""
    print(f"quantize: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
