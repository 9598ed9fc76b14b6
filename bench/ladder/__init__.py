"""The step ladder: cells, contenders and their timing."""
