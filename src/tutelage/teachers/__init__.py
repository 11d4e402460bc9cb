"""Teachers: get traces, each paid for once through the ledger. Never judges them."""
