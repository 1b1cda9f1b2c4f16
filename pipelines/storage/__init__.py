"""Where bytes live: atomic writes, retries, a node-local cache."""
