"""Durations as text."""


def format_duration(seconds: float) -> str:
    """Format a time, e.g. 42 s, 13 min, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
