"""Where specs come from: files, read with limits and positions, and the last good version of each."""
