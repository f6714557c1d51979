"""Where messages come from: one broker a file, each the only importer of its client library."""
