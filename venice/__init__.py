"""Venice: a complete event-stream pipeline on one or many hosts with one command."""

__version__ = "0.1.0"
