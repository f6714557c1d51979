"""What it costs: each benchmark prints its own targets, and exits 1 when one is missed."""
