"""Other trainers, run where they are installed."""

PEERS: dict = {}
