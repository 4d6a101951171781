"""The ten tasks with their solutions: try them before you look. sheets.py makes students' files."""
