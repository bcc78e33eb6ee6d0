"""The paper by one command: its networks, tables and figures, ours beside the published numbers."""
