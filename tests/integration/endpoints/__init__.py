"""The endpoints beside conversations, from the official client to the ledger."""
