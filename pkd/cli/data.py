"""`pkd data`: show, verify and download the files of a data set."""

from pathlib import Path

from jsonargparse import Namespace
from rich.table import Table

from pkd.cli.console import console, print_table
from pkd.cli.parser import Parser
from pkd.data import standard
from pkd.training.config import StandardName
from pkd.utils.errors import DataError


def data_parser() -> Parser:
    """Parser of the command."""
    parser = Parser(description="Show, verify and download the files of a data set.")
    parser.add_argument("dataset", type=StandardName)
    parser.add_argument("--data-dir", type=Path | None, help="folder of the files")
    parser.add_argument("--download", action="store_true", help="fetch missing files")
    return parser


def run_data(args: Namespace) -> int:
    """Print the state of the files; return the exit code."""
    if args.download:
        standard.download(args.dataset, args.data_dir)
    rows = standard.inspect(args.dataset, args.data_dir)
    if not rows:
        console.print(f"{args.dataset} comes with scikit-learn: nothing to download")
        return 0
    folder = standard.data_folder(args.data_dir)
    table = Table("file", "state", title=f"{args.dataset} in {folder}")
    for row in rows:
        table.add_row(row.file, row.state)
    print_table(table)
    broken = [str(row.path) for row in rows if row.state not in ("ok", "missing")]
    command = standard.download_command(args.dataset, folder)
    if broken:
        raise DataError(f"not the official files: {', '.join(broken)}; delete them, then {command}")
    if any(row.state == "missing" for row in rows):
        raise DataError(f"files are missing, fetch them with: {command}")
    return 0
