"""All GPU measurements in one command of less than ten minutes: `python -m bench.gpu --out DIR`."""
