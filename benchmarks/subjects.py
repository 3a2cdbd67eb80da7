"""How well each method trains toybox on subjects that it has never seen, as scored by the judge.

    python -m benchmarks.subjects --sprites DIR [--sheets DIR]

Each of ten subjects is trained from five photos with the Balanced preset, then generated with its 25 prompts of the
DreamBooth benchmark. The judge, a classifier with its own weights and training images (``python -m toybox
judge``), decides for every image
- whether it shows the subject: whether the mean features of this subject are the nearest, among those of all known
  objects and all ten subjects, each averaged over 8 new renders;
- whether the scene, or otherwise the attribute, that the prompt names is right.
Renders of the subjects ("renders") give the judge's ceiling, the untrained base model ("base") the chance level. Each
run is saved when it ends, so an interrupted benchmark continues.
"""

from itertools import product

from benchmarks.options import RESULTS
from benchmarks.subject_results import BASE, CEILING, Case, run_missing
from benchmarks.subject_runs import make_parser, set_up
from benchmarks.subject_tables import report
from hra_diffusion.adapters.methods import COMPARED
from hra_diffusion.files import write_text
from toybox.subjects import SUBJECTS


def main() -> None:
    """Run the missing cases and write the report."""
    methods = [CEILING, BASE, *COMPARED]
    parser = make_parser(__doc__, RESULTS / "subjects.json")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    facts, runner = set_up(args)
    cases = [Case(*case) for seed in args.seeds for case in product(args.subjects, args.methods, [seed])]
    text = report(run_missing(args.output, facts, cases, runner.measure))
    write_text(args.output.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
