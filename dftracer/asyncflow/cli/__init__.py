"""The command line: ``dftracer-flow``."""
