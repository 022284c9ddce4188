"""Programs a user of each Python client might have written; they run in environments of their own."""
