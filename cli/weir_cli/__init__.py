"""The command line: `weir up` and its companions."""
