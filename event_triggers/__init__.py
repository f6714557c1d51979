"""One deferrable sensor for many awaited messages, one marker task for each of them."""
