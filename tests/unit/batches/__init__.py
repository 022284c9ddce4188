"""Batches without a store: lines, outcomes, room, exchanges, forms."""
