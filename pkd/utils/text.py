"""Text from outside, such as names of files and classes, on terminals and in CSV files."""

# A spreadsheet takes a cell that begins with one of these for a formula.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def visible(text: str) -> str:
    """Text in one line without control characters, which could change what a terminal shows.

    Control, format and other invisible characters, such as escape, newline or the marks that
    reverse the direction of writing, become backslash sequences.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def csv_cell(value: object) -> object:
    """A value for a CSV file: text that spreadsheets would take for a formula gets a quote."""
    is_formula = isinstance(value, str) and value.startswith(FORMULA_STARTS)
    return f"'{value}" if is_formula else value
