"""What the benchmarks share: servers, the load, peers, and how figures are shown."""
