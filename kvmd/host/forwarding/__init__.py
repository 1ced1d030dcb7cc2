"""What decides over packets that pass between links, and how it is put right."""
