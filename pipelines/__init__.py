"""The dataflow, on Ray: stores, manifests, plans, decoding, shards, loading, training and rollouts."""
