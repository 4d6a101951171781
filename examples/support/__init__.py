"""What the scripts share: options, a run kept on disk, being told to stop."""
