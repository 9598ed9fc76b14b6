"""`pkd export`: write one detector of a run as a single file."""

from pathlib import Path

from jsonargparse import Namespace

from pkd.cli.console import console
from pkd.cli.parser import Parser, add_model_selection
from pkd.deploy.export import FORMATS, INPUT_TYPES, export_run


def export_parser() -> Parser:
    """Parser of the command."""
    parser = Parser(description="Write a detector of a run as one file, verified.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    parser.add_argument(
        "--format", choices=tuple(FORMATS), default="onnx", help="ONNX, or torch.export's .pt2"
    )
    parser.add_argument(
        "--input",
        choices=tuple(INPUT_TYPES),
        default="uint8",
        help="type of the pixels in [0, 255]",
    )
    parser.add_argument(
        "--data-dir", type=str | None, help="data of the test images; default: as in the run"
    )
    add_model_selection(parser)
    return parser


def run_export(args: Namespace) -> int:
    """Export the detector and print its metadata; return the exit code."""
    summary = export_run(
        args.run,
        args.output,
        overwrite=args.overwrite,
        file_format=args.format,
        input_type=args.input,
        network=args.network,
        normal_class=args.normal_class,
        seed=args.seed,
        data_dir=args.data_dir,
    )
    info = summary.info
    console.print(
        f"{args.output}: {info.network} of class {info.normal_class} {info.class_name}, seed "
        f"{info.seed}, {summary.size:,} bytes, threshold {info.threshold:.6g}",
        soft_wrap=True,
    )
    console.print(
        f"scores of {summary.images} test images differ from the run's by at most "
        f"{summary.difference:.1e} relatively",
        soft_wrap=True,
    )
    return 0
